"""Prepared training images: decoded once, in parallel, and kept in memory as far as a budget reaches.

Every file is decoded when the set is built, because a damaged one has to be named before learning starts, not in its
middle; what fits the budget stays, so that later epochs decode nothing. What does not fit is decoded again, in parallel
within each batch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from blemish.contract import Batch
from blemish.data.images import decode, read_bytes, read_header, white_level
from blemish.data.preprocessing import Preprocessing, stacked
from blemish.data.samples import Sample
from blemish.errors import DataError, ImageError
from blemish.run import Progress, Silent

BUDGET = 2 * 1024**3
"""Bytes of prepared pixels kept: some 11,000 colour images of 256 px, or three times as many grey ones."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """One image: ``h w c`` as ``Preprocessing.resized`` gave it, or without a row beyond the budget, and its key."""

    sample: Sample
    pixels: npt.NDArray[Any]
    key: str


class PreparedImages:
    """Training images at the network's input size, by index: implements ``contract.Images`` over files.

    Args:
        samples: which images; their order is kept.
        preparation: how they are brought to the input size.
        workers: threads that decode; as many as this process may use cores, unless given.
        strict: fail on the first file that cannot be read, instead of skipping it.
        progress: told of the decoding, and of each skipped file.
        budget: bytes of prepared pixels to keep in memory.

    Attributes:
        skipped: path and reason of each file that cannot be read.

    Raises:
        ImageError: ``strict``, and a file cannot be read.
        DataError: no file can be read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preparation: Preprocessing,
        *,
        workers: int | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        budget: int = BUDGET,
    ) -> None:
        self.preparation = preparation
        self._workers = workers if workers is not None else usable_cores()
        kept: list[_Prepared] = []
        skipped: list[tuple[Path, str]] = []
        progress = progress or Silent()
        # Closed at once when a file or the user stops it, so that the rest is not decoded for nothing.
        with contextlib.closing(_in_parallel(self._attempt, samples, self._workers)) as attempts:
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
        self._kept = tuple(kept)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        """How many images there are, skipped ones left out."""
        return len(self._kept)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What is known of each image, skipped ones left out."""
        return tuple(kept.sample for kept in self._kept)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each image: a digest of its content and preparation."""
        return tuple(kept.key for kept in self._kept)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, in that order.

        Raises:
            DataError: a file beyond the budget has vanished or changed since the set was built.
        """
        chosen = [self._kept[index] for index in indices]
        missing = list(dict.fromkeys(image for image in chosen if not len(image.pixels)))
        again = dict(zip(missing, _in_parallel(self._prepare, [image.sample for image in missing], self._workers)))
        for image, now in again.items():
            if now.key != image.key:
                raise DataError(f"{image.sample.path} changed while it was being learnt from: start again.")
        pixels = [again.get(image, image).pixels for image in chosen]
        return Batch(stacked(pixels), tuple(image.key for image in chosen))

    def subset(self, indices: Sequence[int]) -> PreparedImages:
        """The images at ``indices`` as a set of their own, sharing the memory: for holding out and cross-fitting."""
        part = copy.copy(self)
        part._kept = tuple(self._kept[index] for index in indices)
        part.skipped = ()
        return part

    def _attempt(self, sample: Sample) -> _Prepared | ImageError:
        try:
            return self._prepare(sample)
        except ImageError as error:
            return error

    def _prepare(self, sample: Sample) -> _Prepared:
        content = read_bytes(sample.path)
        image = decode(content, str(sample.path))
        key = hashlib.sha256(content + self.preparation.digest.encode()).hexdigest()
        try:
            return _Prepared(sample, self.preparation.resized(image), key)
        except ImageError as error:
            raise ImageError(f"{sample.path}: {error}") from error


def fitted_white_level(samples: Sequence[Sample], workers: int | None = None) -> int:
    """The white level of the 16-bit images among ``samples``, 255 without any: goes into ``Preprocessing``.

    Files that cannot be read are left to ``PreparedImages``.
    """
    brightest = _in_parallel(_brightest_of_16_bits, samples, workers if workers is not None else usable_cores())
    return white_level(max(brightest, default=0))


def usable_cores() -> int:
    """How many cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _brightest_of_16_bits(sample: Sample) -> int:
    try:
        if read_header(sample.path).bits == 16:
            return int(decode(read_bytes(sample.path), str(sample.path)).pixels.max())
    except ImageError:
        pass
    return 0


def _in_parallel(work: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[R, None, None]:
    """``work`` over ``items``, in order. Threads: Pillow decodes and resizes without holding the interpreter."""
    if workers < 2 or len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        yield from pool.map(work, items)  # closing this cancels what has not begun
