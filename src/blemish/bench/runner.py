"""Runs jobs, some at a time, each in a process of its own; every end is a row of the ledger."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from blemish.bench.eta import Estimates, spoken, time_left
from blemish.bench.job import LOG, failed_row
from blemish.bench.jobs import Experiment, Job
from blemish.bench.ledger import FILE, Ledger, Row
from blemish.errors import Cancelled

if TYPE_CHECKING:
    from blemish.run import Progress

COMMAND = (sys.executable, "-m", "blemish.bench.job")
TAIL = 3
"""Lines of a dead process's log that its row keeps."""


@dataclass(frozen=True)
class RunResult:
    """What became of the experiments: how many were done, and the titles and reasons of those that failed."""

    done: int
    failed: tuple[str, ...]


def run_jobs(
    jobs: Sequence[Job],
    results: Path,
    progress: Progress,
    workers: int = 1,
    threads: int | None = None,
    device: str = "auto",
    afresh: bool = False,
    command: Sequence[str] = COMMAND,
) -> RunResult:
    """Do every job that has experiments without a finished row, ``workers`` at a time; a failure is a row too.

    Args:
        jobs: of a plan.
        results: the folder of the ledger.
        progress: told of each end, with the time left.
        workers: processes at a time.
        threads: of each process; None shares the cores among them.
        device: ``auto``, ``cpu`` or ``cuda``.
        afresh: do jobs though their rows stand.
        command: is given the job's folder and the number of this process; may start the job on another machine.

    Raises:
        Cancelled: Ctrl-C; finished jobs stand in the ledger.
    """
    ledger = Ledger(results.resolve() / FILE)
    done = {} if afresh else ledger.done()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    how: dict[str, Any] = {"threads": threads or max(1, cores // workers), "device": device, "afresh": afresh}
    waiting = [(dataclasses.replace(job, **how), [e for e in job.experiments if e.key not in done]) for job in jobs]
    total, everything = sum(len(some) for _, some in waiting), sum(len(job.experiments) for job in jobs)
    progress.note(f"{everything - total} of {everything} jobs stand in the ledger already")
    processes, pool = _Processes(command, ledger), ThreadPoolExecutor(workers)
    futures = {pool.submit(processes.run, job, some): some for job, some in waiting if some}
    failed: list[str] = []
    taken: list[float] = []
    ended = 0
    try:
        for future in progress.track(as_completed(futures), "jobs", total=len(futures)):
            rows, seconds = future.result()
            taken.append(seconds)
            known = Estimates(ledger.rows())
            guesses = [known.of(some[0].configuration) for other, some in futures.items() if not other.done()]
            left = spoken(time_left([guess and guess.seconds for guess in guesses], workers, fmean(taken)))
            for experiment, row in rows:
                ended += 1
                value = row.get("metrics", {}).get("image_auroc")
                figure = f"image AUROC {value:.3f}, " if isinstance(value, float) else ""
                outcome = f": {figure}{seconds:.0f} s"
                if row["status"] != "done":
                    failed.append(f"{experiment.title}: {row['reason']}")
                    outcome = f" failed after {seconds:.0f} s: {row['reason']}"
                progress.note(f"{ended} of {total}: {experiment.title}{outcome}; {left} left")
    except KeyboardInterrupt:
        raise Cancelled(f"stopped with {total - ended} of {total} jobs to do: the same command goes on") from None
    finally:
        processes.stop()
        pool.shutdown(cancel_futures=True)
    return RunResult(ended - len(failed), tuple(failed))


@dataclass
class _Processes:
    """The processes of a bench: none starts and none is taken for dead once they are stopped."""

    command: Sequence[str]
    ledger: Ledger
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, job: Job, experiments: Sequence[Experiment]) -> tuple[list[tuple[Experiment, Row]], float]:
        """The rows of a job's experiments when its process has ended, and its seconds."""
        began, known = time.monotonic(), len(self.ledger.rows())
        folder = job.write(self.ledger.path.parent)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [*self.command, str(folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **limits},
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends that one
            )
        self.running.append(process)
        if self.stopped.is_set():
            process.kill()
        code = process.wait()
        self.running.remove(process)
        if self.stopped.is_set():
            return [], 0.0
        seconds = time.monotonic() - began
        rows = self.ledger.rows()
        latest = {row["key"]: row for row in (rows if code == 0 else rows[known:])}
        for experiment in experiments:
            if experiment.key not in latest:
                latest[experiment.key] = failed_row(job, experiment, _how_it_died(code, folder / LOG), seconds)
                self.ledger.append(latest[experiment.key])
        return [(e, latest[e.key]) for e in experiments], seconds

    def stop(self) -> None:
        """End all that still run."""
        self.stopped.set()
        for process in list(self.running):
            process.kill()


def _how_it_died(code: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = " | ".join(line.strip() for line in lines[-TAIL:] if line.strip())
    last = f"; it last said: {said}" if said else ""
    if code == -signal.SIGKILL:
        return f"killed (signal 9): by someone, or by the system because memory ran out{last}"
    if code < 0:
        return f"ended by signal {-code}{last}"
    return f"ended with code {code} and no row{last}"
