"""Charts for pages, in colours that colour-blind eyes tell apart; shape and position say it again.

Normal is blue, anomalous is orange, everywhere. Each function gives a Matplotlib figure, which ``svg`` turns into text.
"""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

LINE = "#d9dee5"
SERIES = ("#2f6690", "#d97706", "#4d7c0f", "#9333ea", "#be123c", "#0e7490", "#78716c", "#ca8a04")
MARKERS = "osD^vPX*"
STYLE = str(Path(__file__).with_name("charts.mplstyle"))
Dot = tuple[float, float]  # a value and its standard deviation (0 for none)


@style.context(STYLE)
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
    figure = Figure((5, 2.9), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=x_label == "epoch"))
    for name, (x, y) in series.items():
        points = np.array([x, y], float).T
        points = points[np.isfinite(points).all(axis=1)]
        axes.plot(*points.T, **_look(places[name]), markersize=4, markevery=max(1, len(points) // 10), label=name)
    if y_range is not None:
        axes.set_ylim(y_range[0], y_range[1] + 0.02 * (y_range[1] - y_range[0]))
    _add_legend(figure, places)
    return figure


@style.context(STYLE)
def dot_plot(rows: Mapping[str, Mapping[str, Dot]], series: Sequence[str], title: str, x_label: str) -> Figure:
    """Named rows of dots, one colour and shape for each series, with the spread as a line through the dot.

    A series may be absent from a row; its place in ``series`` gives it the same look from chart to chart.
    """
    figure = Figure((7.6, 0.9 + len(rows) * (0.15 + 0.11 * len(series))), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label)
    for i, dots in enumerate(rows.values()):
        for place, name in enumerate(series):
            if name in dots:
                value, spread = dots[name]
                y = i + (place + 1) / (len(series) + 1)
                axes.errorbar(value, y, xerr=spread or None, **_look(place), markersize=5, label=name)
    axes.set_ylim(len(rows), 0)
    names = ["\n".join(textwrap.wrap(textwrap.shorten(name, 64, placeholder=" ..."), 36)) for name in rows]
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels=names)  # a long one would leave the dots no room
    axes.hlines(np.arange(len(rows)), 0, 1, colors=LINE, linewidth=0.8, transform=axes.get_yaxis_transform())
    axes.grid(visible=False, axis="y")
    _add_legend(figure, {name: place for place, name in enumerate(series)})
    return figure


@style.context(STYLE)
def svg(figure: Figure) -> str:
    """The figure as markup to stand inside a page: text stays text, in the reader's own font."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    _, start, rest = file.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif").partition("<svg")
    title = escape(figure.axes[0].get_title(loc="left"))
    return f'{start} role="img" aria-label="{title}"' + re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)


def _look(place: int) -> dict[str, Any]:
    colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": "-" if place < 4 else "--"}


def _add_legend(figure: Figure, places: Mapping[str, int]) -> None:
    """Under the chart, where no line can run through it."""
    handles = [Line2D([], [], **_look(place), markersize=5) for place in places.values()]
    letters = figure.get_figwidth() * 10 / (max(map(len, places), default=0) + 6)
    figure.legend(handles, list(places), loc="outside lower left", ncols=max(1, int(letters)))
