"""From pixels to what a network is given, and back from its map to the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from blemish.data.images import Raster

Family = Literal["stretch", "crop", "opencv", "letterbox"]


@dataclass(frozen=True)
class Preparation:
    """How images are brought to the network's input size."""

    family: Family = "stretch"
    size: int | tuple[int, int] = 256
    crop: int | None = None
    full_scale: int = 255

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what ``prepare`` gives."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """A short digest of every setting."""
        raise NotImplementedError

    def prepare(self, raster: Raster) -> Tensor:
        """``3 h w``, float32 in [0, 1]."""
        raise NotImplementedError

    def prepare_mask(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """``mask`` at the input size, nearest pixel, same geometry as ``prepare``."""
        raise NotImplementedError

    def to_original(self, anomaly_map: Tensor | npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """A map ``h w`` at the input size, brought back to the original ``size`` (height, width)."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model file."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preparation:
        """What ``to_dict`` gave, back."""
        raise NotImplementedError
