"""How long a job will take: the median of the most similar rows of the ledger.

This module imports neither torch nor anything that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from blemish.bench.ledger import Row

SIMILAR: tuple[tuple[str, ...], ...] = (
    ("method", "options", "backbone", "size", "resize", "set", "category", "alt_split"),
    ("method", "backbone", "size", "set", "category"),
    ("method", "backbone", "size"),
    ("method",),
)
"""What two configurations share to count as similar, closest first."""


@dataclass(frozen=True)
class Estimate:
    """Seconds that a job will take, and the number of rows that say so."""

    seconds: float
    rows: int


def estimate(configuration: Mapping[str, Any], rows: Iterable[Row]) -> Estimate | None:
    """The median seconds of the most similar finished rows; None where there is none of the method."""
    finished = [row for row in rows if row["status"] == "done" and "total" in row.get("seconds", {})]
    for names in SIMILAR:
        wanted = [configuration.get(name) for name in names]
        seconds = [
            float(row["seconds"]["total"])
            for row in finished
            if [row.get("configuration", {}).get(name) for name in names] == wanted
        ]
        if seconds:
            return Estimate(median(seconds), len(seconds))
    return None


def time_left(estimates: Sequence[float | None], at_once: int) -> float | None:
    """Seconds until all jobs are done, ``at_once`` of them at a time; None where nothing is known.

    A job without an estimate counts as the mean of the others.
    """
    known = [seconds for seconds in estimates if seconds is not None]
    if not known:
        return None if estimates else 0.0
    total = sum(known) / len(known) * len(estimates)
    return max(total / at_once, *known)


def spoken(seconds: float | None) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
