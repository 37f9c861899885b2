"""The bench's report: Markdown, and one page with pictures. Both go where git does not look.

It is for a stranger: first what was compared and the figures, then set by set what lies behind them, last how it was
measured. Both are written from the same blocks; Markdown leaves out charts and pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from blemish.bench import tables
from blemish.bench.artifacts import Artifacts, Picture, load_artifacts
from blemish.bench.job import EVIDENCE
from blemish.bench.jobs import job_folder
from blemish.bench.recipe import METRICS
from blemish.bench.summary import Summary
from blemish.bench.tables import column
from blemish.errors import DataError
from blemish.inspection.overlay import Scale, fixed_scale, overlay
from blemish.report.charts import curves, dot_plot, score_histogram
from blemish.report.epochs import charts_over_epochs
from blemish.report.html import Block, block, heading, picture, table, write_page
from blemish.run import written_atomically

QUIET = 0.75
"""Colours on the page begin where this share of good images has no pixel; no figure depends on it."""


def write_reports(summary: Summary, results: Path, reports: Path) -> list[Path]:
    """Write both reports of a recipe into ``reports``, with the pictures that jobs left in ``results``; the files."""
    blocks = list(_blocks(summary, results))
    text = reports / f"{summary.recipe.name}.md"
    with written_atomically(text) as temporary:
        temporary.write_text(markdown(blocks), encoding="utf-8")
    title = summary.recipe.title or summary.recipe.name
    return [text, write_page(reports / f"{summary.recipe.name}.html", title, blocks)]


def markdown(blocks: Sequence[Block]) -> str:
    """The words and tables of a page."""
    parts = []
    for part in blocks:
        kind, content = part["kind"], part["content"]
        if kind == "heading":
            parts.append(f"{'#' * part['level']} {content}")
        elif kind == "tables":
            parts += [tables.markdown_table(shown) for shown in content]
        elif kind == "bullets":
            parts.append("\n".join(f"- {line}" for line in content))
        elif kind in ("paragraph", "promise", "warning"):
            parts.append(f"{'Warning: ' * (kind == 'warning')}{content}")
    return "\n\n".join(parts) + "\n"


def _blocks(summary: Summary, results: Path) -> Iterator[Block]:
    recipe = summary.recipe
    sets = [name for name in summary.sets if any(row["set"] == name for row in summary.rows)]
    missing = tables.missing_table(summary)
    yield heading(recipe.title or recipe.name, 1)
    yield block("paragraph", " ".join(recipe.about.split()))
    yield _soft(tables.made_with(summary))
    for line in tables.pair_sentences(summary):
        yield block("promise", line)
    if missing[1]:
        yield block("warning", f"Entries of the recipe without a figure: {len(missing[1])}; the reasons stand below.")
    for line in (*summary.warnings(), *tables.footnotes(summary)):
        yield block("warning", f"{line}.")
    links = {"figures": "Figures", "paper": "Beside the paper", "pairs": "Pair by pair"}
    links |= {_anchor(name): name for name in sets}
    links |= {"time": "Time", "missing": "Without a figure", "protocol": "Protocol"}
    absent = {"paper": not recipe.paper, "missing": not missing[1]}
    yield block("contents", [(anchor, text) for anchor, text in links.items() if not absent.get(anchor)])
    yield heading("Figures", anchor="figures")
    yield _soft("Mean ± standard deviation over seeds. 1 is perfect; 0.5 is chance for an AUROC.")
    for metric in recipe.metrics:
        figures = tables.metric_table(summary, metric)
        if figures[1]:
            yield heading(METRICS[metric], 3)
            yield block("charts", [_dots(summary, metric)])
            yield table(*figures)
    if recipe.paper is not None:
        yield heading("Beside the paper", anchor="paper")
        yield block("paragraph", f"{recipe.paper.citation}. As fractions.")
        departures = summary.departures()
        if departures:
            yield block("paragraph", "Our runs differ from the paper's in:")
            yield block("bullets", departures)
        yield table(*tables.paper_table(summary))
    yield heading("Pair by pair", anchor="pairs")
    pairs = tables.pair_table(summary)
    if pairs[1]:
        yield _soft(tables.PAIRED_MEANS)
        yield table(*pairs)
    else:
        yield block("paragraph", "There is nothing to compare: fewer than two methods have figures on one set.")
    for name in sets:
        yield from _set(summary, name, results)
    yield heading("Time", anchor="time")
    yield _soft(tables.TIMED_MEANS)
    yield table(*tables.timing_table(summary))
    if missing[1]:
        yield heading("Without a figure", anchor="missing")
        yield table(*missing, words=(1, 2))
    yield heading("Protocol", anchor="protocol")
    yield block("bullets", tables.protocol_lines(summary))


def _soft(text: str) -> Block:
    return block("paragraph", text, css="soft")


def _dots(summary: Summary, metric: str) -> Figure:
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for name in summary.sets:
        for label in summary.labels:
            figure = summary.mean_std(label, name, metric)
            if figure is not None:
                rows.setdefault(name, {})[column(summary, label)] = (figure.mean, figure.std or 0.0)
    x_label = f"{METRICS[metric]}; lines: ± standard deviation over seeds"
    return dot_plot(rows, _columns(summary), f"{METRICS[metric]} by set", x_label)


def _columns(summary: Summary) -> list[str]:
    return [column(summary, label) for label in summary.labels]


def _set(summary: Summary, name: str, results: Path) -> Iterator[Block]:
    recipe = summary.recipe
    yield heading(name, anchor=_anchor(name))
    tests = {
        test: entry for entry in recipe.data for own in entry.names.values() for test in recipe.protocol.test_sets(own)
    }
    notes = [tests[name].note] if tests[name].note else []
    cue = summary.trivial(name)
    if cue is not None:
        notes.append(f"trivial AUROC {cue[1]:.2f}, by {cue[0]}")
    if notes:
        yield _soft("; ".join(notes)[:1].upper() + "; ".join(notes)[1:] + ".")
    artifacts = _artifacts(summary, name, results)
    shown = recipe.compared_with if recipe.compared_with in artifacts else next(iter(artifacts), "")
    if not artifacts:
        yield _soft("No job left its scores and pictures here: run the recipe with --afresh for them.")
    else:
        scores, labels = artifacts[shown].scores, artifacts[shown].labels
        title = f"Scores: {column(summary, shown)}, one seed"
        histogram = score_histogram(scores[~labels], scores[labels], {}, title)
        yield block("charts", [histogram, *_roc(summary, artifacts)])
    yield from _over_epochs(summary, name)
    kinds = [tables.kind_table(summary, name, metric) for metric in tables.KIND_METRICS]
    kinds = [kind for kind in kinds if kind[1]]
    if kinds:
        yield heading("By kind of defect", 3)
        yield _soft("Each kind against all good images; means over seeds.")
        yield block("tables", kinds)
    yield from _examples({column(summary, label): one for label, one in artifacts.items()})
    if artifacts:
        yield from _pictures(artifacts[shown], column(summary, shown))


def _artifacts(summary: Summary, set_name: str, results: Path) -> dict[str, Artifacts]:
    """By method, of the first seed that left any."""
    found: dict[str, Artifacts] = {}
    for label in summary.labels:
        for row in summary.rows_of(label, set_name):
            try:
                found[label] = load_artifacts(job_folder(results, row["key"]) / EVIDENCE)
                break
            except DataError:  # measured on another machine: its figures stand, its pictures are there
                continue
    return found


def _roc(summary: Summary, artifacts: Mapping[str, Artifacts]) -> Iterator[Figure]:
    lines = {column(summary, label): roc_curve(one) for label, one in artifacts.items() if len(set(one.labels)) == 2}
    if lines:
        title = "ROC, one seed"
        yield curves(lines, title, "good images rejected", "bad images found", (0.0, 1.0), _columns(summary))


def roc_curve(one: Artifacts) -> tuple[list[float], list[float]]:
    """Share of good images rejected and of bad ones found, threshold by threshold, highest first."""
    order = np.argsort(-one.scores, kind="stable")
    scores, labels = one.scores[order], one.labels[order]
    last_of_ties = np.append(scores[1:] != scores[:-1], True)
    found, rejected = np.cumsum(labels)[last_of_ties], np.cumsum(~labels)[last_of_ties]
    return [0.0, *(rejected / (~labels).sum())], [0.0, *(found / labels.sum())]


def _over_epochs(summary: Summary, name: str) -> Iterator[Block]:
    """Curves of the first seed of each method that was trained."""
    rows = {column(summary, label): own[0] for label in summary.labels if (own := summary.rows_of(label, name))}
    drawn = list(charts_over_epochs(rows, summary.recipe.metrics, _columns(summary)))
    if drawn:
        yield heading("Over epochs, one seed", 3)
        shares = [row["trusted"]["share"] for row in rows.values() if row.get("trusted")]
        looked = "The test set was looked at on the way to draw the curves of figures; nothing was chosen by them. "
        trusted = f"{shares[0]:.1%} of all that was learned from is bad." if shares else ""
        yield _soft(looked * any("followed" in row for row in rows.values()) + trusted)
        yield block("charts", drawn)


def _examples(artifacts: Mapping[str, Artifacts]) -> Iterator[Block]:
    """The same bad images under the maps of every method, each in its own colours."""
    able = {label: one for label, one in artifacts.items() if one.pictures["example"] and one.good_peaks.size}
    names = [[shown.name for shown in one.pictures["example"]] for one in able.values()]
    able = {label: one for (label, one), own in zip(able.items(), names) if own == names[0]}
    if len(able) < 2:
        return
    yield heading("The same bad images, method by method", 3)
    yield _soft(f"Left the picture with what a person marked, then the maps of {', '.join(able)}.")
    scales = [_scale(one) for one in able.values()]
    strips = []
    for shown in zip(*(one.pictures["example"] for one in able.values())):
        panels = [_panel(shown[0], scales[0], map_shown=False), *map(_panel, shown, scales)]
        strips.append(picture(_strip(panels), shown[0].kind, shown[0].name, lossy=True))
    yield block("pictures", strips, css="whole")


def _pictures(one: Artifacts, label: str) -> Iterator[Block]:
    scale = _scale(one)
    good, bad = one.scores[~one.labels], one.scores[one.labels]
    for title, images, others, sign, what in (
        ("Bad images, lowest scores", one.pictures["miss"], good, 1, "good images score higher"),
        ("Good images, highest scores", one.pictures["alarm"], bad, -1, "bad images score lower"),
    ):
        figures = []
        for shown in images:
            share = f"{(sign * others > sign * shown.score).mean():.0%} of {what}" if others.size else ""
            panels = [_panel(shown, scale, map_shown) for map_shown in ([False, True] if scale else [False])]
            caption = f"score {shown.score:.4g}; {share}; {shown.name}"
            figures.append(picture(_strip(panels), shown.kind, caption, lossy=True))
        if figures:
            yield heading(f"{title}: {label}", 3)
            yield block("pictures", figures, css="wide")
    if scale is not None:
        yield _soft(
            f"Left the picture, dashed what a person marked; right the map over it. Colour begins where {QUIET:.0%} of "
            "the good test images have none: chosen for this page, no figure depends on it."
        )


def _scale(one: Artifacts) -> Scale | None:
    if not one.good_peaks.size:
        return None
    return fixed_scale(float(np.quantile(one.good_peaks, QUIET)), one.good_peaks)


def _panel(shown: Picture, scale: Scale | None, map_shown: bool = True) -> Image.Image:
    """The picture under its map, or with the truth on it: not both, as the dashes would hide a small defect."""
    if shown.heat is None or scale is None:
        return Image.fromarray(shown.pixels)
    if map_shown:
        return overlay(shown.pixels, shown.heat, scale)
    return overlay(shown.pixels, np.full(shown.heat.shape, scale.threshold), scale, truth=shown.truth)


def _strip(panels: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other."""
    width, height = panels[0].size
    whole = Image.new("RGB", (len(panels) * (width + 4) - 4, height), "white")
    for i, panel in enumerate(panels):
        whole.paste(panel, (i * (width + 4), 0))
    return whole


def _anchor(name: str) -> str:
    return "set-" + re.sub(r"[^a-z0-9]+", "-", name.casefold())
