"""The summary as Markdown. Figures are fractions with three decimals, mean ± standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from blemish.bench.estimates import spoken
from blemish.bench.jobs import names_of
from blemish.bench.recipe import METRICS
from blemish.bench.summary import Pairing, Printed, Spread, Summary

CHOSEN = "‡"
CHOSEN_MEANS = f"{CHOSEN} the epoch was chosen by looking at the test set, as the recipe asks: too good by that much"
ORACLE_MEANS = "oracle: with the threshold that is best on the test labels, which nobody has in use"
TRIVIAL_MEANS = (
    "trivial: what brightness, contrast or gradient of a thumbnail alone reach, the best of the three; where it is "
    "high, a high image AUROC says little"
)

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""


def shown(spread: Spread | None) -> str:
    """``0.912 ± 0.004``, or a dash."""
    if spread is None:
        return "–"
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")


def signed(value: float, digits: int = 4) -> str:
    """``+0.0012`` or ``−0.0012``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def column(summary: Summary, label: str) -> str:
    """A method's name at the head of a column, marked where the test set chose its epoch."""
    return f"{label} {CHOSEN}" if summary.is_chosen_on_test(label) else label


def metric_table(summary: Summary, metric: str) -> Table:
    """Sets by methods; beside an image AUROC stands the trivial one."""
    beside = metric == "image_auroc"
    header = ("set", *(("trivial",) if beside else ()), *(column(summary, label) for label in summary.labels))
    rows = []
    for name in summary.sets:
        figures = [shown(summary.spread(label, name, metric)) for label in summary.labels]
        if all(figure == "–" for figure in figures):
            continue
        cue = summary.trivial(name)
        trivial = ("–" if cue is None else f"{cue[1]:.2f} ({cue[0]})",) if beside else ()
        rows.append((name, *trivial, *figures))
    averages = [summary.average(label, metric) for label in summary.labels]
    known = [one for one in averages if one is not None]
    if known and known[0][1] > 1:
        counted = summary.complete_sets(metric)
        different = len({summary.images_of(name) for name in counted})
        mean = f"mean over {len(counted)} sets"
        if different < len(counted):
            mean = f"mean over {len(counted)} settings of {different} {'set' if different == 1 else 'sets'}"
        rows.append((mean, *(("",) if beside else ()), *(shown(one and one[0]) for one in averages)))
    return header, rows


def pair_table(summary: Summary) -> Table:
    """Each method against the reference, metric by metric."""
    header = ("method – reference", "metric", "difference", "95 % over sets", "better / worse", "sets", "runs")
    return header, [_paired(one) for metric in summary.recipe.metrics for one in summary.pairings(metric)]


def _paired(one: Pairing) -> tuple[str, ...]:
    better, worse = one.better_worse
    interval = "–" if one.interval is None else f"{signed(one.interval[0])} to {signed(one.interval[1])}"
    names = f"{one.label} – {one.against}", METRICS[one.metric]
    return (*names, signed(one.mean), interval, f"{better} / {worse}", str(len(one.by_set)), str(one.pairs))


def pair_sentences(summary: Summary) -> list[str]:
    """The comparisons on the recipe's first metric, in words."""
    return [_said(one) for one in summary.pairings(summary.recipe.metrics[0])]


def _said(one: Pairing) -> str:
    better, worse = one.better_worse
    reach = "" if one.interval is None else f" (95 % interval {signed(one.interval[0])} to {signed(one.interval[1])})"
    return (
        f"{one.label} against {one.against}: {METRICS[one.metric]} differs by {signed(one.mean)} on average over "
        f"{len(one.by_set)} {'set' if len(one.by_set) == 1 else 'sets'}{reach}; better on {better}, worse on {worse}."
    )


def paper_table(summary: Summary) -> Table:
    """The paper's figures beside ours; measured ones first, as fractions."""
    header = ("method", "metric", "set", "paper", "ours", "difference")
    printed = sorted(summary.printed(), key=lambda one: one.ours is None)
    return header, [_printed(one, summary) for one in printed if one.ours is not None or one.set_name == "average"]


def _printed(one: Printed, summary: Summary) -> tuple[str, ...]:
    name = one.set_name
    theirs = summary.recipe.paper.sets if summary.recipe.paper else None
    if one.sets is not None and theirs is not None and one.sets != theirs:
        name = f"{name} (paper: {theirs} sets, ours: {one.sets})"
    difference = "not run" if one.ours is None else signed(one.ours.mean - one.paper, 3)
    return column(summary, one.label), METRICS[one.metric], name, f"{one.paper:.3f}", shown(one.ours), difference


def timing_table(summary: Summary) -> Table:
    """Median seconds of each stage, and memory, over all jobs of a method."""
    looks = any("looks" in row["seconds"] for row in summary.rows)
    stages = ("images", "fit", *(("looks",) if looks else ()), "judging", "metrics", "total")
    header = ("method", *(f"{stage} (s)" for stage in stages), "peak memory (MiB)", "threads")
    rows = []
    for label in summary.labels:
        own = [row for (name, _), found in summary.cells.items() if name == label for row in found]
        if own:
            seconds = [summary.seconds(label, stage) for stage in stages]
            peak = max(row.get("peak_memory_mib") or 0 for row in own)
            threads = ", ".join(sorted({str(row.get("threads", "–")) for row in own}))
            rows.append((label, *("–" if s is None else f"{s:.1f}" for s in seconds), f"{peak:.0f}", threads))
    return header, rows


KIND_METRICS = ("image_auroc", "pixel_auroc", "aupro")
"""What is measured of each kind of defect."""


def kind_table(summary: Summary, set_name: str, metric: str) -> Table:
    """One figure of each kind of defect against all good images; without rows where the set cannot give it."""
    header = (METRICS[metric], "images", *(column(summary, label) for label in summary.labels))
    cells = {label: summary.cells.get((label, set_name), ()) for label in summary.labels}
    kinds = sorted({kind for rows in cells.values() for row in rows for kind in row["kinds"]})
    found = []
    for kind in kinds:
        count = next(row["kinds"][kind]["images"] for rows in cells.values() for row in rows if kind in row["kinds"])
        figures = []
        for label in summary.labels:
            values = [row["kinds"][kind].get(metric) for row in cells[label] if kind in row["kinds"]]
            figures.append(shown(Spread.of([value for value in values if value is not None])))
        if any(figure != "–" for figure in figures):
            found.append((kind, f"{count:.0f}", *figures))
    return header, found


def missing_table(summary: Summary) -> Table:
    """What has no figure, and why."""
    rows: list[tuple[str, ...]] = [(one.what, "absent", one.reason) for one in summary.absent]
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
    sets = {row["set"]: row for row in summary.rows}
    known = [f"{name}: {row['learned_from']['images']} to learn from, {row['test']['images']} to judge, "
             f"{row['test']['anomalous']} of them bad" for name, row in sets.items()]  # fmt: skip
    size = recipe.preparation.size
    side = f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"
    lines = [
        f"Regime {protocol.regime}; backbone {recipe.backbone}; resized by {recipe.preparation.resize} to {side}; "
        f"seeds {', '.join(map(str, recipe.seeds))}.",
        "Metrics are taken from raw scores and maps"
        + (" at the network's input size." if protocol.at == "input" else " at each image's own size."),
        f"The model is the one that training left. The test set was also judged after every {protocol.follow} epochs, "
        "to draw curves; nothing was chosen by them."
        if protocol.follow is not None
        else "The model is the one that training left; no test image was seen before."
        if protocol.selection == "last"
        else f"Best on test: the epoch with the highest mean of {', '.join(protocol.select_by)} on the test set.",
        TRIVIAL_MEANS[0].upper() + TRIVIAL_MEANS[1:] + ".",
    ]
    if known:
        lines.append("Images: " + "; ".join(known) + ".")
    notes = [f"{name}: {entry.note}" for entry in recipe.data if entry.note for _, name in names_of(entry)]
    return [*lines, *([f"On the sets: {'; '.join(notes)}."] if notes else [])]


def footnotes(summary: Summary) -> list[str]:
    """What the marks mean, where there are any."""
    chosen = any(summary.is_chosen_on_test(label) for label in summary.labels)
    oracle = any("oracle" in metric for metric in summary.recipe.metrics)
    return [CHOSEN_MEANS] * chosen + [ORACLE_MEANS] * oracle


def markdown_table(table: Table) -> str:
    """A pipe table; figures to the right."""
    header, rows = table
    lines = [header, tuple(["---"] + ["---:"] * (len(header) - 1)), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def result_tables(summary: Summary, metrics: Sequence[str] = ()) -> str:
    """The figures alone: one table a metric, all of the recipe's unless given."""
    parts = []
    for metric in metrics or summary.recipe.metrics:
        table = metric_table(summary, metric)
        if table[1]:
            parts += [f"**{METRICS[metric]}**", markdown_table(table)]
    return "\n\n".join([*parts, *footnotes(summary)])


def markdown(summary: Summary) -> str:
    """The whole report as Markdown."""
    recipe = summary.recipe
    parts = [f"# {recipe.title or recipe.name}", " ".join(recipe.about.split()), made_with(summary)]
    parts += [f"Warning: {warning}." for warning in summary.warnings]
    parts += list(_section("Figures", [], result_tables(summary)))
    if recipe.paper is not None:
        words = [f"{recipe.paper.citation}, as fractions.", *_marked(summary.departures())]
        parts += list(_section("Beside the paper", words, markdown_table(paper_table(summary))))
    compared = [_listed(pair_sentences(summary)), PAIRED_MEANS]
    parts += list(_section("Pair by pair", compared, _unless_empty(pair_table(summary))))
    for name in summary.sets:
        kinds = [_unless_empty(kind_table(summary, name, metric)) for metric in KIND_METRICS]
        parts += list(_section(f"Kinds of defect: {name}", [], "\n\n".join(table for table in kinds if table)))
    parts += list(_section("Time", [TIMED_MEANS], _unless_empty(timing_table(summary))))
    parts += list(_section("Without a figure", [], _unless_empty(missing_table(summary))))
    parts += ["## Protocol", _listed(protocol_lines(summary))]
    return "\n\n".join(part for part in parts if part) + "\n"


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


def _marked(departures: Iterable[str]) -> list[str]:
    lines = list(departures)
    return ["Differences in protocol:", _listed(lines)] if lines else []


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _section(title: str, words: Sequence[str], table: str) -> Iterator[str]:
    if table:
        yield from (f"## {title}", *words, table)


def _unless_empty(table: Table) -> str:
    return markdown_table(table) if table[1] else ""
