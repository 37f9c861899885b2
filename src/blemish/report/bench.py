"""The bench's report: Markdown, and one page with pictures. Both go where git does not look.

The page is for a stranger: first what was compared and the figures, then set by set what lies behind them, last how it
was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blemish.bench.artifacts import Evidence, Picture, load_evidence
from blemish.bench.jobs import judged_names
from blemish.bench.orders import EVIDENCE, job_folder
from blemish.bench.recipe import METRICS
from blemish.bench.summary import Summary
from blemish.bench.tables import (
    KIND_METRICS,
    PAIRED_MEANS,
    TIMED_MEANS,
    Table,
    column,
    footnotes,
    kind_table,
    made_with,
    markdown,
    metric_table,
    missing_table,
    pair_sentences,
    pair_table,
    paper_table,
    protocol_lines,
    timing_table,
)
from blemish.errors import DataError
from blemish.inspection.overlay import Scale, fixed_scale, overlay
from blemish.report import html
from blemish.report.charts import curves, dot_plot, score_histogram
from blemish.report.epochs import charts_over_epochs
from blemish.run import written_atomically

QUIET = 0.75
"""Colours on the page begin where this share of good images has no pixel; no figure depends on it."""


def write_reports(summary: Summary, results: Path, reports: Path) -> list[Path]:
    """Write both reports of a recipe; the files.

    Args:
        summary: the figures.
        results: the folder of the ledger, beside which jobs left their pictures.
        reports: where to; created if need be.

    Raises:
        OutputError: the folder is read-only or the disk is full.
    """
    text = reports / f"{summary.recipe.name}.md"
    with written_atomically(text) as temporary:
        temporary.write_text(markdown(summary), encoding="utf-8")
    title = summary.recipe.title or summary.recipe.name
    return [text, html.write_page(reports / f"{summary.recipe.name}.html", title, _body(summary, results))]


def _body(summary: Summary, results: Path) -> Iterator[str]:
    recipe = summary.recipe
    yield html.heading(recipe.title or recipe.name, 1)
    yield html.paragraph(" ".join(recipe.about.split()))
    yield html.paragraph(made_with(summary), "soft")
    for line in pair_sentences(summary):
        yield html.promise(line)
    missing = missing_table(summary)[1]
    if missing:
        yield html.warning(f"Entries of the recipe without a figure: {len(missing)}; the reasons stand further down.")
    for line in (*summary.warnings, *footnotes(summary)):
        yield html.warning(f"{line}.")
    sets = [name for name in summary.sets if any(place[1] == name for place in summary.cells)]
    yield html.contents(
        [("figures", "Figures"), *([("paper", "Beside the paper")] * bool(recipe.paper)), ("pairs", "Pair by pair")]
        + [(_anchor(name), name) for name in sets]
        + [("time", "Time"), *([("missing", "Without a figure")] * bool(missing)), ("protocol", "Protocol")]
    )
    yield from _figures(summary)
    yield from _paper(summary)
    yield from _pairs(summary)
    for name in sets:
        yield from _set(summary, name, results)
    yield html.heading("Time", anchor="time")
    yield html.paragraph(TIMED_MEANS, "soft")
    yield _table(timing_table(summary))
    if missing:
        yield html.heading("Without a figure", anchor="missing")
        yield html.table(missing_table(summary)[0], missing, words=(1, 2))
    yield html.heading("Protocol", anchor="protocol")
    yield html.bullets(protocol_lines(summary))


def _figures(summary: Summary) -> Iterator[str]:
    yield html.heading("Figures", anchor="figures")
    yield html.paragraph("Mean ± standard deviation over seeds. 1 is perfect; 0.5 is chance for an AUROC.", "soft")
    for metric in summary.recipe.metrics:
        table = metric_table(summary, metric)
        if table[1]:
            yield html.charts([_dots(summary, metric)])
            yield _table(table)


def _dots(summary: Summary, metric: str) -> str:
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for name in summary.sets:
        for label in summary.labels:
            found = summary.spread(label, name, metric)
            if found is not None:
                rows.setdefault(name, {})[column(summary, label)] = (found.mean, found.deviation or 0.0)
    name = METRICS[metric]
    return dot_plot(rows, _columns(summary), f"{name} by set", f"{name}; lines: ± standard deviation over seeds")


def _columns(summary: Summary) -> list[str]:
    return [column(summary, label) for label in summary.labels]


def _paper(summary: Summary) -> Iterator[str]:
    paper = summary.recipe.paper
    if paper is None:
        return
    yield html.heading("Beside the paper", anchor="paper")
    yield html.paragraph(f"{paper.citation}. As fractions.")
    departures = summary.departures()
    if departures:
        yield html.paragraph("Our runs differ from the paper's in:")
        yield html.bullets(departures)
    yield _table(paper_table(summary))


def _pairs(summary: Summary) -> Iterator[str]:
    table = pair_table(summary)
    yield html.heading("Pair by pair", anchor="pairs")
    if not table[1]:
        yield html.paragraph("There is nothing to compare: fewer than two methods have figures on one set.")
        return
    yield html.paragraph(PAIRED_MEANS, "soft")
    yield _table(table)


def _set(summary: Summary, name: str, results: Path) -> Iterator[str]:
    yield html.heading(name, anchor=_anchor(name))
    recipe = summary.recipe
    notes = [entry.note for entry in recipe.data if entry.note and name in judged_names(recipe, entry)]
    cue = summary.trivial(name)
    if cue is not None:
        notes.append(f"trivial AUROC {cue[1]:.2f}, by {cue[0]}")
    yield html.paragraph("; ".join(notes)[:1].upper() + "; ".join(notes)[1:] + "." if notes else "", "soft")
    evidence = _evidence(summary, name, results)
    if not evidence:
        yield html.paragraph("No job left its scores and pictures here: run the recipe with --afresh for them.", "soft")
    else:
        label = _shown_method(summary, evidence)
        one = evidence[label]
        yield html.charts([_histogram(one, column(summary, label)), _roc(summary, evidence)])
    yield from _over_epochs(summary, name)
    kinds = [kind_table(summary, name, metric) for metric in KIND_METRICS]
    if any(table[1] for table in kinds):
        yield html.heading("By kind of defect", 3)
        yield html.paragraph("Each kind against all good images; means over seeds.", "soft")
        yield html.beside(_table(table) for table in kinds if table[1])
    yield from _examples(summary, evidence)
    if evidence:
        yield from _pictures(one, column(summary, label))


def _over_epochs(summary: Summary, name: str) -> Iterator[str]:
    """Curves of the first seed of each method that was trained."""
    rows = {}
    for label in summary.labels:
        own = sorted(summary.cells.get((label, name), ()), key=lambda row: int(row["seed"]))
        if own:
            rows[column(summary, label)] = own[0]
    drawn = list(charts_over_epochs(rows, tuple(summary.recipe.metrics), _columns(summary)))
    if drawn:
        yield html.heading("Over epochs, one seed", 3)
        shares = [row["trusted"]["share"] for row in rows.values() if row.get("trusted")]
        looked = "The test set was looked at on the way to draw the curves of figures; nothing was chosen by them. "
        trusted = f"{shares[0]:.1%} of all that was learned from is bad. " if shares else ""
        yield html.paragraph(looked * any("followed" in row for row in rows.values()) + trusted, "soft")
        yield html.charts(drawn)


def _shown_method(summary: Summary, evidence: dict[str, Evidence]) -> str:
    """Whose scores and pictures stand for the set: the reference's, if it has any."""
    reference = summary.recipe.compared_with
    return reference if reference in evidence else next(iter(evidence))


def _evidence(summary: Summary, set_name: str, results: Path) -> dict[str, Evidence]:
    """By method, of the first seed that left any."""
    found: dict[str, Evidence] = {}
    for label in summary.labels:
        for row in sorted(summary.cells.get((label, set_name), ()), key=lambda row: int(row["seed"])):
            try:
                found[label] = load_evidence(job_folder(results, row["key"]) / EVIDENCE)
            except DataError:  # measured on another machine: its figures stand, its pictures are there
                continue
            break
    return found


def _histogram(one: Evidence, label: str) -> str:
    return score_histogram(one.scores[~one.labels], one.scores[one.labels], {}, f"Scores: {label}, one seed")


def _roc(summary: Summary, evidence: dict[str, Evidence]) -> str:
    lines = {}
    for label, one in evidence.items():
        if one.labels.any() and not one.labels.all():
            lines[column(summary, label)] = roc_curve(one)
    if not lines:
        return ""
    return curves(lines, "ROC, one seed", "good images rejected", "bad images found", (0.0, 1.0), _columns(summary))


def roc_curve(one: Evidence) -> tuple[list[float], list[float]]:
    """Share of good images rejected and of bad ones found, threshold by threshold, highest first."""
    order = np.argsort(-one.scores, kind="stable")
    scores, labels = one.scores[order], one.labels[order]
    last_of_ties = np.append(scores[1:] != scores[:-1], True)
    found, rejected = np.cumsum(labels)[last_of_ties], np.cumsum(~labels)[last_of_ties]
    return [0.0, *(rejected / (~labels).sum())], [0.0, *(found / labels.sum())]


def _examples(summary: Summary, evidence: dict[str, Evidence]) -> Iterator[str]:
    """The same bad images under the maps of every method, each in its own colours."""
    able = {label: one for label, one in evidence.items() if one.examples and _scale(one) is not None}
    if len(able) < 2:
        return
    first = next(iter(able.values())).examples
    able = {label: one for label, one in able.items() if [p.name for p in one.examples] == [p.name for p in first]}
    yield html.heading("The same bad images, method by method", 3)
    names = ", ".join(column(summary, label) for label in able)
    yield html.paragraph(f"Left the picture with what a person marked, then the maps of {names}.", "soft")
    strips = []
    for place, picture in enumerate(first):
        panels = [_panel(one.examples[place], _scale(one)) for one in able.values()]
        strip = _strip([_marked(picture, _scale(next(iter(able.values())))), *panels])
        strips.append(html.figure(strip, picture.kind, picture.name, "", lossy=True))
    yield html.pictures(strips, "whole")


def _pictures(one: Evidence, label: str) -> Iterator[str]:
    scale = _scale(one)
    good, bad = one.scores[~one.labels], one.scores[one.labels]
    for title, some in (("Bad images, lowest scores", one.misses), ("Good images, highest scores", one.alarms)):
        if not some:
            continue
        yield html.heading(f"{title}: {label}", 3)
        yield html.pictures((_figure(picture, scale, good, bad) for picture in some), "wide")
    if scale is not None:
        yield html.paragraph(
            f"Left the picture, dashed what a person marked; right the map over it. Colour begins where {QUIET:.0%} of "
            "the good test images have none: chosen for this page, no figure depends on it.",
            "soft",
        )


def _scale(one: Evidence) -> Scale | None:
    if not one.good_peaks.size:
        return None
    return fixed_scale(float(np.quantile(one.good_peaks, QUIET)), one.good_peaks)


def _figure(picture: Picture, scale: Scale | None, good: NDArray[np.float64], bad: NDArray[np.float64]) -> str:
    if picture.kind == "good":
        share = f"{(bad < picture.score).mean():.0%} of bad images score lower" if bad.size else ""
    else:
        share = f"{(good > picture.score).mean():.0%} of good images score higher" if good.size else ""
    caption = f"score {picture.score:.4g}; {share}; {picture.name}"
    return html.figure(_side_by_side(picture, scale), picture.kind, caption, "", lossy=True)


def _side_by_side(picture: Picture, scale: Scale | None) -> Image.Image:
    """The picture with the truth on it, and the same under the map."""
    if picture.heat is None or scale is None:
        return Image.fromarray(picture.pixels)
    return _strip([_marked(picture, scale), _panel(picture, scale)])


def _marked(picture: Picture, scale: Scale | None) -> Image.Image:
    """The picture with the truth on it. Not over the map: on a small defect the dashes would hide it."""
    if picture.heat is None or scale is None:
        return Image.fromarray(picture.pixels)
    return overlay(picture.pixels, np.full(picture.heat.shape, scale.threshold), scale, truth=picture.truth)


def _panel(picture: Picture, scale: Scale | None) -> Image.Image:
    """The picture under the map."""
    if picture.heat is None or scale is None:
        return Image.fromarray(picture.pixels)
    return overlay(picture.pixels, picture.heat, scale)


def _strip(panels: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other."""
    width, height = panels[0].size
    whole = Image.new("RGB", (len(panels) * (width + 4) - 4, height), "white")
    for place, panel in enumerate(panels):
        whole.paste(panel, (place * (width + 4), 0))
    return whole


def _table(table: Table) -> str:
    return html.table(*table)


def _anchor(name: str) -> str:
    return "set-" + re.sub(r"[^a-z0-9]+", "-", name.casefold())
