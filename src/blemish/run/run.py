"""One piece of long work: who is watching, where it computes, from which seed, what it keeps on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from blemish.errors import Cancelled
from blemish.run.device import Precision, choose_precision
from blemish.run.progress import Progress, PythonWarnings


def derive_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose, from a run's seed and the purpose's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """A block in which torch's own random state starts from ``seed``; the caller's state is put back after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class Timer:
    """Seconds in each named stage, summed over visits; a stage within another stops the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._inner = 0.0

    def elapsed(self) -> float:
        """Seconds since the timer was made: what a time limit counts."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's seconds to a stage."""
        began, inner, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner
            self._inner = inner + spent


class RunLog:
    """Messages and curves of one run: written by the work itself, read by whoever started it."""

    def __init__(self) -> None:
        self.curves: dict[str, list[dict[str, float]]] = {}  # of each training, the means of each epoch
        self.facts: dict[str, str] = {}  # decisions such as where features are cached; kept in checkpoints
        self.at = ""  # which epoch is under way, in words
        self.kept = ""  # up to which epoch a checkpoint holds, in words

    def way_on(self, folder: Path | None) -> str:
        """What the folder keeps of a stopped run and how to go on from there, in words."""
        if not self.kept:
            return "nothing was kept"
        return (
            f"all up to {self.kept} is kept in {folder}: "
            "the same command with --resume (in Python: Run(resume=True)) goes on from there"
        )


@dataclass(frozen=True, eq=False)
class Run:
    """One piece of long work: who is watching, where it computes, from which seed.

    Attributes:
        seed: everything random derives from it and from the name of its purpose.
        precision: how the networks that are trained compute; the frozen backbone has its own.
        checkpoint: a folder for checkpoints, one file for each training; None keeps nothing.
        resume: go on from the checkpoints in that folder; where there is none, begin.
        time_limit: seconds since the timer was made, beyond which no epoch is begun; one is done in any case.
        on_epoch: called with number (from 1) and mean values of each epoch, perhaps again after a resume; it may put
            networks into eval mode.
        work: what is learned from what, by name: a checkpoint is refused where any of it differs.
        scope: which part of the work this is, such as a fold; has checkpoints of its own.
        log: curves, decisions, how far it came.
        confirm: asks a person who watches whether something long shall begin; None where nobody does.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = field(default_factory=lambda: choose_precision(torch.device("cpu")))
    progress: Progress = field(default_factory=PythonWarnings)
    timer: Timer = field(default_factory=Timer)
    checkpoint: Path | None = None
    resume: bool = False
    time_limit: float | None = None
    on_epoch: Callable[[int, dict[str, float]], None] | None = None
    work: Mapping[str, str] = field(default_factory=dict)
    scope: str = ""
    log: RunLog = field(default_factory=RunLog)
    confirm: Callable[[str], bool] | None = None

    @property
    def curves(self) -> dict[str, list[dict[str, float]]]:
        """Of each training, by its name, the mean values of each epoch."""
        return self.log.curves

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose, on the CPU, so that a seed means the same on every device."""
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose))

    def permutation(self, n: int, purpose: str) -> list[int]:
        """The numbers 0 to n-1 in a random order fixed by seed and purpose."""
        order: list[int] = torch.randperm(n, generator=self.generator(purpose)).tolist()
        return order

    def scoped(self, name: str) -> Run:
        """A part of this work: the same seeds, other checkpoints, and no calls of ``on_epoch``."""
        scope = f"{self.scope}, {name}" if self.scope else name
        return dataclasses.replace(self, scope=scope, on_epoch=None)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block in which Ctrl-C becomes ``Cancelled``, which says what is kept and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            where = f"in {self.log.at}" if self.log.at else "before any training"
            raise Cancelled(f"stopped {where}; {self.log.way_on(self.checkpoint)}") from None

    def forget_checkpoints(self, before: float = math.inf) -> None:
        """Remove the checkpoints, of work that is done, or written ``before`` a time. Other files are left alone."""
        if self.checkpoint is None or not self.checkpoint.is_dir():
            return
        for path in [*self.checkpoint.glob("*.checkpoint"), *self.checkpoint.glob(".*.checkpoint.*.part")]:
            if path.lstat().st_mtime < before:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies in it
            self.checkpoint.rmdir()
