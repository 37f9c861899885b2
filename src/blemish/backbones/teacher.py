"""The backbone as methods see it while learning: frozen, without gradient, the same numbers every time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from blemish.backbones.cache import FeatureCache, available_memory
from blemish.contract import Backbone, Batch, Images
from blemish.run import Run

CHUNK = 8
"""Images whose features are computed at once, kept or not: in larger company some processors round otherwise
(EfficientNet-Lite0 on one thread: a thousandth of the numbers of 16 images differs from those of twice 8)."""

MEMORY_SHARE, DISK_SHARE = 0.25, 0.5
"""Of the memory available, or of a disk's free space, how much features may take unless another budget is given."""

FACT = "feature cache"


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
        kept = None if self._cache is None else self._cache.get(given.keys, self._device)
        return self._features(given.images) if kept is None else kept

    def keep_features(
        self, sets: Sequence[Images], run: Run, folder: Path | None = None, budget: int | None = None
    ) -> None:
        """See every image once and keep its features, where they fit; says what was decided and why.

        Where they do not fit, or the disk turns out to be full, features are computed whenever they are asked for: the
        same numbers, later. The backbone's precision must not change afterwards.

        Args:
            sets: the images, all of one size.
            run: told of the decision; what it was is put down in its log.
            folder: keep them on disk, for later fits too; in memory by default.
            budget: bytes; by default a quarter of the available memory, or half of the disk's free space.
        """
        count = sum(len(images) for images in sets)
        if count == 0:
            return
        first = next(images for images in sets if len(images)).batch([0])
        like = self._features(first.images)
        try:
            cache = FeatureCache(like, identity(self.backbone), folder)
            self._cache = cache if self._has_room(cache, count, run, folder, budget) else None
            if self._cache is not None:
                self._fill(self._cache, sets, run)
        except OSError as error:
            self._cache = None
            run.log.facts[FACT] = "off"
            run.progress.note(
                f"feature cache: off, because {folder} cannot take more ({error.strerror or error}); "
                "features are computed at every use"
            )

    def _has_room(self, cache: FeatureCache, count: int, run: Run, folder: Path | None, budget: int | None) -> bool:
        needed = count * cache.bytes_each
        if cache.folder is None:
            place, limit, why = "memory", int(MEMORY_SHARE * available_memory()), "a quarter of the memory available"
        else:
            place, why = str(folder), "half of the disk's free space"
            limit = int(DISK_SHARE * shutil.disk_usage(cache.folder).free) + cache.taken()
        if budget is not None:
            limit, why = budget, "the budget given"
        reason = f"{count} images of {_size(cache.bytes_each)} make {_size(needed)}; {why} is {_size(limit)}"
        if needed > limit:
            hint = "; a folder on a disk may hold them (--cache DIR)" if folder is None else ""
            run.log.facts[FACT] = "off"
            run.progress.note(f"feature cache: off: {reason}{hint}")
            return False
        run.log.facts[FACT] = "memory" if folder is None else "disk"
        run.progress.note(f"feature cache: in {place}: {reason}")
        return True

    def _fill(self, cache: FeatureCache, sets: Sequence[Images], run: Run) -> None:
        chunks = [
            (images, range(start, min(start + CHUNK, len(images))))
            for images in sets
            for start in range(0, len(images), CHUNK)
        ]
        for images, indices in run.progress.track(chunks, "features of the training images"):
            batch = images.batch(indices)
            if not cache.holds(batch.keys):
                cache.put(batch.keys, self._features(batch.images))

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features of images that may be kept: the same numbers in whatever company an image comes.

        A single image is seen twice over, because torch convolves small ones by another algorithm when they are
        alone, and that rounds otherwise.
        """
        chunks = torch.split(images, CHUNK)
        pieces = [self._compute(chunk.expand(max(len(chunk), 2), -1, -1, -1)) for chunk in chunks]
        joined = [torch.cat(maps) for maps in zip(*pieces)] if len(pieces) > 1 else pieces[0]
        return [map_[: len(images)] for map_ in joined]

    def _compute(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images.to(self._device))
        return maps

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters()).device


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
