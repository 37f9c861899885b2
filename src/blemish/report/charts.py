"""Charts for pages, in colours that colour-blind eyes tell apart; shape and position say it again.

Normal is blue, anomalous is orange, everywhere. Each function gives a Matplotlib figure, which ``svg`` turns into text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

NORMAL, ANOMALOUS, INK, SOFT, LINE = "#2f6690", "#d97706", "#1c2430", "#5b6675", "#d9dee5"
SERIES = ("#2f6690", "#d97706", "#4d7c0f", "#9333ea", "#be123c", "#0e7490", "#78716c", "#ca8a04")
MARKERS = "osD^vPX*"
FONT = "DejaVu Sans"
"""Travels with Matplotlib. Text is laid out with it and shown in the reader's own font, which is narrower."""
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label may hold a dollar
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "blemish",  # the same figure is the same file
}


def score_histogram(normal: ArrayLike, anomalous: ArrayLike, marks: Mapping[str, float], title: str) -> Figure:
    """Scores of normal images above the axis, anomalous ones below, with named vertical lines such as a threshold."""
    above, below = np.asarray(normal, float), np.asarray(anomalous, float)
    values = np.concatenate([above, below, np.array(list(marks.values()), float)])
    values = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(values if values.size else [0.0, 1.0], 36)
    with mpl.rc_context(STYLE):
        figure = Figure((5, 2.7), layout="constrained")
        axes = figure.add_subplot()
        tallest = 1.0
        for scores, sign, colour in ((above, 1, NORMAL), (below, -1, ANOMALOUS)):
            counts, _ = np.histogram(scores, edges)
            axes.bar(edges[:-1], sign * counts, 0.85 * np.diff(edges), align="edge", color=colour)
            tallest = max(tallest, float(counts.max()))
        axes.axhline(0, color=SOFT, linewidth=0.8)
        for i, (name, value) in enumerate(marks.items()):
            axes.axvline(value, color=INK, linewidth=1, linestyle="--")
            is_right = value > edges[0] + 0.6 * (edges[-1] - edges[0])
            axes.annotate(
                name,
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if is_right else 5, -2 - 12 * i),
                textcoords="offset points",
                ha="right" if is_right else "left",
                va="top",
            )
        axes.set_ylim(-1.08 * tallest, (1.15 + 0.25 * len(marks)) * tallest)
        axes.set_yticks([0.5 * tallest, -0.5 * tallest], labels=["good", "bad"])
        for label, colour in zip(axes.get_yticklabels(), (NORMAL, ANOMALOUS)):
            label.set_color(colour)
        axes.grid(visible=False)
        axes.set_title(title)
        axes.set_xlabel("score")
    return figure


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    order: Sequence[str] = (),
) -> Figure:
    """Named lines over common axes: ROC curves, losses, metrics over epochs.

    A line's place in ``order``, where it has one, gives its colour and marker: it keeps them from chart to chart.
    """
    places = {name: order.index(name) if name in order else i for i, name in enumerate(series)}
    with mpl.rc_context(STYLE):
        figure = Figure((5, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=x_label == "epoch"))
        for name, (x, y) in series.items():
            points = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
            points = points[np.isfinite(points).all(axis=1)]
            style = _style(places[name])
            axes.plot(*points.T, **style, linewidth=1.8, markersize=4, markevery=max(1, len(points) // 10), label=name)
        if y_range is not None:
            axes.set_ylim(y_range[0], y_range[1] + 0.02 * (y_range[1] - y_range[0]))
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _add_legend(figure, places)
    return figure


Dot = tuple[float, float]
"""A value and its standard deviation (0 for none)."""


def dot_plot(rows: Mapping[str, Mapping[str, Dot]], series: Sequence[str], title: str, x_label: str) -> Figure:
    """Named rows of dots, one colour and shape for each series, with the spread as a line through the dot.

    Args:
        rows: row's name, series' name, its dot; a series may be absent from a row.
        series: all names, so that one keeps its colour and shape from chart to chart.
        title: above all.
        x_label: under the axis.
    """
    step = 1 / (len(series) + 1)
    with mpl.rc_context(STYLE):
        figure = Figure((7.6, 0.9 + len(rows) * (0.15 + 0.11 * len(series))), layout="constrained")
        axes = figure.add_subplot()
        for i, dots in enumerate(rows.values()):
            for place, name in enumerate(series):
                if name in dots:
                    value, spread = dots[name]
                    y = i + (place + 1) * step
                    axes.errorbar(value, y, xerr=spread or None, **_style(place), markersize=5, label=name)
        axes.set_ylim(len(rows), 0)
        axes.set_yticks(np.arange(len(rows)) + 0.5, labels=list(rows))
        axes.hlines(np.arange(len(rows)), 0, 1, colors=LINE, linewidth=0.8, transform=axes.get_yaxis_transform())
        axes.grid(visible=False, axis="y")
        axes.set_title(title)
        axes.set_xlabel(x_label)
        _add_legend(figure, {name: place for place, name in enumerate(series)})
    return figure


def svg(figure: Figure) -> str:
    """The figure as markup to stand inside a page."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    title = figure.axes[0].get_title(loc="left")
    text = file.getvalue().replace(f"'{FONT}'", "system-ui, sans-serif")
    _, start, rest = text.partition("<svg")
    return f'{start} role="img" aria-label="{escape(title)}"' + re.sub(
        r"<metadata>.*?</metadata>", "", rest, flags=re.S
    )


def _style(place: int) -> dict[str, Any]:
    """Colour, marker and, from the fifth on, dashes."""
    dashes = "-" if place < 4 else "--"
    return {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)], "linestyle": dashes}


def _add_legend(figure: Figure, places: Mapping[str, int]) -> None:
    """Under the chart, where no line can run through it."""
    handles = [Line2D([], [], **_style(place), markersize=5) for place in places.values()]
    letters = figure.get_figwidth() * 10 / (max(map(len, places), default=0) + 6)
    figure.legend(handles, list(places), loc="outside lower left", ncols=max(1, int(letters)))
