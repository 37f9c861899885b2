"""The summary in tables and sentences. Figures are fractions with three decimals, mean ± standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.bench.eta import spoken
from blemish.bench.recipe import METRICS
from blemish.bench.summary import MeanStd, PairedComparison, Summary

CHOSEN = "‡"
CHOSEN_MEANS = f"{CHOSEN} the epoch was chosen by looking at the test set, as the recipe asks: too good by that much"
ORACLE_MEANS = "oracle: with the threshold that is best on the test labels, which nobody has in use"
TRIVIAL_MEANS = (
    "Trivial: what brightness, contrast or gradient of a thumbnail alone reach, the best of the three; where it is "
    "high, a high image AUROC says little."
)
TIMED_MEANS = (
    "Medians over all jobs of a method, each in a process of its own; the total includes starting it. Jobs that were "
    "killed and went on are left out, where that is known. Looks are those at the test set while a model still learns; "
    "rows from before they were counted apart have them in fit and in judging, so that stages add up to more than the "
    "total (docs/log.md)."
)
PAIRED_MEANS = (
    "Same sets, same seeds. The mean goes over sets of images, each counting once, however many settings it stands in; "
    "the interval (Student's t) says how far it might move with other sets like these. Better / worse counts sets."
)
KIND_METRICS = ("image_auroc", "pixel_auroc", "aupro")
"""What is measured of each kind of defect."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""


def shown(figure: MeanStd | None) -> str:
    """``0.912 ± 0.004``, or a dash."""
    if figure is None:
        return "–"
    return f"{figure.mean:.3f}" + ("" if figure.std is None else f" ± {figure.std:.3f}")


def signed(value: float, digits: int = 4) -> str:
    """``+0.0012`` or ``−0.0012``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def column(summary: Summary, label: str) -> str:
    """A method's name at the head of a column, marked where the test set chose its epoch."""
    return f"{label} {CHOSEN}" if summary.is_chosen_on_test(label) else label


def metric_table(summary: Summary, metric: str) -> Table:
    """Sets by methods; beside an image AUROC stands the trivial one."""
    trivial = metric == "image_auroc"
    header = ("set", *(["trivial"] * trivial), *(column(summary, label) for label in summary.labels))
    rows: list[tuple[str, ...]] = []
    for name in summary.sets:
        figures = [summary.mean_std(label, name, metric) for label in summary.labels]
        if any(figures):
            cue = summary.trivial(name)
            beside = "–" if cue is None else f"{cue[1]:.2f} ({cue[0]})"
            rows.append((name, *([beside] * trivial), *map(shown, figures)))
    counted = summary.complete_sets(metric)
    if len(counted) > 1:
        images = summary.images_of(counted)
        settings = f"settings of {images} {'set' if images == 1 else 'sets'}" if images < len(counted) else "sets"
        averages = [summary.average(label, metric) for label in summary.labels]
        rows.append((f"mean over {len(counted)} {settings}", *([""] * trivial), *map(shown, averages)))
    return header, rows


def pair_table(summary: Summary) -> Table:
    """Each method against the reference, metric by metric."""
    header = ("method – reference", "metric", "difference", "95 % over sets", "better / worse", "sets", "runs")
    rows: list[tuple[str, ...]] = []
    for pair in (pair for metric in summary.recipe.metrics for pair in summary.comparisons(metric)):
        interval = "–" if pair.interval is None else _interval(pair.interval)
        names = f"{pair.label} – {pair.against}", METRICS[pair.metric]
        counts = f"{pair.better} / {pair.worse}", str(len(pair.by_set)), str(pair.pairs)
        rows.append((*names, signed(pair.mean), interval, *counts))
    return header, rows


def pair_sentences(summary: Summary) -> list[str]:
    """The comparisons on the recipe's first metric, in words."""

    def said(pair: PairedComparison) -> str:
        reach = "" if pair.interval is None else f" (95 % interval {_interval(pair.interval)})"
        return (
            f"{pair.label} against {pair.against}: {METRICS[pair.metric]} differs by {signed(pair.mean)} on average "
            f"over {len(pair.by_set)} {'set' if len(pair.by_set) == 1 else 'sets'}{reach}; better on {pair.better}, "
            f"worse on {pair.worse}."
        )

    return [said(pair) for pair in summary.comparisons(summary.recipe.metrics[0])]


def _interval(interval: tuple[float, float]) -> str:
    return f"{signed(interval[0])} to {signed(interval[1])}"


def paper_table(summary: Summary) -> Table:
    """The paper's figures beside ours; measured ones first, as fractions."""
    header = ("method", "metric", "set", "paper", "ours", "difference")
    theirs = summary.recipe.paper.sets if summary.recipe.paper else None
    rows: list[tuple[str, ...]] = []
    for figure in sorted(summary.paper_figures(), key=lambda figure: figure.ours is None):
        name = figure.set_name
        if figure.ours is None and name != "average":
            continue
        if figure.sets is not None and theirs is not None and figure.sets != theirs:
            name = f"{name} (paper: {theirs} sets, ours: {figure.sets})"
        difference = "not run" if figure.ours is None else signed(figure.ours.mean - figure.paper, 3)
        method = column(summary, figure.label), METRICS[figure.metric]
        rows.append((*method, name, f"{figure.paper:.3f}", shown(figure.ours), difference))
    return header, rows


def timing_table(summary: Summary) -> Table:
    """Median seconds of each stage, and memory, over all jobs of a method."""
    looks = any("looks" in row["seconds"] for row in summary.rows)
    stages = ("images", "fit", *(["looks"] * looks), "judging", "metrics", "total")
    header = ("method", *(f"{stage} (s)" for stage in stages), "peak memory (MiB)", "threads")
    rows = []
    for label in summary.labels:
        own = summary.rows_of(label)
        if own:
            seconds = [summary.seconds(label, stage) for stage in stages]
            peak = max(row.get("peak_memory_mib") or 0 for row in own)
            threads = ", ".join(sorted({str(row.get("threads", "–")) for row in own}))
            rows.append((label, *("–" if s is None else f"{s:.1f}" for s in seconds), f"{peak:.0f}", threads))
    return header, rows


def kind_table(summary: Summary, set_name: str, metric: str) -> Table:
    """One figure of each kind of defect against all good images; without rows where the set cannot give it."""
    header = (METRICS[metric], "images", *(column(summary, label) for label in summary.labels))
    kinds: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    for label in summary.labels:
        for row in summary.rows_of(label, set_name):
            for kind, figures in row["kinds"].items():
                kinds.setdefault(kind, {}).setdefault(label, []).append(figures)
    rows = []
    for kind, by_label in sorted(kinds.items()):
        values = [[figures.get(metric) for figures in by_label.get(label, ())] for label in summary.labels]
        means = [MeanStd.of(value for value in some if value is not None) for some in values]
        if any(means):
            images = next(iter(by_label.values()))[0]["images"]
            rows.append((kind, f"{images:.0f}", *map(shown, means)))
    return header, rows


def missing_table(summary: Summary) -> Table:
    """What has no figure, and why."""
    rows: list[tuple[str, ...]] = [(what, "absent", reason) for what, reason in summary.missing.items()]
    for row in summary.failed:
        seed = row.get("configuration", {}).get("seed")
        rows.append((f"{row['label']} on {row['set']}, seed {seed}", "failed", str(row["reason"])))
    return ("what", "state", "why"), rows + [(title, "not run yet", "") for title in summary.open]


def made_with(summary: Summary) -> str:
    """One sentence on code, machine and versions."""
    rows = summary.rows
    if not rows:
        return "Nothing has been measured yet."
    newest = max(rows, key=lambda row: str(row["finished"]))["commit"]
    others = len({row["commit"] for row in rows}) - 1
    commit = (newest[:10] if newest else "none (an installed package)") + f" and {others} before" * (others > 0)
    machines = sorted({f"{row['machine']['processor']}, {row['device']}" for row in rows})
    precisions = sorted({str(row["precision"]) for row in rows})
    torch = sorted({row["versions"]["torch"] for row in rows})
    last = max(row["finished"] for row in rows)[:10]
    total = spoken(sum(row["seconds"]["total"] for row in rows))
    openings = sum(row["test_openings"] for row in rows)
    return (
        f"{len(rows)} runs, {total} in all, the last on {last}; commit {commit}; {'; '.join(machines)}; "
        f"{', '.join(precisions)}; torch {', '.join(torch)}. Test sets were opened {openings} times for them."
    )


def protocol_lines(summary: Summary) -> list[str]:
    """How it was measured, one sentence each."""
    recipe, protocol = summary.recipe, summary.recipe.protocol
    size = recipe.preparation.size
    side = f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"
    measured = "at the network's input size" if protocol.at == "input" else "at each image's own size"
    if protocol.follow is not None:
        chosen = (
            f"The model is the one that training left. The test set was also judged after every {protocol.follow} "
            "epochs, to draw curves; nothing was chosen by them."
        )
    elif protocol.selection == "last":
        chosen = "The model is the one that training left; no test image was seen before."
    else:
        chosen = f"Best on test: the epoch with the highest mean of {', '.join(protocol.select_by)} on the test set."
    lines = [
        f"Regime {protocol.regime}; backbone {recipe.backbone}; resized by {recipe.preparation.resize} to {side}; "
        f"seeds {', '.join(map(str, recipe.seeds))}.",
        f"Metrics are taken from raw scores and maps {measured}.",
        chosen,
        TRIVIAL_MEANS,
    ]
    images = [
        f"{name}: {row['learned_from']['images']} to learn from, {row['test']['images']} to judge, "
        f"{row['test']['anomalous']} of them bad"
        for name, row in {row["set"]: row for row in summary.rows}.items()
    ]
    notes = [f"{name}: {entry.note}" for entry in recipe.data if entry.note for name in entry.names.values()]
    for title, words in (("Images", images), ("On the sets", notes)):
        lines += [f"{title}: {'; '.join(words)}."] if words else []
    return lines


def footnotes(summary: Summary) -> list[str]:
    """What the marks mean, where there are any."""
    chosen = any(summary.is_chosen_on_test(label) for label in summary.labels)
    oracle = any("oracle" in metric for metric in summary.recipe.metrics)
    return [CHOSEN_MEANS] * chosen + [ORACLE_MEANS] * oracle


def markdown_table(table: Table) -> str:
    """A pipe table; figures to the right."""
    header, rows = table
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def result_tables(summary: Summary, metrics: Sequence[str] = ()) -> str:
    """The figures alone as Markdown: one table a metric, all of the recipe's unless given."""
    parts = []
    for metric in metrics or summary.recipe.metrics:
        table = metric_table(summary, metric)
        if table[1]:
            parts += [f"**{METRICS[metric]}**", markdown_table(table)]
    return "\n\n".join([*parts, *footnotes(summary)])
