"""Charts as SVG text: histograms of scores and curves, in colours that colour-blind eyes tell apart.

Good is blue, bad is orange, everywhere; the outline and the position say it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOOD, BAD, INK, SOFT, LINE = "#2f6690", "#d97706", "#1c2430", "#5b6675", "#d9dee5"
SERIES = ("#2f6690", "#d97706", "#4d7c0f", "#9333ea", "#be123c", "#0e7490", "#78716c", "#ca8a04")
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 44


def score_histogram(good: ArrayLike, bad: ArrayLike, marks: Mapping[str, float], title: str) -> str:
    """Scores of good images above the axis and of bad ones below it, with named vertical lines such as a threshold."""
    good_scores, bad_scores = np.asarray(good, float), np.asarray(bad, float)
    everything = np.concatenate([good_scores, bad_scores, np.array(list(marks.values()), float)])
    low, high = _span(everything)
    edges = np.linspace(low, high, 37)
    up, down = np.histogram(good_scores, edges)[0], np.histogram(bad_scores, edges)[0]
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    tallest = max(up.max(initial=1), down.max(initial=1))
    unit = (middle - TOP) / tallest
    parts = [_text(LEFT, 18, title, INK, 14, weight="600")]
    for counts, colour, sign in ((up, GOOD, -1), (down, BAD, 1)):
        for i, count in enumerate(counts):
            if count:
                x0, x1 = _x(edges[i], low, high), _x(edges[i + 1], low, high)
                y = middle + (sign < 0) * -count * unit
                parts.append(
                    f"<rect x='{x0 + 0.5:.1f}' y='{y:.1f}' width='{x1 - x0 - 1:.1f}' height='{count * unit:.1f}' "
                    f"fill='{colour}'/>"
                )
    parts.append(_line(LEFT, middle, WIDTH - RIGHT, middle, SOFT))
    parts.append(_text(LEFT - 6, middle - 8, "good", GOOD, 12, "end"))
    parts.append(_text(LEFT - 6, middle + 17, "bad", BAD, 12, "end"))
    for i, (name, value) in enumerate(marks.items()):
        x = _x(value, low, high)
        parts.append(_line(x, TOP, x, HEIGHT - BOTTOM, INK, dash="4 3"))
        anchor = "end" if x > WIDTH * 0.7 else "start"
        parts.append(_text(x + (-5 if anchor == "end" else 5), TOP + 11 + 14 * i, name, INK, 12, anchor))
    parts += _x_axis(low, high, "score")
    return _svg(parts, title)


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    order: Sequence[str] = (),
) -> str:
    """Named lines over common axes: ROC curves, losses, metrics over epochs.

    A line's place in ``order``, where it has one, gives its colour, so that it keeps it from chart to chart.
    """
    places = {name: order.index(name) if name in order else i for i, name in enumerate(series)}
    points = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    low, high = _span(np.concatenate([x for x, _ in points.values()]))
    floor, ceiling = y_range or _span(np.concatenate([y for _, y in points.values()]))
    bottom = HEIGHT - BOTTOM

    def at(x: float, y: float) -> str:
        return f"{_x(x, low, high):.1f},{bottom - (y - floor) / (ceiling - floor) * (bottom - TOP):.1f}"

    parts = [_text(LEFT, 18, title, INK, 14, weight="600")]
    for tick in _ticks(floor, ceiling):
        y = bottom - (tick - floor) / (ceiling - floor) * (bottom - TOP)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, LINE), _text(LEFT - 6, y + 4, _number(tick), SOFT, 11, "end")]
    for name, (xs, ys) in points.items():
        colour, dashes = SERIES[places[name] % len(SERIES)], _dashes(places[name])
        finite = np.isfinite(ys)
        line = " ".join(at(a, b) for a, b in zip(xs[finite], ys[finite]))
        dash = f" stroke-dasharray='{dashes}'" if dashes else ""
        parts.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'{dash}/>")
    legend, height = _legend(places)
    parts += [*legend, *_x_axis(low, high, x_label), _text(LEFT, TOP - 4, y_label, SOFT, 11)]
    return _svg(parts, title, height=height)


def _legend(places: Mapping[str, int]) -> tuple[list[str], float]:
    """The lines' names under the chart, where no line can run through them, and the height of the whole.

    Args:
        places: of their colours, by name.
    """
    parts: list[str] = []
    x, y = float(LEFT), float(HEIGHT + 10)
    for name, place in places.items():
        width = 34 + 6.8 * len(name)
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + 18
        colour = SERIES[place % len(SERIES)]
        parts += [_line(x, y - 4, x + 16, y - 4, colour, _dashes(place)), _text(x + 21, y, name, colour, 12)]
        x += width
    return parts, y + 10


def _dashes(place: int) -> str:
    """Of a line: the fifth and later ones are dashed, so that they differ in more than colour."""
    return "" if place < 4 else "5 3"


Dot = tuple[float, float]
"""A value and its standard deviation (0 for none)."""


def dot_plot(rows: Mapping[str, Mapping[str, Dot]], series: Sequence[str], title: str, x_label: str) -> str:
    """Named rows of dots, one colour and shape for each series, with the spread as a line through the dot.

    Args:
        rows: row's name, series' name, its dot; a series may be absent from a row.
        series: all names, so that one keeps its colour from chart to chart.
        title: above all.
        x_label: under the axis.
    """
    ends = [value + sign * spread for dots in rows.values() for value, spread in dots.values() for sign in (-1, 1)]
    low, high = _span(np.array(ends))
    reach = 0.03 * (high - low) if min(ends, default=0) < max(ends, default=0) else -0.48  # no dot on the edge
    low, high = low - reach, high + reach
    left, step = 36 + 7 * max(map(len, rows), default=0), 16 + 8 * len(series)
    top = 44 + 16 * len(series)
    width, height = 760, top + step * len(rows) + BOTTOM

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 24)

    parts = [_text(12, 20, title, INK, 14, weight="600")]
    for i, name in enumerate(series):
        parts += [_mark(i, left + 4, 36 + 16 * i), _text(left + 16, 40 + 16 * i, name, INK, 12)]
    for tick in _ticks(low, high):
        parts += [_line(at(tick), top, at(tick), height - BOTTOM, LINE)]
        parts.append(_text(at(tick), height - BOTTOM + 16, _number(tick), SOFT, 11, "middle"))
    for row, (name, dots) in enumerate(rows.items()):
        above = top + step * row
        parts.append(_line(12, above, width - 12, above, LINE))
        parts.append(_text(left - 12, above + step / 2 + 4, name, INK, 12.5, "end"))
        for i, label in enumerate(series):
            if label in dots:
                value, spread = dots[label]
                y = above + 12 + 8 * i
                parts.append(_line(at(value - spread), y, at(value + spread), y, SERIES[i % len(SERIES)]))
                parts.append(_mark(i, at(value), y))
    parts.append(_line(left, height - BOTTOM, width - 24, height - BOTTOM, SOFT))
    parts.append(_text((left + width - 24) / 2, height - 10, x_label, SOFT, 12, "middle"))
    return _svg(parts, title, width, height)


def _mark(series: int, x: float, y: float) -> str:
    """A dot, square or diamond: series differ in shape as well as in colour."""
    colour = SERIES[series % len(SERIES)]
    if series % 3 == 0:
        return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>"
    turn = f" transform='rotate(45 {x:.1f} {y:.1f})'" if series % 3 == 2 else ""
    return f"<rect x='{x - 3.5:.1f}' y='{y - 3.5:.1f}' width='7' height='7' fill='{colour}'{turn}/>"


def _svg(parts: Sequence[str], title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' "
        f"role='img' aria-label='{escape(title, quote=True)}' font-family='system-ui, sans-serif'>"
        + "".join(parts)
        + "</svg>"
    )


def _x_axis(low: float, high: float, label: str) -> list[str]:
    y = HEIGHT - BOTTOM
    parts = [_line(LEFT, y, WIDTH - RIGHT, y, SOFT)]
    for tick in _ticks(low, high):
        x = _x(tick, low, high)
        parts += [_line(x, y, x, y + 4, SOFT), _text(x, y + 17, _number(tick), SOFT, 11, "middle")]
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, label, SOFT, 12, "middle")]


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers in the range."""
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 8), 10)
    return [float(t) for t in np.arange(np.ceil(low / step) * step, high + step / 1e6, step)]


def _number(value: float) -> str:
    return f"{value:.6g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.0e}"


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, dash: str = "") -> str:
    style = f" stroke-dasharray='{dash}'" if dash else ""
    return f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='{colour}'{style}/>"


def _text(
    x: float, y: float, text: str, colour: str, size: float, anchor: str = "start", weight: str = "400"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' font-size='{size}' text-anchor='{anchor}' "
        f"font-weight='{weight}'>{escape(text)}</text>"
    )
