"""Everything impure in learning: seed, device, threads, precision, progress, cancellation, safe writing.

A method is handed one ``Run`` and reads no global state. Each automatic choice carries its reason, and is said once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch

from blemish.errors import ConfigError, OutputError

T = TypeVar("T")
PrecisionName = Literal["auto", "fp32", "bf16"]


class Progress(Protocol):
    """Where long work reports to. Never standard output: that is for results."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on, reporting how far along and how long still."""

    def note(self, text: str) -> None:
        """Say one thing once: a choice with its reason, a warning."""


class Silent:
    """Reports nothing: for libraries, tests and ``--quiet``."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on."""
        yield from items

    def note(self, text: str) -> None:
        """Say nothing."""


class Lines:
    """Plain lines on standard error, for logs: start, every ten seconds, end."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on, with a line now and then."""
        total = total if total is not None else _length(items)
        began = said = time.monotonic()
        done = 0
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - said >= 10:
                left = f", about {(now - began) / done * (total - done):.0f} s left" if total else ""
                self.note(f"{title}: {done}{f' of {total}' if total else ''}{left}")
                said = now
        self.note(f"{title}: {done} done in {time.monotonic() - began:.1f} s")

    def note(self, text: str) -> None:
        """Write one line to standard error."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Bar(Lines):
    """A bar with the time left, when a person is watching. Final: only ``track`` differs from ``Lines``."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on under a bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        total = total if total is not None else _length(items)
        with RichProgress(*columns, console=Console(stderr=True)) as bar:
            yield from bar.track(items, total=total, description=title)


def _length(items: Iterable[object]) -> int | None:
    return len(items) if hasattr(items, "__len__") else None


@dataclass(frozen=True)
class Precision:
    """How networks compute, and why.

    Attributes:
        dtype: float32, or bfloat16 for autocast; losses, norms, distances and maps are float32 either way.
        channels_last: the memory format that convolutions run in.
        reason: why, for people.
    """

    dtype: torch.dtype
    channels_last: bool
    reason: str

    @property
    def name(self) -> str:
        """``bf16`` or ``fp32``."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which convolutions run."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 ones here: AMX tiles on a CPU, tensor cores on a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type == "cpu" and bool(supported())


def choose_precision(device: torch.device, wanted: PrecisionName = "auto", dense: bool = True) -> Precision:
    """The precision this processor gains from.

    The rule is fixed by what the processor is, not timed at each start: a timing taken on a busy machine would make
    the same seed give other bits. ``benchmarks/precision.py`` times the choice.

    Args:
        device: where networks run.
        wanted: ``auto`` to choose, or a precision to insist on.
        dense: False for backbones of depthwise convolutions, whose time goes into memory traffic, not products.

    Raises:
        ConfigError: ``wanted`` is not a precision.
    """
    if wanted not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision {wanted!r} is unknown: choose auto, fp32 or bf16")
    if wanted != "auto":
        dtype = torch.bfloat16 if wanted == "bf16" else torch.float32
        return Precision(dtype, channels_last=True, reason="as asked")
    if not has_bf16_units(device):
        return Precision(torch.float32, True, f"this {device.type} has no bf16 matrix units")
    if not dense:
        return Precision(torch.float32, True, "depthwise convolutions gain little from bf16")
    return Precision(torch.bfloat16, True, f"this {device.type} has bf16 matrix units")


def choose_device(wanted: str = "auto") -> torch.device:
    """``cuda`` where there is one, else ``cpu``; or what was asked for.

    Raises:
        ConfigError: the device is unknown or absent.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"device {wanted!r} is unknown: choose auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {wanted!r} was asked for, but torch sees no GPU: use --device cpu")
    return device


def set_threads(threads: int | None) -> int:
    """Set torch's thread count where one is given; the count in force."""
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads {threads}: at least 1 is needed")
        torch.set_num_threads(threads)
    return torch.get_num_threads()


class Clock:
    """Seconds spent in each named stage, summed over visits."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's seconds to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Run:
    """One piece of long work: who is watching, where it computes, from which seed.

    Attributes:
        seed: everything random derives from it and from the name of its purpose.
        device: where networks run.
        precision: how they compute.
        progress: where it reports to.
        clock: where the seconds went.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = field(default_factory=lambda: choose_precision(torch.device("cpu")))
    progress: Progress = field(default_factory=Silent)
    clock: Clock = field(default_factory=Clock)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the CPU for one purpose: adding a random draw elsewhere never moves this one.

        The CPU always draws, so that a seed means the same on every device.
        """
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose))

    def permutation(self, n: int, purpose: str) -> list[int]:
        """The numbers 0 to n-1 in a random order fixed by seed and purpose."""
        order: list[int] = torch.randperm(n, generator=self.generator(purpose)).tolist()
        return order


def derive_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose, from a run's seed and the purpose's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the folder is read-only or missing, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} was not written: the disk is full. Free some space, or write elsewhere with -o."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} was not written: {path.parent} is not writable. Write elsewhere with -o."
    return f"{path} was not written: {error.strerror or error}."
