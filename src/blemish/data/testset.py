"""Test sets and their masks. Only evaluation and the bench may import this module: a fit cannot peek."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class TestSample:
    """One test image with what is true of it; ``mask`` is None for good images and where no outline is known."""

    __test__: ClassVar[bool] = False

    path: Path
    anomalous: bool
    kind: str
    group: str
    mask: Path | None


@dataclass(frozen=True)
class TestSet:
    """The images a model is judged on."""

    __test__: ClassVar[bool] = False

    name: str
    root: Path
    samples: tuple[TestSample, ...]
    notes: tuple[str, ...] = ()


def open_test_set(data: Path) -> TestSet:
    """The test images of a layout folder (``test/good``, ``test/<kind>``, ``ground_truth/<kind>``) or of a manifest."""
    raise NotImplementedError


def load_mask(sample: TestSample, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the image is defective, bool ``h w`` at its original ``size`` (height, width)."""
    raise NotImplementedError
