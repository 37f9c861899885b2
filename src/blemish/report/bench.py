"""The bench's report: Markdown, and one page with pictures. Both go where git does not look."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from blemish.bench.artifacts import Artifacts, Picture, load_artifacts
from blemish.bench.jobs import EVIDENCE, job_folder
from blemish.bench.ledger import Row
from blemish.bench.recipe import METRICS
from blemish.bench.summary import Summary, footnotes, kind_table, metric_table, paper_table, timing_table
from blemish.errors import DataError
from blemish.inspection.overlay import Scale, fixed_scale, overlay
from blemish.report.charts import curves, dot_plot
from blemish.report.html import histogram, picture, write_markdown, write_page

KIND_METRICS = ("image_auroc", "pixel_auroc", "aupro")  # what is measured of each kind of defect
QUIET = 0.75  # colours on the page begin where this share of good images has no pixel; no figure depends on it
COUNTED, ENERGY = "hc", "energy_"
"""Logged values that are no loss: a count of images, and what the names of a discriminator's energies begin with."""


def write_reports(summary: Summary, results: Path, reports: Path) -> list[Path]:
    """Write both reports of a recipe into ``reports``, with the pictures that jobs left in ``results``; the files."""
    name, facts = summary.recipe.name, facts_of(summary, results)
    page = write_page(reports / f"{name}.html", summary.recipe.title or name, "bench.j2", **facts)
    return [write_markdown(reports / f"{name}.md", "bench.j2", **facts), page]


def facts_of(summary: Summary, results: Path) -> dict[str, Any]:
    """What the template shows."""
    by_set = {row["set"]: row for row in summary.rows}
    return {
        "summary": summary,
        "footnotes": footnotes(summary, summary.recipe.metrics),
        "metric_table": partial(metric_table, summary),
        "paper_table": paper_table(summary),
        "timing_table": timing_table(summary),
        "quiet": QUIET,
        "dots": partial(_dots, summary),
        "sets": [_set(summary, name, results) for name in summary.sets if name in by_set],
        "by_set": by_set,
    }


def _dots(summary: Summary, metric: str) -> Figure:
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for name in summary.sets:
        for label in summary.labels:
            values = summary.values(label, name, metric)
            if not values.empty:
                spread = float(values.std()) if len(values) > 1 else 0.0
                rows.setdefault(name, {})[summary.columns[label]] = float(values.mean()), spread
    x_label = f"{METRICS[metric]}; lines: ± standard deviation over seeds"
    return dot_plot(rows, list(summary.columns.values()), f"{METRICS[metric]} by set", x_label)


def _set(summary: Summary, name: str, results: Path) -> dict[str, Any]:
    recipe, columns = summary.recipe, list(summary.columns.values())
    entries = (entry for entry in recipe.data for own in entry.names.values() if name in recipe.protocol.test_sets(own))
    cue, note = summary.trivial(name), next(entries).note
    notes = "; ".join([note] * bool(note) + ([f"trivial AUROC {cue[1]:.2f}, by {cue[0]}"] if cue else []))
    artifacts = _artifacts(summary, name, results)
    charts: list[Figure] = []
    histograms: list[tuple[str, dict[str, Any]]] = []
    galleries: list[tuple[str, list[dict[str, str]]]] = []
    if artifacts:
        label = summary.columns.get(recipe.compared_with, "")
        label = label if label in artifacts else next(iter(artifacts))
        scores, labels = artifacts[label].scores, artifacts[label].labels
        histograms.append((f"Scores: {label}, one seed", histogram(scores[~labels], scores[labels], {})))
        lines = {method: roc_curve(one) for method, one in artifacts.items() if len(set(one.labels)) == 2}
        if lines:
            axes = "good images rejected", "bad images found"
            charts.append(curves(lines, "ROC, one seed", *axes, (0.0, 1.0), columns))
        galleries = _galleries(artifacts[label], label)
    rows = {column: own[0] for label, column in summary.columns.items() if (own := summary.rows_of(label, name))}
    shares = [row["trusted"]["share"] for row in rows.values() if row.get("trusted")]
    kinds = [kind_table(summary, name, metric) for metric in KIND_METRICS]
    compared, strips = _strips(artifacts)
    return {
        "name": name,
        "anchor": "set-" + re.sub(r"[^a-z0-9]+", "-", name.casefold()),
        "notes": notes and f"{notes[0].upper()}{notes[1:]}.",
        "charts": charts,
        "histograms": histograms,
        "epochs": charts_over_epochs(rows, recipe.metrics, columns),
        "followed": any("followed" in row for row in rows.values()),
        "planted": shares[0] if shares else None,
        "kinds": [kind for kind in kinds if kind[1]],
        "compared": compared,
        "strips": strips,
        "galleries": galleries,
        "scaled": bool(artifacts) and _scale(artifacts[label]) is not None,
    }


def _artifacts(summary: Summary, set_name: str, results: Path) -> dict[str, Artifacts]:
    """By the name of a method's column, of the first seed that left any."""
    found: dict[str, Artifacts] = {}
    for label, column in summary.columns.items():
        for row in summary.rows_of(label, set_name):
            try:
                found[column] = load_artifacts(job_folder(results, row["key"]) / EVIDENCE)
                break
            except DataError:  # measured on another machine: its figures stand, its pictures are there
                continue
    return found


def roc_curve(one: Artifacts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of good images rejected and of bad ones found, threshold by threshold, highest first."""
    thresholds = np.append(np.inf, np.unique(one.scores)[::-1])[:, None]
    good, bad = one.scores[~one.labels], one.scores[one.labels]
    return (good >= thresholds).mean(axis=1), (bad >= thresholds).mean(axis=1)


def charts_over_epochs(rows: Mapping[str, Row], metrics: Sequence[str], order: Sequence[str]) -> list[Figure]:
    """Figures, losses, trusted images and energies of one set, from a row for each method's name.

    ``order`` has all names, for their colours.
    """

    def chart(lines: Mapping[str, pd.Series], title: str, y_label: str, order: Sequence[str] = ()) -> None:
        points = {name: line.astype(float).dropna() for name, line in lines.items()}
        drawn = {name: (line.index, line) for name, line in points.items() if len(line) > 1}
        if drawn:
            charts.append(curves(drawn, title, "epoch", y_label, order=order))

    charts: list[Figure] = []
    followed, logged, shares = {}, {}, {}
    for name, row in rows.items():
        if "followed" in row:
            followed[name] = pd.DataFrame(row["followed"]).set_index("epoch")
        for training in row.get("curves", {}).values():  # the model itself learns after any folds
            logged[name] = pd.DataFrame(training).rename(index=lambda i: i + 1)
        if row.get("trusted"):
            trusted = pd.DataFrame(row["trusted"]).set_index("epoch")
            shares[name] = trusted["bad"] / trusted["images"]
    for metric in metrics:
        chart({name: f[metric] for name, f in followed.items() if metric in f}, METRICS[metric], "", order)
    chart({name: f["loss"] for name, f in logged.items() if "loss" in f}, "Loss", "mean of an epoch", order)
    chart(shares, "Bad among the images taken for good", "share", order)
    for name, f in logged.items():
        energies = f.filter(regex=f"^{ENERGY}")  # small beside the losses
        named = energies.rename(columns=lambda value: value.removeprefix(ENERGY))
        chart(dict(named.items()), f"{name}: energies", "mean of an epoch")
        others = f.drop(columns=["loss", COUNTED, *energies], errors="ignore")
        chart(dict(others.items()), f"{name}: what else it tells", "mean of an epoch")
    return charts


def _strips(artifacts: Mapping[str, Artifacts]) -> tuple[str, list[dict[str, str]]]:
    """The same bad images under the maps of every method, each in its own colours; the methods' names come first."""
    able = {label: one for label, one in artifacts.items() if one.pictures["example"] and one.good_peaks.size}
    names = [[shown.name for shown in one.pictures["example"]] for one in able.values()]
    able = {label: one for (label, one), own in zip(able.items(), names) if own == names[0]}
    if len(able) < 2:
        return "", []
    scales = [_scale(one) for one in able.values()]
    strips = []
    for shown in zip(*(one.pictures["example"] for one in able.values())):
        panels = [_panel(shown[0], scales[0], map_shown=False), *map(_panel, shown, scales)]
        strips.append(picture(_beside(panels), shown[0].kind, shown[0].name, lossy=True))
    return ", ".join(able), strips


def _galleries(one: Artifacts, label: str) -> list[tuple[str, list[dict[str, str]]]]:
    """What the model got most wrong."""
    scale, good, bad = _scale(one), one.scores[~one.labels], one.scores[one.labels]
    galleries = []
    for title, images, others, sign, what in (
        ("Bad images, lowest scores", one.pictures["miss"], good, 1, "good images score higher"),
        ("Good images, highest scores", one.pictures["alarm"], bad, -1, "bad images score lower"),
    ):
        figures = []
        for shown in images:
            share = f"{(sign * others > sign * shown.score).mean():.0%} of {what}" if others.size else ""
            panels = [_panel(shown, scale, map_shown) for map_shown in ([False, True] if scale else [False])]
            caption = f"score {shown.score:.4g}; {share}; {shown.name}"
            figures.append(picture(_beside(panels), shown.kind, caption, lossy=True))
        galleries.append((f"{title}: {label}", figures))
    return galleries


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


def _beside(panels: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = panels[0].size
    whole = Image.new("RGB", (len(panels) * (width + 4) - 4, height), "white")
    for i, panel in enumerate(panels):
        whole.paste(panel, (i * (width + 4), 0))
    return whole
