"""Prepared training images: all decoded at once, to name damaged files before learning, and kept within a budget."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from blemish.contract import Batch
from blemish.data.images import DecodedImage, decode, read_bytes, read_header, read_image, white_level
from blemish.data.preprocessing import MAX_SIDE, Preprocessing, stacked
from blemish.data.roi import Roi, read_roi
from blemish.data.samples import Sample
from blemish.data.splits import joined_groups
from blemish.errors import ConfigError, DataError, ImageError
from blemish.run import Progress, Silent
from blemish.run.files import usable_cores

BUDGET = 2 * 1024**3
"""Bytes of prepared pixels kept: some 11,000 colour images of 256 px, or three times as many grey ones."""

LOOKED_AT = 200  # images at most whose sizes decide what size they are brought to
FOR_LEVEL = 20  # images whose mean takes the place of what lies outside a region of interest
SEEN = 8  # pixels: the width of a backbone's cell, in which a defect has to be seen

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class _Prepared:
    sample: Sample
    pixels: npt.NDArray[Any]  # t h w c: each window as Preprocessing.resized gave it, or none beyond the budget
    key: str  # a digest of content and preparation
    windows: int  # into which the image is cut: 1 without tiles


class PreparedImages:
    """Training images at the network's input size, by index: implements ``contract.Images`` over files.

    A file that cannot be read is an ImageError if ``strict``, else left out, with path and reason in ``skipped``.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preparation: Preprocessing,
        *,
        workers: int | None = None,  # threads that decode; as many as this process may use cores
        strict: bool = False,
        progress: Progress | None = None,
        budget: int = BUDGET,  # bytes of prepared pixels to keep in memory
    ) -> None:
        self.preparation, self._workers = preparation, workers
        kept: list[_Prepared] = []
        skipped: list[tuple[Path, str]] = []
        progress = progress or Silent()
        # Closed at once when a file or the user stops it, so that the rest is not decoded for nothing.
        with contextlib.closing(_in_parallel(self._prepared, samples, workers)) as attempts:
            tracked = progress.track(attempts, "decoding", total=len(samples))
            for sample, attempt in zip(samples, tracked):
                if isinstance(attempt, ImageError):
                    if strict:
                        raise attempt
                    skipped.append((sample.path, str(attempt)))
                    progress.note(f"skipped: {attempt}")
                    continue
                size = attempt.pixels.nbytes
                # The first that does not fit ends the keeping: which images are kept is then easy to tell.
                budget = budget - size if size <= budget else -1
                kept.append(attempt if budget >= 0 else replace(attempt, pixels=attempt.pixels[:0].copy()))
        if not kept:
            reason = f": {skipped[0][1]}" if skipped else "."
            raise DataError(f"none of the {len(samples)} images can be used{reason}")
        self._kept, self.skipped = kept, tuple(skipped)
        self._last: _Prepared | None = None  # of those beyond the budget: tiles are asked for one after the other

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(image.sample for image in self._kept)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(image.key for image in self._kept)

    @property
    def groups(self) -> list[str]:
        """The part of each image, by name; copies of one image are one part."""
        return joined_groups([sample.group for sample in self.samples], self.keys)

    @property
    def parts(self) -> list[int]:
        groups = self.groups
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        return [numbers[group] for group in groups]

    @property
    def windows(self) -> Windows:
        """What a method learns from: every tile of every image, or the images themselves."""
        return Windows(self, [(i, number) for i, image in enumerate(self._kept) for number in range(image.windows)])

    def middle(self, index: int) -> tuple[int, int]:
        """The place of the image, or of its middle tile, among the ``windows``."""
        return index, self._kept[index].windows // 2

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``; of one that is cut into tiles the middle one."""
        return self.at([self.middle(index) for index in indices])

    def to_judge(self, index: int) -> Tensor | DecodedImage:
        """An image as an inspector's stream takes it: prepared, or whole where it is to be cut into tiles."""
        if self.preparation.tiling is None:
            return self.batch([index]).images[0]
        return read_image(self._kept[index].sample.path)

    def at(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Windows by image and number; an error where a file beyond the budget has vanished or changed meanwhile."""
        chosen = [self._kept[index] for index, _ in places]
        last = self._last  # other threads may change it
        missing = list(dict.fromkeys(image for image in chosen if not len(image.pixels)))
        pixels = {image: image.pixels for image in chosen}
        if last is not None:
            pixels |= {image: last.pixels for image in missing if image.key == last.key}
            missing = [image for image in missing if image.key != last.key]
        again = _in_parallel(self._prepared, [image.sample for image in missing], self._workers)
        for image, attempt in zip(missing, list(again)):
            if isinstance(attempt, ImageError):
                raise attempt
            if attempt.key != image.key:
                raise DataError(f"{image.sample.path} changed while it was being learnt from: start again.")
            pixels[image] = attempt.pixels
            self._last = attempt if self.preparation.tiling is not None else None
        keys = tuple(image.key + f"/{number}" * (image.windows > 1) for image, (_, number) in zip(chosen, places))
        wanted = [pixels[image][number] for image, (_, number) in zip(chosen, places)]
        return Batch(lambda: stacked(wanted), keys)

    def subset(self, indices: Sequence[int]) -> PreparedImages:
        """The images at ``indices`` as a set of their own, sharing the memory: for holding out and cross-fitting."""
        part = copy.copy(self)
        part._kept, part.skipped = [self._kept[index] for index in indices], ()
        return part

    def _prepared(self, sample: Sample) -> _Prepared | ImageError:
        try:
            content = read_bytes(sample.path)
            image = decode(content, str(sample.path))
        except ImageError as error:
            return error
        try:
            pixels = np.stack([self.preparation.resized(window) for window in self.preparation.cut(image)])
        except ImageError as error:
            return ImageError(f"{sample.path}: {error}")
        key = hashlib.sha256(content + self.preparation.digest.encode()).hexdigest()
        return _Prepared(sample, pixels, key, len(pixels))


@dataclass(frozen=True)
class Windows:
    """Windows of prepared images by ``places``, image and number: implements ``contract.Images``."""

    images: PreparedImages
    places: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def parts(self) -> list[int]:
        parts = self.images.parts
        return [parts[image] for image, _ in self.places]

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.images.at([self.places[index] for index in indices])


def fitted_roi(include: Path | None, ignore: Path | None, samples: Sequence[Sample], white_level: int) -> Roi | None:
    """The region of interest of images of the first one's size, all else at their mean grey level inside."""
    if include is None and ignore is None:
        return None
    roi, levels = None, list[float]()
    for sample in samples[:: -(-len(samples) // FOR_LEVEL)]:
        try:
            image = read_image(sample.path)
        except ImageError:  # whoever reads them will say so
            continue
        roi = roi or read_roi(include, ignore, image.size)
        if image.size == roi.size:
            levels.append(image.pixels[roi.mask].mean() / {8: 255, 16: white_level, 32: 1}[image.bits])
    return None if roi is None else replace(roi, level=min(255, round(255 * sum(levels) / len(levels))))


def fitted_white_level(samples: Sequence[Sample], workers: int | None = None) -> int:
    """The white level of the 16-bit images among ``samples``, 255 without any; files that cannot be read are passed."""

    def brightest(sample: Sample) -> int:
        with contextlib.suppress(ImageError):
            if read_header(sample.path)[1] == 16:
                return int(read_image(sample.path).pixels.max())
        return 0

    return white_level(max(_in_parallel(brightest, samples, workers), default=0))


def fitting_size(
    samples: Sequence[Sample],
    limits: tuple[int, int],
    multiple: int,
    smallest_defect: float | None = None,
    tile: int | None = None,
) -> tuple[tuple[int, int], list[str]]:
    """Height and width to bring images to, and what a person should know of it.

    As many pixels as the images have in the median, but no fewer and no more than a square of a side in ``limits``; or
    so many that ``smallest_defect``, in original pixels, becomes ``SEEN`` pixels wide. The aspect is kept where it is
    the same in all images, to within a twentieth. Both sides are multiples of ``multiple``. Where images are cut into
    tiles of a side ``tile``, these are the images.
    """
    step = -(-len(samples) // LOOKED_AT)

    def size(sample: Sample) -> tuple[int, int]:
        with contextlib.suppress(ImageError):
            return read_header(sample.path)[0]
        return 0, 0

    sizes = np.array([found for found in _in_parallel(size, samples[::step], None) if min(found) > 0], dtype=float)
    if not len(sizes):  # whoever reads them will say so
        return (limits[0], limits[0]), []
    if smallest_defect is not None and smallest_defect > sizes.max():
        largest = f"{sizes[:, 1].max():g} x {sizes[:, 0].max():g}"
        raise ConfigError(f"a smallest defect of {smallest_defect:g} pixels is wider than the images, {largest}")
    sizes = sizes if tile is None else np.minimum(sizes, tile)
    height, width = np.median(sizes, axis=0)
    aspects = sizes[:, 0] / sizes[:, 1]
    shape = np.sqrt(np.median(aspects)) if aspects.max() < 1.05 * aspects.min() else 1.0
    own = math.sqrt(height * width)
    side = min(max(own if smallest_defect is None else own * SEEN / smallest_defect, limits[0]), limits[1])
    sides = [min(side * factor, MAX_SIDE) for factor in (shape, 1 / shape)]
    fitted = [max(1, int(side / multiple + 1e-6)) * multiple for side in sides]
    shrunk, notes = own / math.sqrt(fitted[0] * fitted[1]), []
    if smallest_defect is not None and smallest_defect / shrunk < 0.9 * SEEN:
        notes.append(
            f"a defect of {smallest_defect:g} pixels is {smallest_defect / shrunk:.1f} wide for the network, and "
            f"{SEEN} are needed: give --size {round(own * SEEN / smallest_defect)}, which takes longer"
        )
    elif smallest_defect is None and shrunk >= 2:
        notes.append(
            f"{width:g} x {height:g} becomes {fitted[1]} x {fitted[0]}: most defects narrower than about "
            f"{SEEN * shrunk:.0f} pixels are missed; --smallest-defect says what to find, or give a larger --size"
        )
    return (fitted[0], fitted[1]), notes


def _in_parallel(work: Callable[[T], R], items: Sequence[T], workers: int | None) -> Generator[R, None, None]:
    """``work`` over ``items``, in order. Threads: Pillow decodes and resizes without holding the interpreter."""
    workers = workers or usable_cores()
    if workers < 2 or len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        yield from pool.map(work, items)  # closing this cancels what has not begun
