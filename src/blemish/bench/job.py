"""``python -m blemish.bench.job FOLDER [PARENT]``: one job in a process of its own, ending in rows of the ledger.

A job holds a lock while it runs, so that two benches at once, or one resumed too early, never do it twice. Whatever
goes wrong is a row as well; a process that is killed leaves none, and whoever started it writes that down. The process
ends soon after the one with the number PARENT, so that a bench that was killed leaves nothing running.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path

from filelock import FileLock

from blemish.bench.jobs import Experiment, Job
from blemish.bench.ledger import FILE, Ledger, Row

EVIDENCE, LOCK, CURVES, CHECKPOINTS, LOG = "evidence.npz", "lock", "curves.json", "checkpoints", "log.txt"
"""In a job's folder; scores and pictures in that of each row."""
FAILED = 3
"""Not 1: that is what Python itself ends with when it cannot even start the job, and no row is written."""


def main(argv: list[str]) -> int:
    """Do the job in a folder; 0 when its rows stand, 3 when it failed for the reason in its rows."""
    folder = Path(argv[0]).resolve()
    if len(argv) > 1:
        threading.Thread(target=_end_with, args=[int(argv[1])], daemon=True).start()
    job, ledger = Job.read(folder), Ledger(folder.parents[1] / FILE)
    with FileLock(folder / LOCK):
        done = {} if job.afresh else ledger.done()
        waiting = [experiment for experiment in job.experiments if experiment.key not in done]
        if not waiting:
            return 0
        began = time.perf_counter()
        try:
            from blemish.bench.measure import perform  # loads torch: not while waiting for another bench

            for row in perform(job, list(waiting), folder):
                total = round(time.perf_counter() - began, 3)
                ledger.append({**row, "seconds": {**row.get("seconds", {}), "total": total}, "finished": now()})
                waiting.pop(0)
        except Exception as error:  # one job's failure, of whatever kind, must not end the others
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", reason.lower()):
                reason = f"out of memory ({reason}): give it fewer images, a smaller size, or run with fewer --jobs"
            for experiment in waiting:
                ledger.append(failed_row(job, experiment, reason, time.perf_counter() - began))
            return FAILED
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return 0


def row_of(job: Job, experiment: Experiment, status: str) -> Row:
    """What every row says of its experiment."""
    names = {"recipe": job.recipe, "label": experiment.label, "set": experiment.set_name}
    asked = {"configuration": experiment.configuration, "data_digest": experiment.data_digest}
    return {"key": experiment.key, "status": status, **names, **asked}


def failed_row(job: Job, experiment: Experiment, reason: str, seconds: float) -> Row:
    """What the ledger says of an experiment that did not end well; the next bench tries it again."""
    row = row_of(job, experiment, "failed") | {"reason": without_paths(reason)[:500]}
    return row | {"seconds": {"total": round(seconds, 3)}, "finished": now()}


def without_paths(text: str) -> str:
    """``text`` with every absolute path cut down to its last name: the ledger names no place of a machine."""
    return re.sub(r"(?<![\w.:/])(?:/|[A-Za-z]:\\)[^\s'\"():;,]*[/\\]([^\s'\"():;,/\\]+)", r"\1", text)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _end_with(parent: int) -> None:
    if os.getppid() != parent:  # another program started this one, perhaps on another machine
        return
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
