"""One pass over the training images, which progress shows, and what makes them too few or too alike to learn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from blemish.contract import Batch, Images, Teacher
from blemish.errors import ConfigError, DataError
from blemish.run import Run

BATCH = 16  # images described at once


@dataclass(frozen=True)
class Subset:
    """Those of ``images`` at ``order``: implements ``contract.Images``."""

    images: Images
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def parts(self) -> list[int]:
        parts = self.images.parts
        return [parts[index] for index in self.order]

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.images.batch([self.order[index] for index in indices])


def hold_out(images: Images, share: float, run: Run) -> tuple[list[int], list[int]]:
    """Indices of images held out, those of a ``share`` of the parts, and of all others, both in a drawn order."""
    of_part: dict[int, list[int]] = {}
    for index, part in enumerate(images.parts):
        of_part.setdefault(part, []).append(index)
    shuffled = [of_part[number] for number in run.permutation(len(of_part), "images held out")]
    count = int(len(shuffled) * share)
    return [i for one in shuffled[:count] for i in one], [i for one in shuffled[count:] for i in one]


def batches(images: Images, run: Run, title: str, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """All ``images``, or those at ``order``, a few at a time."""
    indices = iter(run.progress.track(range(len(images)) if order is None else order, title))
    while chosen := list(islice(indices, BATCH)):
        yield images.batch(chosen)


def image_vectors(images: Images, teacher: Teacher, run: Run, order: Sequence[int] | None = None) -> list[Tensor]:
    """``n c``, a level each: the means of each channel over the whole map."""
    described = batches(images, run, "describing images", order)
    parts = [[map_.mean(dim=(2, 3)) for map_ in teacher(batch)] for batch in described]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def check_number(name: str, images: Images, least: int, what: str) -> None:
    """A DataError, in words, where a method that estimates ``what`` is given fewer than ``least`` images."""
    if len(images) < least:
        raise DataError(
            f"{name} estimates {what} and was given {len(images)} images, where it needs at least {least} (and some "
            "tens to be of use): add good images, or use patchcore, which can learn from one"
        )


def check_memory(name: str, does: str, needed: int, free: int, way_out: str) -> None:
    """A ConfigError, in words, where what a method ``does`` takes more bytes than are free."""
    if needed > free:
        amounts = f"which takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        raise ConfigError(f"{name} {does}, {amounts}: {way_out}")


def check_spread(name: str, spread: float, images: Images) -> None:
    """A DataError, in words, where the ``spread`` over all that was learned is 0: images without any difference."""
    if not spread > 0:
        raise DataError(
            f"{name} learns how good images differ, and in its features the {len(images)} given do not: copies of one "
            "picture, or blank ones? Give photographs of several good parts, or use patchcore"
        )
