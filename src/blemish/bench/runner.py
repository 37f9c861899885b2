"""Runs jobs, some at a time, each in a process of its own; every end is a row of the ledger."""

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

from blemish.bench.eta import estimate, spoken, time_left
from blemish.bench.jobs import LOG, Experiment, Job, failed_row
from blemish.bench.ledger import FILE, Ledger
from blemish.errors import Cancelled
from blemish.run import Progress, check_writable
from blemish.run.files import check_threads, usable_cores

COMMAND = (sys.executable, "-m", "blemish.bench.job")
GRACE = 5  # seconds that a stopped job has to take half-written files away


def run_jobs(
    jobs: Sequence[Job],
    results: Path,
    progress: Progress,
    workers: int = 1,
    threads: int | None = None,
    device: str = "auto",
    afresh: bool = False,
    command: Sequence[str] = COMMAND,
) -> tuple[int, list[str]]:
    """Do every job that has experiments without a finished row, ``workers`` at a time; a failure is a row too.

    ``threads`` are those of each process; None shares the cores among them. ``command`` is given the job's folder and
    the number of this process; it may start the job on another machine. After Ctrl-C, a ``Cancelled``, finished jobs
    stand in the ledger. Else how many experiments were done, and the titles and reasons of those that failed.
    """
    ledger = Ledger(results.resolve() / FILE)
    done = {} if afresh else ledger.done()
    check_threads(threads)
    threads = threads or max(1, usable_cores() // workers)
    processes, pool = _Processes(command, ledger), ThreadPoolExecutor(workers)
    futures = {}
    for job in jobs:
        waiting = [experiment for experiment in job.experiments if experiment.key not in done]
        if waiting:
            check_writable(ledger.path)
            started = dataclasses.replace(job, threads=threads, device=device, afresh=afresh)
            futures[pool.submit(processes.run, started, waiting)] = waiting
    total, everything = sum(map(len, futures.values())), sum(len(job.experiments) for job in jobs)
    progress.note(f"{everything - total} of {everything} jobs stand in the ledger already")
    failed: list[str] = []
    taken: list[float] = []
    ended = 0
    try:
        for future in progress.track(as_completed(futures), "jobs", total=len(futures)):
            seconds, rows = future.result(), ledger.rows()
            taken.append(seconds)
            guesses = [estimate(rows, w[0].configuration) for other, w in futures.items() if not other.done()]
            left = spoken(time_left([guess[0] if guess else fmean(taken) for guess in guesses], workers))
            latest = {row["key"]: row for row in rows}
            for experiment in futures[future]:
                row = latest[experiment.key]
                ended += 1
                value, outcome = row.get("metrics", {}).get("image_auroc"), f": {seconds:.0f} s"
                if row["status"] != "done":
                    failed.append(f"{experiment.title}: {row['reason']}")
                    outcome = f" failed after {seconds:.0f} s: {row['reason']}"
                elif value is not None:
                    outcome = f": image AUROC {value:.3f}, {seconds:.0f} s"
                progress.note(f"{ended} of {total}: {experiment.title}{outcome}; {left} left")
    except KeyboardInterrupt:
        way_on = "--afresh begins all of them anew" if afresh else "the same command goes on"
        raise Cancelled(f"stopped with {total - ended} of {total} jobs to do: {way_on}") from None
    finally:
        processes.stop()
        pool.shutdown(cancel_futures=True)
    return ended - len(failed), failed


@dataclass
class _Processes:
    """The processes of a bench: none starts and none is taken for dead once they are stopped."""

    command: Sequence[str]
    ledger: Ledger
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, job: Job, experiments: Sequence[Experiment]) -> float:
        """Do a job, so that each of ``experiments`` has a row when its process has ended; its seconds."""
        began, known = time.monotonic(), len(self.ledger.rows())
        folder = job.write(self.ledger.path.parent)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
        with (folder / LOG).open("ab") as log:
            before = log.tell()
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
            process.terminate()
        code = process.wait()
        self.running.remove(process)
        seconds = time.monotonic() - began
        if not self.stopped.is_set():
            rows = self.ledger.rows()
            written = {row["key"] for row in (rows if code == 0 else rows[known:])}
            for experiment in experiments:
                if experiment.key not in written:
                    self.ledger.append(failed_row(job, experiment, _how_it_died(code, folder / LOG, before), seconds))
        return seconds

    def stop(self) -> None:
        self.stopped.set()
        stopping = list(self.running)
        for process in stopping:
            process.terminate()
        for process in stopping:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def _how_it_died(code: int, log: Path, before: int) -> str:
    lines = log.read_bytes()[before:].decode(errors="replace").splitlines()
    said = " | ".join(line.strip() for line in lines[-3:] if line.strip())
    last = f"; it last said: {said}" if said else ""
    if code == -signal.SIGKILL:
        return f"killed (signal 9): by someone, or by the system because memory ran out{last}"
    return f"ended by signal {-code}{last}" if code < 0 else f"ended with code {code} and no row{last}"
