"""Starting jobs, some at a time, until all stand in the ledger or have failed there with a reason.

How a job is started is a ``Launcher``: here a process of its own on this machine; an engine for a cluster needs the
same one method. This module imports neither torch nor anything that does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from blemish.bench.estimates import Forecast, estimate, spoken
from blemish.bench.job import FAILED, failed_row
from blemish.bench.ledger import FILE, Ledger, Row
from blemish.bench.orders import Order
from blemish.errors import Cancelled

if TYPE_CHECKING:
    from blemish.run import Progress

PAUSE = 0.05
"""Seconds between two looks at the processes."""
TAIL = 3
"""Lines of a dead process's log that its row keeps."""


class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """None while it runs, then how it ended: 0 and 3 mean that it wrote its row itself."""

    def stop(self) -> None:
        """End it now."""


class Launcher(Protocol):
    """A way of starting jobs."""

    def start(self, order: Order) -> Handle:
        """Start one job; it appends its own row to the ledger in ``order.results``."""


@dataclass(frozen=True)
class LocalLauncher:
    """Starts a process on this machine.

    Attributes:
        command: what takes the path of the order as its argument.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "blemish.bench.job")

    def start(self, order: Order) -> Handle:
        """Start the process; what it says goes to the job's log."""
        threads = str(order.threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        path = order.write()
        with order.log.open("wb") as log:
            process = subprocess.Popen(
                [*self.command, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **limits},
            )
        return _LocalHandle(process)


@dataclass(frozen=True)
class _LocalHandle:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Tally:
    """What became of the jobs."""

    done: int
    failed: tuple[str, ...]


def run_orders(
    orders: Sequence[Order], results: Path, at_once: int, progress: Progress, launcher: Launcher | None = None
) -> Tally:
    """Do every order, ``at_once`` at a time; a failure is a row, and the rest go on.

    Raises:
        Cancelled: the user stopped it; finished jobs stand in the ledger.
    """
    ledger = Ledger(results / FILE)
    rows = ledger.rows()
    guesses: dict[str, float | None] = {}
    for order in orders:
        found = estimate(order.job.get("configuration", {}), rows)
        guesses[order.key] = None if found is None else found.seconds
    forecast = Forecast(guesses)
    failed: list[str] = []
    done = 0
    ends = _ends(orders, launcher or LocalLauncher(), at_once)
    for order, code, seconds in progress.track(ends, "jobs", total=len(orders)):
        row = _row_of(order, code, ledger)
        forecast.finish(order.key, seconds)
        if row["status"] == "done":
            done += 1
        else:
            failed.append(f"{order.title}: {row['reason']}")
        left = spoken(forecast.left(at_once))
        progress.note(f"{done + len(failed)} of {len(orders)}: {_told(order, row, seconds)}; {left} left")
    return Tally(done, tuple(failed))


def _ends(orders: Sequence[Order], launcher: Launcher, at_once: int) -> Iterator[tuple[Order, int, float]]:
    """Each order as its job ends, with how it ended and how many seconds it took."""
    waiting = list(reversed(orders))
    running: list[tuple[Order, Handle, float]] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                order = waiting.pop()
                running.append((order, launcher.start(order), time.monotonic()))
            for one in list(running):
                order, handle, began = one
                code = handle.poll()
                if code is not None:
                    running.remove(one)
                    yield order, code, time.monotonic() - began
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        raise Cancelled(
            f"stopped with {len(waiting) + len(running)} of {len(orders)} jobs to do: the same command goes on"
        ) from None
    finally:
        for _, handle, _ in running:
            handle.stop()


def _row_of(order: Order, code: int, ledger: Ledger) -> Row:
    """The row of a job that ended; one is written for a process that could not write its own."""
    own = [row for row in ledger.rows() if row["key"] == order.key]
    if code in (0, FAILED) and own:
        return own[-1]
    row = failed_row(order, _how_it_died(code, order))
    ledger.append(row)
    return row


def _how_it_died(code: int, order: Order) -> str:
    lines = order.log.read_text(encoding="utf-8", errors="replace").splitlines() if order.log.is_file() else []
    said = " | ".join(line.strip() for line in lines[-TAIL:] if line.strip())
    last = f"; it last said: {said}" if said else ""
    if code == -signal.SIGKILL:
        return f"killed (signal 9): by someone, or by the system because memory ran out{last}"
    if code < 0:
        return f"ended by signal {-code}{last}"
    return f"ended with code {code} and no row{last}"


def _told(order: Order, row: Row, seconds: float) -> str:
    if row["status"] != "done":
        return f"{order.title} failed after {seconds:.0f} s: {row['reason']}"
    value = row.get("metrics", {}).get("image_auroc")
    figure = f"image AUROC {value:.3f}, " if isinstance(value, float) else ""
    return f"{order.title}: {figure}{seconds:.0f} s"
