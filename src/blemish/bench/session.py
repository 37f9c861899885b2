"""One call of ``blemish bench``: which jobs there are, which still have to run, and what comes of them."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.bench.estimates import Estimate, Forecast, estimate, spoken
from blemish.bench.jobs import Absent, Job, Plan, plan
from blemish.bench.ledger import FILE, Ledger, Row
from blemish.bench.orders import Order
from blemish.bench.recipe import Recipe, load_recipe
from blemish.bench.runner import Launcher, Tally, run_orders
from blemish.bench.sets import data_folder
from blemish.bench.summary import Summary, summarise
from blemish.bench.tables import made_with, markdown_table, pair_sentences, result_tables, timing_table
from blemish.errors import ConfigError, OutputError
from blemish.run import Progress


@dataclass(frozen=True)
class Prospect:
    """What a session would do.

    Attributes:
        jobs: the chosen ones, each with the time it will take; None where it stands in the ledger or nothing is known.
        waiting: keys of those that still have to run.
        absent: what is missing here.
        at_once: jobs at a time.
        seconds: until all are done; None where nothing is known.
    """

    jobs: tuple[tuple[Job, Estimate | None], ...]
    waiting: frozenset[str]
    absent: tuple[Absent, ...]
    at_once: int
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        jobs = [
            {"job": job.title, "stands": job.key not in self.waiting, "seconds": guess.seconds if guess else None}
            for job, guess in self.jobs
        ]
        absent = [{"what": one.what, "reason": one.reason} for one in self.absent]
        return {"jobs": jobs, "absent": absent, "to_run": len(self.waiting), "seconds": self.seconds}

    def as_text(self) -> str:
        """A line for each job, and the sum."""
        lines = []
        for job, guess in self.jobs:
            known = "time unknown" if guess is None else f"about {spoken(guess.seconds)} ({_rows(guess.rows)})"
            lines.append(f"{job.title}: {known if job.key in self.waiting else 'stands in the ledger'}")
        lines += [f"absent: {one.what}: {one.reason}" for one in self.absent]
        return "\n".join([*lines, f"{len(self.waiting)} jobs to run, {self.at_once} at a time: {spoken(self.seconds)}"])


@dataclass(frozen=True)
class Session:
    """A recipe, its jobs on this machine, and where their rows go.

    Attributes:
        recipe: validated.
        plan: its jobs, and what is missing.
        chosen: the jobs that ``only`` leaves.
        results: the folder of the ledger.
        afresh: run jobs though their rows stand.
    """

    recipe: Recipe
    plan: Plan
    chosen: tuple[Job, ...]
    results: Path
    afresh: bool = False

    @property
    def ledger(self) -> Ledger:
        """Where rows go."""
        return Ledger(self.results / FILE)

    def to_do(self) -> list[Job]:
        """The chosen jobs without a finished row."""
        done = {} if self.afresh else self.ledger.done()
        return [job for job in self.chosen if job.key not in done]

    def run(
        self, at_once: int, threads: int | None, device: str, progress: Progress, launcher: Launcher | None = None
    ) -> Tally:
        """Do what there is to do.

        Raises:
            Cancelled: the user stopped it; finished jobs stand in the ledger.
        """
        for one in self.plan.absent:
            progress.note(f"absent: {one.what}: {one.reason}")
        jobs = self.to_do()
        progress.note(f"{len(self.chosen) - len(jobs)} of {len(self.chosen)} jobs stand in the ledger already")
        each = threads or max(1, _cores() // at_once)
        orders = [
            Order(job.key, job.title, job.to_dict(), self.results.resolve(), each, device, os.getpid(), self.afresh)
            for job in jobs
        ]
        return run_orders(orders, self.results.resolve(), at_once, progress, launcher)

    def prospect(self, at_once: int) -> Prospect:
        """What ``run`` would do, with estimates from the ledger."""
        rows = self.ledger.rows()
        waiting = {job.key for job in self.to_do()}
        expected = tuple(
            (job, estimate(job.wish.configuration, rows) if job.key in waiting else None) for job in self.chosen
        )
        guesses = {job.key: guess.seconds if guess else None for job, guess in expected if job.key in waiting}
        return Prospect(expected, frozenset(waiting), self.plan.absent, at_once, Forecast(guesses).left(at_once))

    def summary(self) -> Summary:
        """The figures that stand now."""
        return summarise(self.recipe, self.ledger.rows(), self.plan.absent)


def open_session(
    recipe: Path, results: Path, data: Path | None = None, only: Sequence[str] = (), afresh: bool = False
) -> Session:
    """Read a recipe and look for its sets.

    Args:
        recipe: a TOML file.
        results: the folder of the ledger.
        data: the folder that sets lie in; None for the one that BLEMISH_DATA names.
        only: patterns of job titles (``*screw*``); a pattern without a star matches anywhere in a title.
        afresh: run jobs though their rows stand.

    Raises:
        ConfigError: the recipe does not hold together, or a pattern matches no job.
        OutputError: the folder of the ledger cannot be made.
    """
    read = load_recipe(recipe)
    try:
        (results / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{results} cannot be written ({error.strerror}): name another folder, --results") from error
    planned = plan(read, data_folder(data), results / "runs")
    chosen = [job for job in planned.jobs if not only or any(_matches(job.title, pattern) for pattern in only)]
    if only and not chosen:
        raise ConfigError(f"--only {' '.join(only)} matches no job: blemish bench {recipe} --dry-run lists them")
    return Session(read, planned, tuple(chosen), results, afresh)


def readme_tables(root: Path) -> str:
    """The first figure of every recipe of a repository that has rows in its ledger, for the README."""
    parts = []
    for _, summary in _measured(root):
        parts += [f"### {summary.recipe.title}", result_tables(summary, summary.recipe.metrics[:1])]
    return "\n\n".join(part for part in parts if part)


def results_page(root: Path) -> str:
    """All figures of those recipes, pair by pair and with times, for a page of their own."""
    parts = ["# Measured", "Made by `scripts/readme_table.py` from `results/ledger.jsonl`."]
    for path, summary in _measured(root):
        command = f"`blemish bench {path.relative_to(root).as_posix()} --data DIR`"
        compared = "\n".join(f"- {line}" for line in pair_sentences(summary))
        about = " ".join(summary.recipe.about.split())
        made = f"{made_with(summary)} The same on your machine: {command}"
        parts += [f"## {summary.recipe.title}", about, result_tables(summary), compared]
        parts += [markdown_table(timing_table(summary)), made]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measured(root: Path) -> Iterator[tuple[Path, Summary]]:
    """Recipes with figures.

    ``quick.toml`` is left out: its set shows that things work, and is no evidence of more. So are recipes with a
    calibration: ``scripts/verdicts_table.py`` shows what those are about.
    """
    rows: list[Row] = Ledger(root / "results" / FILE).rows()
    for path in sorted((root / "recipes").rglob("*.toml")):
        summary = summarise(load_recipe(path), rows)
        if path.stem != "quick" and summary.recipe.protocol.calibration == "none" and summary.rows:
            yield path, summary


def _matches(title: str, pattern: str) -> bool:
    pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return fnmatch.fnmatchcase(title.casefold(), pattern.casefold())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows(number: int) -> str:
    return f"median of {number} rows" if number > 1 else "one row"
