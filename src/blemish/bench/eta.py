"""How long jobs will take: the median of the most similar rows of the ledger."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from blemish.bench.jobs import Job
from blemish.bench.ledger import Row

COMPARED = ("options", "backbone", "size", "resize", "set", "category", "alt_split")
"""What makes rows of one method similar: the more of it they share, the closer."""


def estimate(rows: Sequence[Row], configuration: Mapping[str, Any]) -> tuple[float, int] | None:
    """The median seconds of the most similar rows, and their number; None where there is none of the method.

    A row's training is taken as long or short as the asked one's, where both count in epochs or both in steps.
    """
    similar: dict[int, list[float]] = {}
    for row in rows:
        own = row.get("configuration", {})
        if row["status"] == "done" and is_timed(row) and own.get("method") == configuration["method"]:
            had, asked, extra = own.get("options", {}), configuration.get("options", {}), 0.0
            unit = "steps" if had.get("steps") or asked.get("steps") else "epochs"  # epochs hold where no steps are
            if had.get(unit) and asked.get(unit):
                extra = row["seconds"].get("fit", 0) * (asked[unit] / had[unit] - 1)
            shared = sum(own.get(name) == configuration.get(name) for name in COMPARED)
            similar.setdefault(shared, []).append(row["seconds"]["total"] + extra)
    if not similar:
        return None
    closest = similar[max(similar)]
    return median(closest), len(closest)


def is_timed(row: Row) -> bool:
    """Whether a row's seconds are those of the whole job: not if it was killed and went on."""
    return "total" in row.get("seconds", {}) and not row.get("resumed", False)


def time_left(guesses: Sequence[float | None], workers: int) -> float | None:
    """Seconds until jobs are done, ``workers`` at a time; a job without a guess counts as the mean of the others."""
    known = [guess for guess in guesses if guess is not None]
    if not known:
        return None if guesses else 0.0
    return max(fmean(known) * len(guesses) / workers, *known, 0)  # the longest job cannot be split


def spoken(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def dry_run(
    jobs: Sequence[Job], missing: Mapping[str, str], rows: Sequence[Row], workers: int, afresh: bool = False
) -> tuple[dict[str, Any], str]:
    """What a bench would do with these rows in the ledger: as JSON values, and as text."""
    done = {row["key"] for row in rows if row["status"] == "done" and not afresh}
    listed, lines, trainings = [], [], []
    for job in jobs:
        guesses = []
        for experiment in job.experiments:
            stands = experiment.key in done
            guess = None if stands else estimate(rows, experiment.configuration)
            guesses += [] if guess is None else [guess[0]]
            listed.append({"job": experiment.title, "stands": stands, "seconds": guess and guess[0]})
            state = "stands in the ledger" if stands else "time unknown"
            if guess is not None:
                basis = f"median of {guess[1]} rows" if guess[1] > 1 else "one row"
                state = f"about {spoken(guess[0])} ({basis})"
            lines.append(f"{experiment.title}: {state}")
        if any(experiment.key not in done for experiment in job.experiments):  # one training serves all of them
            trainings.append(max(guesses, default=None))
    seconds, to_run = time_left(trainings, workers), sum(not experiment["stands"] for experiment in listed)
    absent = [{"what": what, "reason": reason} for what, reason in missing.items()]
    lines += [f"absent: {what}: {reason}" for what, reason in missing.items()]
    lines.append(f"{to_run} jobs to run, {workers} at a time: {spoken(seconds)}")
    return {"jobs": listed, "absent": absent, "to_run": to_run, "seconds": seconds}, "\n".join(lines)
