"""From pixels to what a network is given, and back from its map to the picture.

Four ways to resize; which one a paper's figures were made with changes them (fine textures most):
* ``stretch``: straight to the input size, the aspect is not kept; bilinear with antialiasing (Pillow's).
* ``crop``: the shorter side to ``size``, then the middle ``crop`` square (224 of 256). What lies outside is not judged.
* ``opencv``: as ``stretch`` without antialiasing, in float64; fine texture turns into moire.
* ``letterbox``: the aspect is kept, the rest repeats the picture's border pixels (a flat colour would draw an edge).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.data.images import MAX_PIXELS, DecodedImage
from blemish.data.roi import Roi
from blemish.data.tiles import Tiling, Window
from blemish.errors import ConfigError, DataError, ImageError

if TYPE_CHECKING:  # an exported file is judged where there is no torch
    from torch import Tensor

MAX_SIDE = 4096
ResizeMode = Literal["stretch", "crop", "opencv", "letterbox"]

_WHITE_LEVELS = tuple((1 << bits) - 1 for bits in range(8, 17))
_STORED = {"resize": "family", "size": "size", "crop": "crop", "white_level": "full_scale"}  # names in model files


@dataclass(frozen=True)
class Preprocessing:
    """How images are brought to the network's input size; a ConfigError where the settings do not fit."""

    resize: ResizeMode = "stretch"
    size: int | tuple[int, int] = 256  # the input's side or (height, width); for crop the shorter side before cropping
    crop: int | None = None  # side of the middle square, for crop alone; None takes 7/8, the papers' 224 of 256
    white_level: int = 255  # of 16-bit images, clipped above it; 255: no deeper image was seen in training
    tiling: Tiling | None = None  # each tile of an image is then brought to that size, as an image of its own
    roi: Roi | None = None  # where images are judged; None for everywhere

    def __post_init__(self) -> None:
        if self.resize not in get_args(ResizeMode):
            raise ConfigError(f"preparation {self.resize!r} is unknown: choose {', '.join(get_args(ResizeMode))}")
        sides = self._sides if isinstance(self.size, int | tuple) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides):
            raise ConfigError(f"size {self.size}: one side or (height, width), of 1 to {MAX_SIDE} pixels, is needed")
        if self.white_level not in _WHITE_LEVELS:
            raise ConfigError(f"full_scale {self.white_level}: 255, 511, 1023 ... or 65535 is needed")
        if self.resize == "crop" and self.tiling is not None:
            raise ConfigError("the preparation 'crop' would leave gaps between tiles: use another")
        if self.resize != "crop":
            if self.crop is not None:
                raise ConfigError(f"crop {self.crop} goes with the preparation 'crop', not with {self.resize!r}")
        elif not isinstance(self.size, int):
            raise ConfigError(f"size {self.size}: the preparation 'crop' needs one number, the shorter side")
        elif not 1 <= self.input_size[0] <= self.size:
            raise ConfigError(f"crop {self.crop}: between 1 and the size, {self.size}, is needed")

    @property
    def _sides(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what ``prepare`` gives."""
        if self.resize != "crop":
            return self._sides
        side = round(self._sides[0] * 0.875) if self.crop is None else self.crop
        return side, side

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Which parts of an image of ``size`` are images to the network: tiles in which anything is judged, or all."""
        if self.tiling is None:
            return [(slice(0, size[0]), slice(0, size[1]))]
        windows = self.tiling.windows(size)
        return [window for window in windows if self.roi is None or self.roi.mask[window].any()]

    def cut(self, image: DecodedImage) -> list[DecodedImage]:
        """The image at each of its ``windows``, the region of interest respected; memory is taken for that alone."""
        covered = image if self.roi is None else self.roi.cover(image, self.white_level)
        return [replace(image, pixels=covered.pixels[window]) for window in self.windows(image.size)]

    def inside(self, window: int) -> npt.NDArray[np.bool_] | None:
        """Where the prepared window of that number is judged, ``h w`` at the input size; None for everywhere."""
        return None if self.roi is None else self.prepare_mask(self.roi.mask[self.windows(self.roi.size)[window]])

    def prepare(self, image: DecodedImage) -> Tensor:
        """``pixels`` as ``3 h w``, float32 in [0, 1]."""
        return stacked([self.pixels(image)])[0]

    def pixels(self, image: DecodedImage) -> npt.NDArray[Any]:
        """``resized`` of an image, or of one of those that ``cut`` gave for tiles.

        Raises what ``resized`` does, and an ImageError where the image has another size than the region of interest.
        """
        if self.roi is not None and self.tiling is None:
            image = self.roi.cover(image, self.white_level)
        return self.resized(image)

    def check(self, image: DecodedImage) -> None:
        """An ImageError where an image has 16 bits and none seen in training had, or its size does not fit."""
        if self.roi is not None and self.tiling is None:
            self.roi.check(image)
        if image.bits == 16 and self.white_level == 255 < (largest := int(image.pixels.max())):
            problem = f"a 16-bit image with values up to {largest}, but no training image held values above 255"
            raise ImageError(f"{problem}: convert it as the training images were, or fit on 16-bit images.")
        (rows, _), (columns, _) = self._placings(image.size)
        if rows * columns > MAX_PIXELS:
            size = f"an image of {image.size[1]} x {image.size[0]} pixels"
            raise ImageError(
                f"{size} is too long to be cropped: {columns} x {rows} at this size. Use another --resize."
            )

    def resized(self, image: DecodedImage) -> npt.NDArray[Any]:
        """``h w c`` at the input size, c = 1 for grey: uint8 where that loses nothing, else float32 in [0, 1].

        Raises what ``check`` does.
        """
        self.check(image)
        pixels = image.pixels[..., :1] if image.grey else image.pixels
        if image.bits == 16 and self.white_level == 255:
            pixels = pixels.astype(np.uint8)  # it holds no more than 8 bits: resized as those are
        elif image.bits == 16:
            pixels = np.minimum(pixels.astype(np.float32) / np.float32(self.white_level), np.float32(1))
        if self.resize == "opencv":  # pixel centres at half-integers, no antialiasing, float64 in between
            scaled = pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)
            for axis, (given, side) in enumerate(zip(image.size, self._sides)):
                position = (np.arange(side) + 0.5) * given / side - 0.5
                scaled = _read(scaled, position.clip(0, given - 1), given - 1, axis)
            return scaled.astype(np.float32)
        (rows, top), (columns, left) = self._placings(image.size)
        # Pillow's bilinear resize channel by channel: uint8 stays uint8.
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0)]
        height, width = self.input_size
        # Cut at once: of a long thin picture a small part is kept.
        box = (-left, -top, width - left, height - top) if self.resize == "crop" else (0, 0, columns, rows)
        resized = [np.asarray(plane.resize((columns, rows), Image.Resampling.BILINEAR).crop(box)) for plane in planes]
        content = np.stack(resized, axis=-1).clip(0, 255 if pixels.dtype == np.uint8 else 1)
        if self.resize == "letterbox":
            margins = ((top, height - rows - top), (left, width - columns - left), (0, 0))
            return np.pad(content, margins, mode="edge")
        return content

    def prepare_mask(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """``mask`` (``h w``) at the input size: the nearest pixel, placed as ``prepare`` places the image."""
        nearest, inside = [], []
        for (length, offset), side, original in zip(self._placings(mask.shape), self.input_size, mask.shape):
            positions = np.arange(side) - offset
            nearest.append(np.clip((positions + 0.5) * original / length, 0, original - 1).astype(np.int64))
            inside.append((positions >= 0) & (positions < length))
        prepared: npt.NDArray[np.bool_] = mask[np.ix_(*nearest)] & inside[0][:, None] & inside[1]
        return prepared

    def to_original(self, anomaly_map: Tensor | npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """A map ``h w`` at the input size, brought back to the original ``size`` (height, width), bilinear.

        Padding is left out. Outside a crop, where nothing is known, and outside the region of interest the map takes
        its smallest value. Of images cut into tiles, maps of tiles are brought back; an image's has its size already.

        Raises:
            DataError: the map does not have the input's size.
        """
        if isinstance(anomaly_map, np.ndarray):
            values = anomaly_map.astype(np.float32, copy=False)
        else:
            values = anomaly_map.detach().cpu().float().numpy()
        if self.tiling is not None and values.shape == size:
            return values
        if values.shape != self.input_size:
            raise DataError(f"a map of shape {values.shape} was given, {self.input_size} is needed")
        smallest = values.min()
        for axis, (length, offset) in enumerate(self._placings(size)):
            # Read linearly where the centres of the original pixels lie.
            side, available = size[axis], values.shape[axis]
            position = (np.arange(side) + 0.5) * length / side - 0.5 + offset
            last = min(available, offset + length) - 1
            values = _read(values, position.clip(max(0, offset), last), last, axis)
            unknown = np.flatnonzero((position < -0.5) | (position > available - 0.5))
            values[(slice(None), unknown) if axis else unknown] = smallest
        return values if self.roi is None or self.tiling is not None else self.roi.clear(values)

    def highest(self, anomaly_map: npt.NDArray[np.float32]) -> float:
        """The largest value of a map where images are judged."""
        bounded = anomaly_map if self.roi is None else self.to_original(anomaly_map, self.roi.size)
        return float(bounded.max())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model file."""
        size = self.size if isinstance(self.size, int) else list(self.size)
        plain: dict[str, Any] = {"family": self.resize, "size": size, "crop": self.crop, "full_scale": self.white_level}
        if self.tiling is not None:
            plain |= {"tile": self.tiling.side, "overlap": self.tiling.overlap}
        if self.roi is not None:
            plain["roi"] = self.roi.to_dict()
        return plain

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Preprocessing:
        """What ``to_dict`` gave, back; a ConfigError for an unknown name or value."""
        stored = dict(stored)
        tile, overlap, roi = (stored.pop(name, None) for name in ("tile", "overlap", "roi"))
        unknown = set(stored) - set(_STORED.values())
        if unknown:
            raise ConfigError(f"a preparation has no setting {', '.join(sorted(unknown))}")
        settings = {name: stored[key] for name, key in _STORED.items() if key in stored}
        if not isinstance(settings.get("size", 0), int):
            settings["size"] = tuple(settings["size"])
        settings["roi"] = None if roi is None else Roi.from_dict(roi)
        return cls(**settings, tiling=None if tile is None else Tiling(tile, overlap))

    def covered(self, size: tuple[int, int]) -> int:
        """Pixels that a picture of ``size`` has at the input's scale, margins left out and nothing cut off."""
        (rows, _), (columns, _) = self._placings(size)
        return rows * columns

    def _placings(self, size: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """How a picture of ``size`` lies in the input, vertically and horizontally: its length and offset there."""
        height, width = self._sides
        if self.resize == "crop":
            # The longer side is cut down to an integer and the middle rounded half to even, as torchvision does.
            shorter = min(size[0], size[1])
            lengths = [height if side == shorter else int(height * side / shorter) for side in size]
            top, left = (-round((length - self.input_size[0]) / 2) for length in lengths)
            return (lengths[0], top), (lengths[1], left)
        if self.resize == "letterbox":
            scale = min(height / size[0], width / size[1])
            rows, columns = (max(1, round(side * scale)) for side in size)
            return (rows, (height - rows) // 2), (columns, (width - columns) // 2)
        return (height, 0), (width, 0)


def _read(values: npt.NDArray[Any], positions: npt.NDArray[np.float64], last: int, axis: int) -> npt.NDArray[Any]:
    """``values`` read linearly at ``positions`` from 0 to ``last`` along an axis; never beyond the two next to it."""
    below = positions.astype(np.intp)
    weight = (positions - below).astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1 - axis))
    lower, upper = values.take(below, axis), values.take(np.minimum(below + 1, last), axis)
    is_near = weight < 0.5
    read: npt.NDArray[Any] = upper - lower
    read *= np.where(is_near, weight, weight - 1)
    read += np.where(is_near, lower, upper)
    return read


def stacked(prepared: Sequence[npt.NDArray[Any]]) -> Tensor:
    """What ``Preprocessing.resized`` gave for several images, as ``b 3 h w`` float32 in [0, 1]."""
    import torch

    if len({(array.dtype, array.shape) for array in prepared}) > 1:
        return torch.cat([stacked([array]) for array in prepared])
    joined = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2)
    scaled = joined.to(torch.float32).div_(255) if joined.dtype == torch.uint8 else joined
    return scaled.expand(-1, 3, -1, -1).contiguous()
