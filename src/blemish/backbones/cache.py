"""Where the features of training images are kept, so that a frozen teacher sees each image once.

Features are rounded to bf16 before anyone sees them, so bf16 holds them exactly: the same numbers kept or computed, in
the same memory order, because convolutions round differently when the order differs.

In memory: one array for each level, allocated at once. On disk: one file for each image, named by its key, in a folder
named by everything else that the numbers depend on. A file is written under a temporary name and renamed, and carries a
digest: a process killed half-way leaves nothing that could be taken for features, and two processes at once write the
same file twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MEMORY_SHARE = 0.25
"""Of the memory that is available, how much features may take unless another budget is given."""

DISK_SHARE = 0.5
"""The same of a disk's free space."""

_MAGIC = b"blemish features 1\n"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size
_STALE = 3600  # seconds after which a temporary file belongs to a process that was killed


@dataclass(frozen=True)
class Layout:
    """How one image's map of one level lies in memory.

    Attributes:
        channels, height, width: of the map.
        channels_last: whether a cell's channels lie next to each other.
    """

    channels: int
    height: int
    width: int
    channels_last: bool

    @staticmethod
    def of(map_: Tensor) -> Layout:
        """The layout of a map ``b c y x``."""
        _, channels, height, width = map_.shape
        return Layout(channels, height, width, not map_.is_contiguous())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one row, in the order in which its numbers lie."""
        if self.channels_last:
            return self.height, self.width, self.channels
        return self.channels, self.height, self.width

    @property
    def numbers(self) -> int:
        """How many there are in a row."""
        return math.prod(self.shape)

    def rows(self, map_: Tensor) -> Tensor:
        """``b`` rows of bf16 from a map ``b c y x``, contiguous, on the CPU."""
        ordered = map_.permute(0, 2, 3, 1) if self.channels_last else map_
        return ordered.to(torch.bfloat16).contiguous().cpu()

    def map(self, rows: Tensor, device: torch.device) -> Tensor:
        """The map ``b c y x``, float32, as the backbone gave it, from rows that are a copy."""
        found = rows.to(device).to(torch.float32)
        return found.permute(0, 3, 1, 2) if self.channels_last else found


class Store(Protocol):
    """Features by image key."""

    def holds(self, keys: Sequence[str]) -> bool:
        """Whether every key's features are here, whole."""

    def put(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """Keep a batch's maps ``b c y x``, one for each level. Raises OSError where the disk is full."""

    def get(self, keys: Sequence[str], device: torch.device) -> list[Tensor] | None:
        """The maps ``b c y x`` of a batch, or None if one is missing."""


class MemoryStore:
    """Features in memory: one array for each level."""

    def __init__(self, layouts: Sequence[Layout], images: int) -> None:
        self._layouts = tuple(layouts)
        self._levels = [torch.empty((images, *layout.shape), dtype=torch.bfloat16) for layout in layouts]
        self._rows: dict[str, int] = {}

    def holds(self, keys: Sequence[str]) -> bool:
        """Whether every key's features are here."""
        return all(key in self._rows for key in keys)

    def put(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """Keep a batch's maps; images beyond the number planned for are not kept."""
        batches = [layout.rows(map_) for layout, map_ in zip(self._layouts, maps)]
        for i, key in enumerate(keys):
            row = self._rows.get(key, len(self._rows))
            if row == len(self._levels[0]):
                return
            for level, batch in zip(self._levels, batches):
                level[row] = batch[i]
            self._rows[key] = row

    def get(self, keys: Sequence[str], device: torch.device) -> list[Tensor] | None:
        """The maps of a batch, or None if one is missing."""
        if not self.holds(keys):
            return None
        # Widened while they are gathered, in one pass over memory; but what goes to a GPU travels as bf16.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        maps = []
        for layout, level in zip(self._layouts, self._levels):
            batch = torch.empty((len(keys), *layout.shape), dtype=dtype)
            for i, key in enumerate(keys):
                batch[i].copy_(level[self._rows[key]])
            maps.append(layout.map(batch, device))
        return maps


class DiskStore:
    """Features in files, shared by every fit that computes the same numbers.

    Args:
        folder: where to; created.
        layouts: of the levels.
        identity: everything, beside an image's key, that the numbers depend on.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, layouts: Sequence[Layout], identity: Mapping[str, object]) -> None:
        self._layouts = tuple(layouts)
        named = json.dumps([dict(identity), [asdict(layout) for layout in layouts]], sort_keys=True)
        self.folder = folder / hashlib.sha256(named.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):  # another process has just given it its name
                if time.time() - part.stat().st_mtime > _STALE:
                    part.unlink()
        self._verified: set[str] = set()

    def holds(self, keys: Sequence[str]) -> bool:
        """Whether every key's file is here, whole: read to its end, the first time that it is asked for."""
        for key in keys:
            if key in self._verified:
                continue
            content = self._read(key)
            if content is None:
                return False
            if hashlib.sha256(content[_HEADER:].data).digest() != content[len(_MAGIC) : _HEADER].tobytes():
                return False
            self._verified.add(key)
        return True

    def put(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """Write a file for each image.

        Raises:
            OSError: the disk is full or the folder read-only.
        """
        batches = [layout.rows(map_) for layout, map_ in zip(self._layouts, maps)]
        for i, key in enumerate(keys):
            content = b"".join(batch[i].view(torch.uint8).numpy().tobytes() for batch in batches)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:  # not synced: what a power cut spoils, the digest shows
                    file.write(_MAGIC + hashlib.sha256(content).digest() + content)
                Path(name).replace(self._path(key))
            finally:
                Path(name).unlink(missing_ok=True)
            self._verified.add(key)

    def get(self, keys: Sequence[str], device: torch.device) -> list[Tensor] | None:
        """The maps of a batch, or None if one is missing, cut short or was never verified."""
        if not self.holds(keys):
            return None
        batches = [torch.empty((len(keys), *layout.shape), dtype=torch.bfloat16) for layout in self._layouts]
        for i, key in enumerate(keys):
            content = self._read(key)
            if content is None:
                return None
            start = _HEADER
            for layout, batch in zip(self._layouts, batches):
                end = start + 2 * layout.numbers
                batch[i].view(torch.uint8).view(-1).numpy()[:] = content[start:end]
                start = end
        return [layout.map(batch, device) for layout, batch in zip(self._layouts, batches)]

    def taken(self) -> int:
        """Bytes of features that are here already, from this fit or another."""
        return sum(path.stat().st_size for path in self.folder.glob("*.features"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.features"

    def _read(self, key: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]] | None:
        """A file's bytes, or None where it is missing, foreign or of another length."""
        try:
            content = np.fromfile(self._path(key), dtype=np.uint8)
        except OSError:
            return None
        whole = _HEADER + sum(2 * layout.numbers for layout in self._layouts)
        if content.size != whole or content[: len(_MAGIC)].tobytes() != _MAGIC:
            return None
        return content


def bytes_needed(layouts: Sequence[Layout], images: int) -> int:
    """What the features of so many images take."""
    return images * sum(2 * layout.numbers for layout in layouts)


def available_memory() -> int:
    """Bytes of memory that a process may still take: what the machine has left, or a container's limit leaves."""
    found = [_machine_memory(), *_container_memory()]
    return max(min(found), 0)


def _machine_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 4 * 1024**3  # where the system does not say: a small machine's


def _container_memory() -> list[int]:
    places = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    )
    for limit, used in places:
        try:
            return [int(Path(limit).read_text()) - int(Path(used).read_text())]
        except (OSError, ValueError):  # absent, or "max"
            continue
    return []
