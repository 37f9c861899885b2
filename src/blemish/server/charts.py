"""Charts of the pages as numbers: templates draw them as SVG with attributes alone, which the page's policy allows."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from blemish.inspection.calibration import Calibration

WIDTH, HEIGHT, BINS = 960, 260, 64  # of a histogram
LONG, TALL = 520, 180  # of a control chart
MARKS = 200  # labelled verdicts that a histogram marks one by one


def _span(calibration: Calibration) -> tuple[float, float] | None:
    """From where to where scores are worth drawing: good parts, the threshold, and as far again; None without one."""
    if calibration.threshold is None or not math.isfinite(calibration.threshold):
        return None
    low, middle = float(calibration.scores[0]), float(np.median(calibration.scores))
    high = max(float(calibration.scores[-1]), calibration.threshold)
    width = max(high - middle, 1e-9 * abs(high), 1e-12)
    return low - 0.15 * width, high + 1.5 * width


def gauge(score: float | None, calibration: Calibration | None) -> dict[str, float] | None:
    """Where a score (None is worse than any) and the limits lie on the model's scale, in percent of its length."""
    if calibration is None or (ends := _span(calibration)) is None:
        return None
    reject = calibration.threshold or 0.0
    review = reject if calibration.review_threshold is None else calibration.review_threshold
    values = {"score": math.inf if score is None else score, "review": review, "reject": reject}
    places = {name: (value - ends[0]) / (ends[1] - ends[0]) for name, value in values.items()}
    return {name: round(100 * min(1.0, max(0.0, at)), 2) for name, at in places.items()}


def histogram(
    calibration: Calibration, past: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Scores of good parts above the axis, of what was judged below it; None without a threshold.

    ``past`` have a score each and what a person said, which is marked; ``limits`` a threshold and a review threshold.
    What lies beyond the right end is counted in the last bar.
    """
    if (ends := _span(calibration)) is None:
        return None
    known = [one["score"] for one in past if one["score"] is not None]
    names = {"review above": limits["review_threshold"], "reject above": limits["threshold"]}
    drawn = {name: value for name, value in names.items() if value is not None and math.isfinite(value)}
    low = min(ends[0], float(np.quantile(known, 0.02)) if known else ends[0])
    high = max([ends[1], *drawn.values()])

    def x(value: float | None) -> float:
        share = 1.0 if value is None else (value - low) / (high - low)
        return round(WIDTH * min(1.0, max(0.0, share)), 1)

    bars, axis = [], HEIGHT // 2
    sides = {"good": calibration.scores.tolist(), "judged": [*known, *[high] * (len(past) - len(known))]}
    for side, scores in sides.items():
        counts, _ = np.histogram(np.clip(scores, low, high), np.linspace(low, high, BINS + 1))
        heights = np.sqrt(counts / max(1, counts.max())) * (axis - 30)  # roots: one stray part stays visible
        for i in np.flatnonzero(counts).tolist():
            height = round(max(2.0, float(heights[i])), 1)
            top = axis - height - 1 if side == "good" else axis + 1
            bars.append({"side": side, "x": round(WIDTH * i / BINS + 1, 1), "y": round(top, 1), "height": height})
    return {
        "bars": bars,
        "bar": WIDTH / BINS - 2,
        "said": [{"x": x(one["score"]), "said": one["said"]} for one in past if one["said"]][:MARKS],
        "lines": [{"name": name, "x": x(value)} for name, value in drawn.items()],
        "ticks": [{"x": x(at), "text": f"{at:g}"} for at in _ticks(low, high, 8) if 20 < x(at) < WIDTH - 20],
        "counted": {side: len(scores) for side, scores in sides.items()},
    }


def control_chart(chart: Mapping[str, Any]) -> dict[str, Any] | None:
    """``points`` over time, oldest first as (ISO 8601, value, number), with the limits they keep; None without any."""
    if not chart["points"]:
        return None
    times = [datetime.fromisoformat(at).timestamp() for at, *_ in chart["points"]]
    values = [value for _, value, _ in chart["points"]]
    limits = {name: chart[name] for name in ("high", "centre", "low")}
    drawn = {name: value for name, value in limits.items() if value is not None and math.isfinite(value)}
    bottom, top = min([*values, *drawn.values()]), max([*values, *drawn.values()])
    margin = 0.08 * (top - bottom) or 1e-6 + 0.05 * abs(top)
    bottom, top, began, lasted = bottom - margin, top + margin, times[0], max(times[-1] - times[0], 1)

    def y(value: float) -> float:
        return round(float(TALL * (top - value) / (top - bottom)), 1)

    out = [not drawn.get("low", -math.inf) <= value <= drawn.get("high", math.inf) for value in values]
    ticks = [datetime.fromtimestamp(began + share * lasted).astimezone() for share in (0, 1 / 3, 2 / 3, 1)]
    form = "%d %b %H:%M" if ticks[0].date() != ticks[-1].date() else "%H:%M" if lasted > 300 else "%H:%M:%S"
    return {
        "points": [
            {"x": round(LONG * (at - began) / lasted, 1), "y": y(value), "out": is_out}
            for at, value, is_out in zip(times, values, out)
        ],
        "lines": {name: y(value) for name, value in drawn.items()},
        "ticks": [{"x": round(LONG * i / 3), "text": tick.strftime(form)} for i, tick in enumerate(ticks)],
        "zone": ticks[-1].strftime("%Z"),
        "sides": [{"y": y(value), "text": f"{value:.7g}"} for value in _ticks(bottom, top, 4)],
        "out": sum(out),
        "each": chart["each"],
        "last": values[-1],
    }


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
