"""The backbone as methods see it while learning: frozen, without gradient, the same numbers every time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from blemish.backbones.cache import (
    DISK_SHARE,
    MEMORY_SHARE,
    DiskStore,
    Layout,
    MemoryStore,
    Store,
    available_memory,
    bytes_needed,
)
from blemish.contract import Backbone, Batch, Images
from blemish.run import Run

CHUNK = 8
"""Images whose features are computed at once, kept or not: in larger company some processors round otherwise
(EfficientNet-Lite0 on one thread: a thousandth of the numbers of 16 images differs from those of twice 8)."""

FACT = "feature cache"


class FrozenTeacher:
    """Gives the features of training images; implements ``blemish.contract.Teacher``.

    A ``Batch`` names its images by key and a bare tensor (noisy twins, elastic copies) does not, so only a batch's
    features can ever be kept. Features are computed on the backbone's device and stay there.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._store: Store | None = None

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        """Feature maps ``b c y x``, shallowest level first, float32 numbers that bf16 can hold."""
        if isinstance(given, Batch):
            return self._of_batch(given)
        return self._compute(given)

    def keep_features(
        self, sets: Sequence[Images], run: Run, folder: Path | None = None, budget: int | None = None
    ) -> None:
        """See every image once and keep its features, where they fit; says what was decided and why.

        Where they do not fit, or the disk turns out to be full, features are computed whenever they are asked for: the
        same numbers, later. The backbone's precision must not change afterwards.

        Args:
            sets: the images, all of one size.
            run: told of the decision; how it was taken is put down in its log.
            folder: keep them on disk, for later fits too; in memory by default.
            budget: bytes that they may take; by default a quarter of the available memory, or half of the disk's
                free space.
        """
        images = sum(len(part) for part in sets)
        if images == 0:
            return
        probe = self._seen(next(part for part in sets if len(part)).batch([0]).images)
        layouts = [Layout.of(map_) for map_ in probe]
        try:
            self._store = self._chosen(layouts, images, run, folder, budget)
            if self._store is not None:
                self._fill(self._store, sets, run)
        except OSError as error:
            self._store = None
            run.log.facts[FACT] = "off"
            run.progress.note(
                f"feature cache: off, because {folder} cannot take more ({error.strerror or error}); "
                "features are computed at every use"
            )

    def _chosen(
        self, layouts: Sequence[Layout], images: int, run: Run, folder: Path | None, budget: int | None
    ) -> Store | None:
        needed = bytes_needed(layouts, images)
        on_disk = None if folder is None else DiskStore(folder, layouts, identity(self.backbone))
        if on_disk is None:
            place, limit, why = "memory", int(MEMORY_SHARE * available_memory()), "a quarter of the memory available"
        else:
            place, why = str(folder), "half of the disk's free space"
            limit = int(DISK_SHARE * shutil.disk_usage(on_disk.folder).free) + on_disk.taken()
        if budget is not None:
            limit, why = budget, "the budget given"
        sum_ = f"{images} images of {_size(needed // images)} make {_size(needed)}; {why} is {_size(limit)}"
        if needed > limit:
            hint = "; a folder on a disk may hold them (--cache DIR)" if on_disk is None else ""
            run.log.facts[FACT] = "off"
            run.progress.note(f"feature cache: off: {sum_}{hint}")
            return None
        run.log.facts[FACT] = "memory" if on_disk is None else "disk"
        run.progress.note(f"feature cache: in {place}: {sum_}")
        return MemoryStore(layouts, images) if on_disk is None else on_disk

    def _fill(self, store: Store, sets: Sequence[Images], run: Run) -> None:
        chunks = [
            (part, range(start, min(start + CHUNK, len(part))))
            for part in sets
            for start in range(0, len(part), CHUNK)
        ]
        for part, indices in run.progress.track(chunks, "features of the training images"):
            batch = part.batch(indices)
            if not store.holds(batch.keys):
                store.put(batch.keys, self._seen(batch.images))

    def _of_batch(self, batch: Batch) -> list[Tensor]:
        if self._store is not None:
            device = next(self.backbone.parameters()).device
            found = self._store.get(batch.keys, device)
            if found is not None:
                return found
        return self._seen(batch.images)

    def _seen(self, images: Tensor) -> list[Tensor]:
        """Features of images that may be kept: the same numbers in whatever company an image comes.

        A single image is seen twice over, because torch convolves small ones by another algorithm when they are
        alone, and that rounds otherwise.
        """
        chunks = torch.split(images, CHUNK)
        pieces = [self._compute(chunk.expand(max(len(chunk), 2), -1, -1, -1)) for chunk in chunks]
        if len(pieces) > 1:
            return [torch.cat(maps)[: len(images)] for maps in zip(*pieces, strict=True)]
        return [map_[: len(images)] for map_ in pieces[0]]

    def _compute(self, images: Tensor) -> list[Tensor]:
        device = next(self.backbone.parameters()).device
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images.to(device))
        return maps


def identity(backbone: Backbone) -> dict[str, str]:
    """Everything that features depend on, beside the image and its preparation.

    Versions, processor and threads too: others may round otherwise, and then a fit would not repeat to the bit.
    """
    device = next(backbone.parameters()).device
    return {
        "backbone": backbone.name,
        "stages": str([level.stage for level in backbone.levels]),
        "weights": backbone.digest,
        "precision": f"{backbone.precision.name} {backbone.precision.channels_last}",
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
    }


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
