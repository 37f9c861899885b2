"""The summary in tables and sentences. Figures are fractions with three decimals, mean ± standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import pandas as pd

from blemish.bench.eta import is_timed, spoken
from blemish.bench.recipe import METRICS
from blemish.bench.summary import PairedComparison, Summary

CHOSEN = "‡"

Table = tuple[Sequence[str], list[tuple[str, ...]]]
"""Header and rows."""


def shown(values: pd.Series[float]) -> str:
    """``0.912 ± 0.004``, or a dash."""
    if values.empty:
        return "–"
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


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
        figures = [shown(summary.values(label, name, metric)) for label in summary.labels]
        if set(figures) != {"–"}:
            cue = summary.trivial(name)
            beside = "–" if cue is None else f"{cue[1]:.2f} ({cue[0]})"
            rows.append((name, *([beside] * trivial), *figures))
    counted = summary.complete_sets(metric)
    if len(counted) > 1:
        images = summary.figures.loc[summary.figures["set"].isin(counted), "images"].nunique()
        settings = f"settings of {images} {'set' if images == 1 else 'sets'}" if images < len(counted) else "sets"
        averages = [shown(summary.averages(label, metric)) for label in summary.labels]
        rows.append((f"mean over {len(counted)} {settings}", *([""] * trivial), *averages))
    return header, rows


def pair_table(summary: Summary) -> Table:
    """Each method against the reference, metric by metric."""
    header = ("method – reference", "metric", "difference", "95 % over sets", "better / worse", "sets", "runs")
    rows: list[tuple[str, ...]] = []
    for metric in summary.recipe.metrics:
        for pair in summary.comparisons(metric):
            names = f"{pair.label} – {pair.against}", METRICS[metric]
            counts = f"{pair.better} / {pair.worse}", str(len(pair.by_set)), str(pair.pairs)
            rows.append((*names, signed(pair.mean), _interval(pair) or "–", *counts))
    return header, rows


def pair_sentences(summary: Summary) -> list[str]:
    """The comparisons on the recipe's first metric, in words."""
    metric, sentences = summary.recipe.metrics[0], []
    for pair in summary.comparisons(metric):
        sets = f"{len(pair.by_set)} {'set' if len(pair.by_set) == 1 else 'sets'}"
        reach = f" (95 % interval {_interval(pair)})" if pair.interval else ""
        sentences.append(
            f"{pair.label} against {pair.against}: {METRICS[metric]} differs by {signed(pair.mean)} on average over "
            f"{sets}{reach}; better on {pair.better}, worse on {pair.worse}."
        )
    return sentences


def _interval(pair: PairedComparison) -> str:
    return " to ".join(map(signed, pair.interval or ()))


def paper_table(summary: Summary) -> Table:
    """The paper's figures beside ours, as fractions; of what was not run only averages, at the end."""
    rows: list[tuple[str, ...]] = []
    paper = summary.recipe.paper
    for label, metrics in paper.figures.items() if paper else ():
        for metric, figures in metrics.items():
            for name, printed in figures.items():
                theirs, place = printed / (100 if paper and paper.unit == "percent" else 1), name
                if name == "average":
                    ours = summary.averages(label, metric)
                    sets = 0 if ours.empty else len(summary.complete_sets(metric))
                    if paper and paper.sets not in (None, sets):
                        place = f"{name} (paper: {paper.sets} sets, ours: {sets})"
                else:
                    own = next((own for own in summary.sets if name in (own, own.rpartition("/")[2])), "")
                    ours = summary.values(label, own, metric)
                    if ours.empty:
                        continue
                difference = "not run" if ours.empty else signed(ours.mean() - theirs, 3)
                named = column(summary, label), METRICS[metric], place
                rows.append((*named, f"{theirs:.3f}", shown(ours), difference))
    rows.sort(key=lambda row: row[-1] == "not run")
    return ("method", "metric", "set", "paper", "ours", "difference"), rows


def timing_table(summary: Summary) -> Table:
    """Median seconds of each stage over jobs that were done in one go, and the most memory, of each method."""
    looks = any("looks" in row["seconds"] for row in summary.rows)
    stages = ("images", "fit", *(["looks"] * looks), "judging", "metrics", "total")
    rows = []
    for label in summary.labels:
        own = summary.rows_of(label)
        if own:
            timed = [row["seconds"] for row in own if is_timed(row)]
            seconds = [[spent[stage] for spent in timed if stage in spent] for stage in stages]
            peak = max(row.get("peak_memory_mib") or 0 for row in own)
            threads = ", ".join(sorted({str(row.get("threads", "–")) for row in own}))
            rows.append((label, *(f"{median(s):.1f}" if s else "–" for s in seconds), f"{peak:.0f}", threads))
    return ("method", *(f"{stage} (s)" for stage in stages), "peak memory (MiB)", "threads"), rows


def kind_table(summary: Summary, set_name: str, metric: str) -> Table:
    """One figure of each kind of defect against all good images; without rows where the set cannot give it."""
    header = (METRICS[metric], "images", *(column(summary, label) for label in summary.labels))
    measured = [row for label in summary.labels for row in summary.rows_of(label, set_name)]
    rows = []
    for kind in sorted({kind for row in measured for kind in row["kinds"]}):
        own = [(row["label"], row["kinds"][kind]) for row in measured if kind in row["kinds"]]
        values = [[figures[metric] for name, figures in own if name == label] for label in summary.labels]
        cells = [shown(pd.Series(some, dtype=float).dropna()) for some in values]
        if set(cells) != {"–"}:
            rows.append((kind, f"{own[0][1]['images']:.0f}", *cells))
    return header, rows


def missing_table(summary: Summary) -> Table:
    """What has no figure, and why."""
    rows: list[tuple[str, ...]] = [(what, "absent", reason) for what, reason in summary.missing.items()]
    for row in summary.failed:
        seed = row["configuration"]["seed"]
        rows.append((f"{row['label']} on {row['set']}, seed {seed}", "failed", str(row["reason"])))
    return ("what", "state", "why"), rows + [(title, "not run yet", "") for title in summary.open]


def made_with(summary: Summary) -> str:
    """One sentence on code, machine and versions."""
    rows = sorted(summary.rows, key=lambda row: str(row["finished"]))
    if not rows:
        return "Nothing has been measured yet."
    newest, others = rows[-1]["commit"], len({row["commit"] for row in rows}) - 1
    commit = (newest[:10] if newest else "none (an installed package)") + f" and {others} before" * (others > 0)
    machines = sorted({f"{row['machine']['processor']}, {row['device']}" for row in rows})
    precisions = sorted({str(row["precision"]) for row in rows})
    torch = sorted({row["versions"]["torch"] for row in rows})
    total = spoken(sum(row["seconds"]["total"] for row in rows))
    openings = sum(row["test_openings"] for row in rows)
    return (
        f"{len(rows)} runs, {total} in all, the last on {rows[-1]['finished'][:10]}; commit {commit}; "
        f"{'; '.join(machines)}; {', '.join(precisions)}; torch {', '.join(torch)}. "
        f"Test sets were opened {openings} times for them."
    )


def footnotes(summary: Summary) -> list[str]:
    """What the marks mean, where there are any."""
    notes = {
        f"{CHOSEN} the epoch was chosen by looking at the test set, as the recipe asks: too good by that much": any(
            summary.is_chosen_on_test(label) for label in summary.labels
        ),
        "oracle: with the threshold that is best on the test labels, which nobody has in use": any(
            "oracle" in metric for metric in summary.recipe.metrics
        ),
    }
    return [note for note, applies in notes.items() if applies]


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
