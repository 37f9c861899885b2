"""Charts of the pages as numbers: templates draw them as SVG with attributes alone, which the page's policy allows."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

WIDTH, HEIGHT, BINS = 960, 260, 64
MARKS = 200  # labelled verdicts that a histogram marks one by one


def span(calibration: Any) -> tuple[float, float] | None:
    """From where to where scores are worth drawing: good parts, the threshold, and as far again; None without one."""
    if calibration.threshold is None or not math.isfinite(calibration.threshold):
        return None
    low, middle = float(calibration.scores[0]), float(np.median(calibration.scores))
    high = max(float(calibration.scores[-1]), calibration.threshold)
    width = max(high - middle, 1e-9 * abs(high), 1e-12)
    return low - 0.15 * width, high + 1.5 * width


def gauge(score: float | None, calibration: Any) -> dict[str, float] | None:
    """Where a score and the limits lie between the ends of ``span``, as shares of its width."""
    if (ends := span(calibration)) is None:
        return None
    limit = calibration.threshold if calibration.review_threshold is None else calibration.review_threshold

    def at(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - ends[0]) / (ends[1] - ends[0]))), 2)

    return {"score": at(math.inf if score is None else score), "review": at(limit), "reject": at(calibration.threshold)}


def histogram(
    calibration: Any, past: Sequence[tuple[float | None, str | None]], limits: Mapping[str, float | None]
) -> dict[str, Any] | None:
    """Scores of good parts above the axis, of what was judged below it, what people said as marks; None without scores.

    ``past`` are scores with what was said of them, ``limits`` name vertical lines. What lies beyond the right end is
    counted in the last bar.
    """
    if (ends := span(calibration)) is None:
        return None
    low, high = ends
    high = max([high, *(value for value in limits.values() if value is not None and math.isfinite(value))])
    edges, axis = np.linspace(low, high, BINS + 1), HEIGHT / 2

    def x(value: float | None) -> float:
        return round(WIDTH * min(1.0, max(0.0, ((high if value is None else value) - low) / (high - low))), 1)

    bars = []
    sides = {"good": calibration.scores, "judged": [high if score is None else score for score, _ in past]}
    for side, scores in sides.items():
        counts, _ = np.histogram(np.clip(scores, low, high), edges)
        tall = np.sqrt(counts / max(1, counts.max())) * (axis - 30)  # roots: a single stray part stays visible
        for i in np.flatnonzero(counts):
            height = round(float(max(2.0, tall[i])), 1)
            top = round(axis - height - 1, 1) if side == "good" else axis + 1
            bars.append({"side": side, "x": round(WIDTH * int(i) / BINS + 1, 1), "y": top, "height": height})
    said = [{"x": x(score), "said": word} for score, word in past if word is not None][:MARKS]
    lines = [{"name": name, "x": x(value)} for name, value in limits.items() if value is not None]
    at = nice_ticks(low, high)
    ticks = [{"x": x(value), "text": f"{value:g}"} for value in at if 0.02 < (value - low) / (high - low) < 0.98]
    counted = {side: len(scores) for side, scores in sides.items()}
    return {"bars": bars, "bar": WIDTH / BINS - 2, "said": said, "lines": lines, "ticks": ticks, "counted": counted}


def control_chart(points: Sequence[Sequence[float]], centre: float | None, low: float | None, high: float | None) -> Any:
    """Values over time, oldest first as (seconds since 1970, value), with the limits they should keep; None if empty."""
    if not points:
        return None
    times, values = zip(*points)
    # Limits are drawn where they are within reach of the values: one far away would flatten them to a line.
    shown = [value for value in (low, high, centre) if value is not None and math.isfinite(value)]
    bottom, top = min([*values, *shown]), max([*values, *shown])
    margin = 0.08 * (top - bottom) or 1e-6 + 0.05 * abs(top)
    bottom, top = bottom - margin, top + margin
    began, ended = times[0], max(times[-1], times[0] + 1)

    def y(value: float) -> float:
        return round(HEIGHT * (top - value) / (top - bottom), 1)

    def x(at: float) -> float:
        return round(WIDTH * (at - began) / (ended - began), 1)

    def is_out(value: float) -> bool:
        return (low is not None and value < low) or (high is not None and value > high)

    local = [datetime.fromtimestamp(began + share * (ended - began)).astimezone() for share in (0, 0.25, 0.5, 0.75, 1)]
    form = "%d %b %H:%M" if local[0].date() != local[-1].date() else "%H:%M" if ended - began > 300 else "%H:%M:%S"
    return {
        "points": [{"x": x(at), "y": y(value), "out": is_out(value)} for at, value in points],
        "lines": {
            name: y(value) for name, value in {"high": high, "centre": centre, "low": low}.items() if value is not None
        },
        "ticks": [{"x": WIDTH * i / 4, "text": time.strftime(form)} for i, time in enumerate(local)],
        "zone": local[-1].strftime("%Z"),
        "sides": [{"y": y(value), "text": f"{value:.4g}"} for value in nice_ticks(bottom, top, 4)],
        "out": sum(is_out(value) for value in values),
        "last": values[-1],
    }


def nice_ticks(low: float, high: float, about: int = 7) -> list[float]:
    """Round numbers between two, ``about`` so many."""
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= about)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
