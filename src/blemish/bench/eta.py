"""How long jobs will take: the median of the most similar rows of the ledger."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, NamedTuple

from blemish.bench.jobs import Missing, Plan
from blemish.bench.ledger import Row

SIMILAR: tuple[tuple[str, ...], ...] = (
    ("method", "options", "backbone", "size", "resize", "set", "category", "alt_split"),
    ("method", "backbone", "size", "set", "category"),
    ("method", "backbone", "size"),
    ("method",),
)
"""What two configurations share to count as similar, closest first."""


class Estimate(NamedTuple):
    """Seconds that a job will take, and the number of rows that say so."""

    seconds: float
    rows: int


class Estimates:
    """Estimates from the finished rows of a ledger."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._similar: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            for names in SIMILAR if row["status"] == "done" and is_timed(row) else ():
                self._similar[_shared(row["configuration"], names)].append(row)

    def of(self, configuration: Mapping[str, Any]) -> Estimate | None:
        """The median seconds of the most similar rows; None where there is none of the method.

        A row's training is taken as long or short as the asked one's, where both count in epochs or both in steps.
        """
        rows = next(filter(None, (self._similar.get(_shared(configuration, names)) for names in SIMILAR)), None)
        if rows is None:
            return None
        extra = (_longer(row, configuration) * row["seconds"].get("fit", 0) for row in rows)
        return Estimate(float(median(row["seconds"]["total"] + more for row, more in zip(rows, extra))), len(rows))


def is_timed(row: Row) -> bool:
    """Whether a row's seconds are those of the whole job: not if it was killed and went on."""
    return "total" in row.get("seconds", {}) and not row.get("resumed", False)


def time_left(guesses: Sequence[float | None], workers: int, typical: float | None = None) -> float | None:
    """Seconds until jobs are done, ``workers`` at a time; None where nothing is known.

    A job without a guess counts as ``typical``, what jobs took so far, else as the mean of the others.
    """
    known = [guess for guess in guesses if guess is not None]
    typical = fmean(known) if typical is None and known else typical
    if typical is None:
        return None if guesses else 0.0
    seconds = [typical if guess is None else guess for guess in guesses]
    return max([sum(seconds) / workers, *seconds])  # the longest job cannot be split


def spoken(seconds: float | None) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class DryRun:
    """What a bench would do.

    Attributes:
        jobs: the title of each experiment, whether its row stands, and the time it will take, where that is known.
        missing: what this machine lacks.
        workers: jobs at a time.
        seconds: until all are done; None where nothing is known.
    """

    jobs: tuple[tuple[str, bool, Estimate | None], ...]
    missing: tuple[Missing, ...]
    workers: int
    seconds: float | None

    @staticmethod
    def of(plan: Plan, rows: Sequence[Row], workers: int, afresh: bool = False) -> DryRun:
        """What would be done with these rows in the ledger."""
        done = {row["key"] for row in rows if row["status"] == "done" and not afresh}
        known, jobs, trainings = Estimates(rows), [], []
        for job in plan.jobs:
            waiting = [e for e in job.experiments if e.key not in done]
            guesses = {e.key: known.of(e.configuration) for e in waiting}
            jobs += [(e.title, e.key in done, guesses.get(e.key)) for e in job.experiments]
            if waiting:  # one training serves all of them
                trainings.append(max((guess.seconds for guess in guesses.values() if guess), default=None))
        return DryRun(tuple(jobs), plan.missing, workers, time_left(trainings, workers))

    @property
    def to_run(self) -> int:
        """How many experiments still have to run."""
        return sum(not stands for _, stands, _ in self.jobs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        jobs = [{"job": title, "stands": stands, "seconds": e.seconds if e else None} for title, stands, e in self.jobs]
        absent = [{"what": missing.what, "reason": missing.reason} for missing in self.missing]
        return {"jobs": jobs, "absent": absent, "to_run": self.to_run, "seconds": self.seconds}

    def as_text(self) -> str:
        """A line for each experiment, and the sum."""
        lines = []
        for title, stands, estimate in self.jobs:
            state = "stands in the ledger" if stands else "time unknown"
            if estimate is not None:
                basis = f"median of {estimate.rows} rows" if estimate.rows > 1 else "one row"
                state = f"about {spoken(estimate.seconds)} ({basis})"
            lines.append(f"{title}: {state}")
        lines += [f"absent: {missing.what}: {missing.reason}" for missing in self.missing]
        return "\n".join([*lines, f"{self.to_run} jobs to run, {self.workers} at a time: {spoken(self.seconds)}"])


def _shared(configuration: Mapping[str, Any], names: Sequence[str]) -> str:
    return json.dumps([(name, configuration.get(name)) for name in names], sort_keys=True)


def _longer(row: Row, configuration: Mapping[str, Any]) -> float:
    """By how many of its own length a row's training is shorter than the asked one; 0 where they do not compare."""
    had, asked = row["configuration"].get("options", {}), configuration.get("options", {})
    for unit in ("steps", "epochs"):  # epochs hold where no steps are given
        if had.get(unit) or asked.get(unit):
            return float(asked[unit] / had[unit] - 1) if had.get(unit) and asked.get(unit) else 0.0
    return 0.0
