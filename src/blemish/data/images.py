"""Reading one image, whatever its format, into RGB pixels of known depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Raster:
    """RGB pixels ``h w 3`` (uint8, uint16 or float32 in [0, 1]); ``bits`` 8, 16 or 32."""

    pixels: npt.NDArray[Any]
    bits: int
    grey: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(source: Path | str | bytes | Image.Image | npt.NDArray[Any]) -> Raster:
    """The image as RGB pixels."""
    raise NotImplementedError


def full_scale(rasters: Iterable[Raster]) -> int:
    """The smallest 2^n - 1 (n from 8 to 16) not below the largest value of the 16-bit images; 255 without any."""
    raise NotImplementedError
