"""The backbone as methods see it while learning: frozen, without gradient, the same numbers every time.

Also where the features of training images are kept, so that each image is seen once. They are rounded to bf16, so bf16
holds them exactly: the same numbers kept or computed, in the same memory order, by which convolutions round. In memory:
that of the device where the backbone is. On disk: one safetensors file an image, named by its key, in a folder named by
all else that the numbers depend on. It is renamed into place and carries a digest: a process killed half-way leaves
nothing that could be taken for features.
"""

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from blemish.contract import Backbone, Batch, Images
from blemish.run import Run, device_name

# Images whose features are computed at once, kept or not (large ones a backbone divides further): in larger company
# some processors round otherwise (EfficientNet-Lite0 on one thread: a thousandth of the numbers of 16 images differs
# from those of twice 8).
CHUNK = 8

FACT = "feature cache"
_STALE = 3600  # seconds after which a temporary file belongs to a process that was killed


class FrozenTeacher:
    """Gives the features of training images; implements ``blemish.contract.Teacher``.

    A ``Batch`` names its images by key and a bare tensor (noisy twins, elastic copies) does not, so only a batch's
    features can ever be kept. Features are computed on the backbone's device and stay there.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._cache: FeatureCache | None = None

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        """Feature maps ``b c y x``, shallowest level first, float32 numbers that bf16 can hold."""
        if not isinstance(given, Batch):
            return self._compute(given)
        kept = None if self._cache is None else self._cache.get(given.keys)
        return self._features(given.images) if kept is None else kept

    def keep_features(
        self, sets: Sequence[Images], run: Run, folder: Path | None = None, budget: int | None = None
    ) -> None:
        """See every image of ``sets`` once and keep its features, where they fit; says what was decided and why.

        They are kept in ``folder``, for later fits too, or in memory, and may take ``budget`` bytes: by default a
        quarter of the available memory, or half of the disk's free space. Where they do not fit, or the disk turns out
        to be full, features are computed whenever they are asked for: the same numbers, later. All images are of one
        size, and the backbone's precision must not change afterwards.
        """
        count = sum(len(images) for images in sets)
        if count == 0 or not self.backbone.levels:
            return
        self._cache = None
        first = next(images for images in sets if len(images)).batch([0])
        try:
            cache = FeatureCache(self._features(first.images), identity(self.backbone), folder)
            needed, hint, on_card = count * cache.bytes_each, "", None
            if (device := _device(self.backbone)).type == "cuda":
                on_card = torch.cuda.mem_get_info(device)[0]
                cache.on_card = needed <= 0.25 * on_card
            if cache.folder is None:
                free, place, why = available_memory(), "memory", "a quarter of the memory available"
                if on_card is not None:
                    free, why = on_card, "a quarter of the graphics card's free memory"
                limit = int(0.25 * free)
                hint = "; a folder on a disk may hold them (--cache DIR)"
            else:
                place, why = str(folder), "half of the disk's free space"
                kept = sum(path.stat().st_size for path in cache.folder.glob("*.features"))
                limit = int(0.5 * shutil.disk_usage(cache.folder).free) + kept
            if budget is not None:
                limit, why = budget, "the budget given"
            reason = f"{count} images of {_size(cache.bytes_each)} make {_size(needed)}; {why} is {_size(limit)}"
            if needed > limit:
                run.log.facts[FACT] = "off"
                run.progress.note(f"feature cache: off: {reason}{hint}")
                return
            run.log.facts[FACT] = "memory" if folder is None else "disk"
            run.progress.note(f"feature cache: in {place}: {reason}")
            chunks = [(images, start) for images in sets for start in range(0, len(images), CHUNK)]
            ticks = iter(run.progress.track(range(count), "features of the training images"))
            for images, start in chunks:
                batch = images.batch([start + i for i, _ in zip(range(min(CHUNK, len(images) - start)), ticks)])
                if cache.get(batch.keys) is None:
                    cache.put(batch.keys, self._features(batch.images))
            next(ticks, None)  # ends the bar
            self._cache = cache
        except (OSError, torch.OutOfMemoryError) as error:  # a card that others fill at the same time
            run.log.facts[FACT] = "off"
            what = "the graphics card" if isinstance(error, torch.OutOfMemoryError) else folder
            run.progress.note(
                f"feature cache: off, because {what} cannot take more ({getattr(error, 'strerror', None) or error}); "
                "features are computed at every use"
            )

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features of images that may be kept: the same numbers in whatever company an image comes."""
        chunks = torch.split(images, CHUNK)
        # One image is seen twice over: alone, small ones are convolved by another algorithm, which rounds otherwise.
        pieces = [self._compute(chunk.expand(max(len(chunk), 2), -1, -1, -1)) for chunk in chunks]
        return [(torch.cat(maps) if len(maps) > 1 else maps[0])[: len(images)] for maps in zip(*pieces)]

    def _compute(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images.to(_device(self.backbone)))
        return maps


def _device(backbone: Backbone) -> torch.device:
    return next(chain(backbone.parameters(), backbone.buffers())).device


def identity(backbone: Backbone) -> dict[str, str]:
    """Everything that features depend on, beside the image and its preparation: others may round otherwise."""
    device = _device(backbone)
    return {
        "backbone": backbone.name + " normalised" * getattr(backbone, "tokens", False),  # as they were not at first
        "stages": str([level.stage for level in backbone.levels]),
        "weights": backbone.digest,
        "precision": f"{backbone.precision.name} {backbone.precision.channels_last}",
        "device": device_name(device),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
    }


class FeatureCache:
    """Feature maps by image key, in bf16, in memory or below a folder; raises OSError where that is full or read-only.

    ``like``: one image's maps ``1 c y x``. ``identity``: all that the numbers depend on beside the image.
    """

    def __init__(self, like: Sequence[Tensor], identity: Mapping[str, str], folder: Path | None = None) -> None:
        self._device = like[0].device
        self._channels_last = [not map_.is_contiguous() for map_ in like]
        self._in_memory: dict[str, list[Tensor]] = {}
        self.on_card = False  # what lies in the folder is read once and then kept on the graphics card as well
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

    def put(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """Keep a batch's maps ``b c y x``, one for each level."""
        ordered = [map_.permute(0, 2, 3, 1) if last else map_ for map_, last in zip(maps, self._channels_last)]
        levels = [map_.to(torch.bfloat16).contiguous() for map_ in ordered]
        for i, key in enumerate(keys):
            rows = [level[i].clone() for level in levels]
            if self.folder is None or self.on_card:
                self._in_memory[key] = rows
            if self.folder is None:
                continue
            rows = [row.cpu() for row in rows]
            part = self.folder / f"{uuid.uuid4().hex}.part"
            try:  # not synced: what a power cut spoils, the digest shows
                part.write_bytes(save({str(n): row for n, row in enumerate(rows)}, {"sha256": _digest(rows)}))
                part.replace(self.folder / _file_name(key))
            finally:
                part.unlink(missing_ok=True)
            self._verified.add(key)

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """The maps ``b c y x`` of a batch, float32, in the memory order they were given in; None if one is missing."""
        images = [rows for rows in map(self._rows, keys) if rows is not None]
        if len(images) < len(keys):
            return None
        levels = [torch.stack(rows).to(self._device).float() for rows in zip(*images)]
        return [map_.permute(0, 3, 1, 2) if last else map_ for map_, last in zip(levels, self._channels_last)]

    def _rows(self, key: str) -> list[Tensor] | None:
        """One image's maps; a file is digested when it is first read."""
        if self.folder is None or key in self._in_memory:
            return self._in_memory.get(key)
        try:
            with safe_open(self.folder / _file_name(key), framework="pt") as file:
                rows = [file.get_tensor(str(n)) for n in range(len(self._channels_last))]
                if key not in self._verified and _digest(rows) != (file.metadata() or {}).get("sha256"):
                    return None
        except (OSError, SafetensorError):
            return None
        self._verified.add(key)
        if self.on_card:
            try:
                rows = self._in_memory[key] = [row.to(self._device) for row in rows]
            except torch.OutOfMemoryError:
                self.on_card = False
        return rows


def available_memory() -> int:
    """Bytes of memory that a process may still take: what the machine has left, or a container's limit leaves."""
    available = [4 * 1024**3]  # where the system does not say: a small machine's
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or available
    # Of either version of cgroups.
    for root, limit, used in (("", "max", "current"), ("memory", "limit_in_bytes", "usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            most, taken = (int(Path("/sys/fs/cgroup", root, f"memory.{name}").read_text()) for name in (limit, used))
            available.append(most - taken)
    return max(min(available), 0)


def _file_name(key: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.features"


def _digest(rows: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(str([tuple(row.shape) for row in rows]).encode())
    for row in rows:
        digest.update(row.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
