"""How long a job will take: the median of the most similar rows of the ledger.

This module imports neither torch nor anything that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """The median seconds of the most similar finished rows; None where there is none of the method.

    A row's training is taken as long or short as the wanted one's, where both count in epochs or both in steps.
    """
    finished = [row for row in rows if row["status"] == "done" and is_timed(row)]
    for names in SIMILAR:
        wanted = [configuration.get(name) for name in names]
        seconds = [
            float(row["seconds"]["total"]) + _longer(row, configuration) * float(row["seconds"].get("fit", 0))
            for row in finished
            if [row.get("configuration", {}).get(name) for name in names] == wanted
        ]
        if seconds:
            return Estimate(median(seconds), len(seconds))
    return None


def _longer(row: Row, configuration: Mapping[str, Any]) -> float:
    """By how many of its own length a row's training is shorter than the wanted one; 0 where lengths do not compare."""
    had, wanted = row["configuration"].get("options", {}), configuration.get("options", {})
    for unit in ("steps", "epochs"):  # epochs hold where no steps are given
        if had.get(unit) or wanted.get(unit):
            return wanted[unit] / had[unit] - 1 if had.get(unit) and wanted.get(unit) else 0.0
    return 0.0


def is_timed(row: Row) -> bool:
    """Whether a row's seconds are those of the whole job: not if it was killed and went on."""
    return "total" in row.get("seconds", {}) and not row.get("resumed", False)


class Forecast:
    """Time left of many jobs: estimates, corrected by what the finished ones really took."""

    def __init__(self, guesses: Mapping[str, float | None]) -> None:
        """Take the estimate of each job by its key; None where nothing is known."""
        self._guesses = dict(guesses)
        self._taken: list[float] = []
        self._foretold: list[tuple[float, float]] = []

    def finish(self, key: str, seconds: float) -> None:
        """A job is done and took so long."""
        guess = self._guesses.pop(key, None)
        self._taken.append(seconds)
        if guess is not None:
            self._foretold.append((guess, seconds))

    def left(self, at_once: int) -> float | None:
        """Seconds until all are done, ``at_once`` at a time; None where nothing is known.

        A job without an estimate counts as the mean of what was finished, else of the others.
        """
        if not self._guesses:
            return 0.0
        foretold = sum(guess for guess, _ in self._foretold)
        pace = sum(taken for _, taken in self._foretold) / foretold if foretold else 1.0
        known = [pace * guess for guess in self._guesses.values() if guess is not None]
        typical = self._taken or known
        if not typical:
            return None
        unknown = (len(self._guesses) - len(known)) * sum(typical) / len(typical)
        return max([(sum(known) + unknown) / at_once, *(known or [min(typical)])])


def spoken(seconds: float | None) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
