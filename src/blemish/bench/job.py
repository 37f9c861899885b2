"""``python -m blemish.bench.job FOLDER [PARENT]``: one job in a process of its own, ending in rows of the ledger.

A job holds a lock while it runs, so that two benches at once never do it twice. Whatever goes wrong is a row as well;
one that is killed leaves none, and whoever started it writes that down. It ends soon after the process PARENT.
"""

import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from filelock import FileLock

from blemish.bench.jobs import CHECKPOINTS, LOCK, Job, failed_row, now
from blemish.bench.ledger import FILE, Ledger

FAILED = 3  # not 1: that is what Python itself ends with when it cannot even start the job, and no row is written


def main(argv: list[str]) -> int:
    """Do the job in a folder; 0 when its rows stand, 3 when it failed for the reason in its rows."""
    folder = Path(argv[0]).resolve()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing half-written stays
    if len(argv) > 1:
        threading.Thread(target=_end_with, args=[int(argv[1])], daemon=True).start()
    job, ledger = Job.read(folder), Ledger(folder.parents[1] / FILE)
    with FileLock(folder / LOCK):
        done, began = {} if job.afresh else ledger.done(), time.perf_counter()
        waiting = [experiment for experiment in job.experiments if experiment.key not in done]
        if not waiting:
            return 0
        for left_over in folder.glob(".*.part"):  # of a process killed while writing
            left_over.unlink()
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


def _end_with(parent: int) -> None:
    if os.getppid() != parent:  # another program started this one, perhaps on another machine
        return
    while os.getppid() == parent:
        time.sleep(0.5)
    signal.raise_signal(signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
