"""What people look at: maps over pictures on one fixed scale for each model, legends, contact sheets.

Signatures first; drawing follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from blemish.inspection.regions import Region


@dataclass(frozen=True)
class Scale:
    """One model's colours: transparent up to ``threshold``, the last colour from ``top`` on."""

    threshold: float
    top: float

    def layer(self, heatmap: ArrayLike) -> NDArray[np.uint8]:
        """Colours and opacity ``h w 4``."""
        raise NotImplementedError


def fixed_scale(threshold: float, good_maxima: ArrayLike) -> Scale:
    """The scale that follows from calibration: the map's threshold and the highest map values of good images."""
    raise NotImplementedError


def overlay(
    image: NDArray[np.uint8],
    heatmap: ArrayLike,
    scale: Scale,
    regions: Sequence[Region] = (),
    truth: ArrayLike | None = None,
    zoom: int = 1,
) -> Image.Image:
    """``image`` (``h w 3``) under the map's colours, regions outlined."""
    raise NotImplementedError


def legend(
    scale: Scale, sentence: str, ticks: Sequence[tuple[float, str]] = (), truth: bool = False, width: int = 480
) -> Image.Image:
    """What the colours and lines mean."""
    raise NotImplementedError


def contact_sheet(
    tiles: Sequence[tuple[Image.Image, str]], columns: int = 5, tile: tuple[int, int] = (220, 220), title: str = ""
) -> Image.Image:
    """Many pictures with captions on one page."""
    raise NotImplementedError


def png_bytes(image: Image.Image) -> bytes:
    """``image`` as a PNG file."""
    raise NotImplementedError


def data_uri(image: Image.Image) -> str:
    """``image`` as a ``data:`` address."""
    raise NotImplementedError


def save_heatmap(path: str | Path, heatmap: ArrayLike) -> None:
    """The raw map as a file: 32-bit TIFF or ``.npy``, by the suffix."""
    raise NotImplementedError
