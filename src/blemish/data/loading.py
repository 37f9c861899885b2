"""Prepared training images: decoded once, in parallel, kept in memory within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blemish.contract import Batch
from blemish.data.preparation import Preparation
from blemish.data.samples import Sample
from blemish.run import Progress

BUDGET = 2 * 1024**3


class PreparedImages:
    """Implements ``contract.Images`` over files."""

    samples: tuple[Sample, ...]
    skipped: tuple[tuple[Path, str], ...]
    sizes: tuple[tuple[int, int], ...]

    def __init__(
        self,
        samples: Sequence[Sample],
        preparation: Preparation,
        workers: int | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        budget: int = BUDGET,
    ) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        """How many images there are."""
        raise NotImplementedError

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, in that order."""
        raise NotImplementedError

    def subset(self, indices: Sequence[int]) -> PreparedImages:
        """Some of the images, sharing the memory."""
        raise NotImplementedError


def fitted_scale(samples: Sequence[Sample], workers: int | None = None) -> int:
    """``full_scale`` over the 16-bit images among ``samples``: to be put into the ``Preparation`` before fitting."""
    raise NotImplementedError
