"""Where the features of training images are kept, so that a frozen teacher sees each image once.

Features are rounded to bf16 before anyone sees them, so bf16 holds them exactly: the same numbers kept or computed, in
the same memory order, because convolutions round differently when the order differs. In memory: one list of maps an
image. On disk: one safetensors file an image, named by its key, in a folder named by all else that the numbers depend
on. A file is written under a temporary name and renamed, and carries a digest: a process killed half-way leaves nothing
that could be taken for features, and two processes at once write the same file twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_STALE = 3600  # seconds after which a temporary file belongs to a process that was killed


class FeatureCache:
    """Feature maps by image key, in bf16, in memory or below a folder.

    Attributes:
        bytes_each: what one image takes.
        folder: where the files are, or None for memory.
    """

    def __init__(self, like: Sequence[Tensor], identity: Mapping[str, str], folder: Path | None = None) -> None:
        """Nothing is kept yet, or what an earlier fit left in ``folder``.

        Args:
            like: one image's maps ``1 c y x``: their memory order is kept.
            identity: all that the numbers depend on beside the image.
            folder: where to, created; None for memory.

        Raises:
            OSError: the folder cannot be made.
        """
        self._channels_last = [not map_.is_contiguous() for map_ in like]
        self._in_memory: dict[str, list[Tensor]] = {}
        self._verified: set[str] = set()
        self.bytes_each = sum(2 * map_.numel() for map_ in like)
        self.folder = folder
        if folder is not None:
            layout = [[*map_.shape[1:], last] for map_, last in zip(like, self._channels_last)]
            named = json.dumps([dict(identity), layout], sort_keys=True)
            self.folder = folder / hashlib.sha256(named.encode()).hexdigest()[:16]
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.folder.glob("*.part"):
                with contextlib.suppress(FileNotFoundError):  # another process has just given it its name
                    if time.time() - part.stat().st_mtime > _STALE:
                        part.unlink()

    def holds(self, keys: Sequence[str]) -> bool:
        """Whether every key's features are here, whole."""
        return all(self._rows(key) is not None for key in keys)

    def put(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """Keep a batch's maps ``b c y x``, one for each level.

        Raises:
            OSError: the disk is full or the folder read-only.
        """
        ordered = [map_.permute(0, 2, 3, 1) if last else map_ for map_, last in zip(maps, self._channels_last)]
        levels = [map_.to(torch.bfloat16).contiguous().cpu() for map_ in ordered]
        for i, key in enumerate(keys):
            rows = [level[i].clone() for level in levels]
            if self.folder is None:
                self._in_memory[key] = rows
                continue
            part = self.folder / f"{uuid.uuid4().hex}.part"
            try:  # not synced: what a power cut spoils, the digest shows
                part.write_bytes(save({str(n): row for n, row in enumerate(rows)}, {"sha256": _digest(rows)}))
                part.replace(self.folder / _file_name(key))
            finally:
                part.unlink(missing_ok=True)
            self._verified.add(key)

    def get(self, keys: Sequence[str], device: torch.device) -> list[Tensor] | None:
        """The maps ``b c y x`` of a batch, float32, in the memory order they were given in; None if one is missing."""
        images = []
        for key in keys:
            rows = self._rows(key)
            if rows is None:
                return None
            images.append(rows)
        levels = [torch.stack(rows).to(device).float() for rows in zip(*images)]
        return [map_.permute(0, 3, 1, 2) if last else map_ for map_, last in zip(levels, self._channels_last)]

    def taken(self) -> int:
        """Bytes of features on the disk already, from this fit or another."""
        return sum(path.stat().st_size for path in self.folder.glob("*.features")) if self.folder is not None else 0

    def _rows(self, key: str) -> list[Tensor] | None:
        """One image's maps; a file is digested when it is first read."""
        if self.folder is None:
            return self._in_memory.get(key)
        try:
            with safe_open(self.folder / _file_name(key), framework="pt") as file:
                rows = [file.get_tensor(str(n)) for n in range(len(self._channels_last))]
                if key not in self._verified and _digest(rows) != (file.metadata() or {}).get("sha256"):
                    return None
        except (OSError, SafetensorError):
            return None
        self._verified.add(key)
        return rows


def available_memory() -> int:
    """Bytes of memory that a process may still take: what the machine has left, or a container's limit leaves."""
    available = [4 * 1024**3]  # where the system does not say: a small machine's
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or available
    for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):  # of either version of cgroups
        folder = Path("/sys/fs/cgroup") if limit == "max" else Path("/sys/fs/cgroup/memory")
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            most, taken = (int((folder / f"memory.{name}").read_text()) for name in (limit, used))
            available.append(most - taken)
    return max(min(available), 0)


def _file_name(key: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.features"


def _digest(rows: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(str([tuple(row.shape) for row in rows]).encode())
    for row in rows:
        digest.update(row.view(torch.uint8).numpy().data)
    return digest.hexdigest()
