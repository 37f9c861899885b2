"""Overlays: a map's colours over the picture, on one fixed scale per model; regions outlined, the truth dashed.

Up to the model's threshold the picture is left exactly as it is; above it a value has one colour whatever the image.
The ramp grows lighter all the way, so that it stands out on grey and brown and reads alike with any colour blindness.
Outlines are white within black: colour never speaks alone.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from blemish.errors import ConfigError, DataError
from blemish.inspection.regions import Region, checked_map, fill_holes, label

LINE, CASING, TRUTH = (255, 255, 255), (0, 0, 0), (90, 220, 255)
_ANCHORS = (
    *((40, 15, 130), (110, 35, 185), (175, 40, 165), (220, 65, 125)),
    *((245, 112, 75), (253, 172, 50), (250, 235, 60)),
)
_STEPS = 256
_RING = 16  # a ring's radius is this part of the picture's longer side
_DASH = 6  # in line widths
_positions = np.linspace(0, len(_ANCHORS) - 1, _STEPS)
_channels = [np.interp(_positions, range(len(_ANCHORS)), channel) for channel in zip(*_ANCHORS)]
# Colours and opacities, ``256 4``: the defect must stay visible under its colour.
RAMP = np.stack([*_channels, 255 * np.linspace(0.45, 0.70, _STEPS)], axis=1).round().astype(np.uint8)


@dataclass(frozen=True)
class Scale:
    """One model's colours: the picture as it is up to and including ``threshold``, the last colour from ``top`` on."""

    threshold: float
    top: float

    def __post_init__(self) -> None:
        # Maps are float32: the two ends must differ there too.
        if not (math.isfinite(self.threshold) and np.float32(self.threshold) < np.float32(self.top) < math.inf):
            raise ConfigError(
                f"a scale from {self.threshold} to {self.top} was given; two finite values are needed, the second "
                "one higher: fixed_scale() finds them"
            )

    def layer(self, heatmap: ArrayLike) -> NDArray[np.uint8]:
        """What lies over the picture: red, green, blue and opacity, ``h w 4``, all 0 up to the threshold."""
        values = checked_map(heatmap)
        colours = np.zeros((*values.shape, 4), dtype=np.uint8)
        above = values > np.float32(self.threshold)
        position = (values[above].astype(np.float64) - self.threshold) / (self.top - self.threshold)
        colours[above] = RAMP[np.clip(position * _STEPS, 0, _STEPS - 1).astype(np.intp)]
        return colours


def fixed_scale(threshold: float, normal_maxima: ArrayLike) -> Scale:
    """The scale that follows from calibration alone, from the largest map values of its images.

    The top lies above the threshold by twice the threshold's distance from their median or, where that is unknown or
    nothing, by half the threshold's size (or 1).
    """
    maxima = np.asarray(normal_maxima, dtype=np.float64).ravel()
    if not (math.isfinite(threshold) and np.isfinite(maxima).all()):
        raise ConfigError("a scale needs a finite threshold and finite maps of good images: calibrate the model again")
    distance = threshold - float(np.median(maxima)) if maxima.size else 0.0
    if distance <= 1e-3 * abs(threshold):
        distance = abs(threshold) / 4 or 0.5
    return Scale(float(threshold), float(threshold + 2 * distance))


def overlay(
    image: NDArray[np.uint8],
    heatmap: ArrayLike,
    scale: Scale,
    regions: Sequence[Region] = (),
    truth: ArrayLike | None = None,
    *,
    zoom: int = 1,
    spot: tuple[int, int] | None = None,
) -> Image.Image:
    """``image``, RGB uint8 ``h w 3``, under the colours of its map ``h w``, each pixel ``zoom`` by ``zoom`` ones.

    Lines lie just outside of ``regions``, those of ``heatmap`` above the scale's threshold; ``truth``, a mask ``h w``,
    is outlined in dashed light blue, and the pixel ``spot`` (x, y) is ringed.
    """
    values = checked_map(heatmap)
    if image.shape != (*values.shape, 3) or image.dtype != np.uint8:
        raise DataError(
            f"an image {image.shape} of {image.dtype} was given with a map {values.shape}; an RGB image "
            f"{(*values.shape, 3)} of uint8 is needed"
        )
    if truth is not None and np.shape(truth) != values.shape:
        raise DataError(f"a mask {np.shape(truth)} was given with a map {values.shape}: make them equal")
    if zoom < 1:
        raise ConfigError(f"zoom {zoom}: a whole number, 1 or more, is needed")
    layer = scale.layer(values)
    picture, above = image.copy(), layer[..., 3] > 0  # colours as floats take memory: only where they are needed
    opacity = layer[above, 3:].astype(np.float32) / 255
    picture[above] = (opacity * layer[above, :3] + (1 - opacity) * image[above]).round().astype(np.uint8)
    picture = _magnified(picture, zoom)
    width = max(1, round(max(picture.shape[:2]) / 250))  # two pixels of 400: one is lost on brushed metal
    if regions:
        labels, _ = label(above)
        outlined = np.isin(labels, [labels[region.peak[::-1]] for region in regions])
        inside = _magnified(fill_holes(outlined), zoom)
        for colour in (LINE, CASING):
            grown = _grown(inside, width)
            picture[grown & ~inside] = colour
            inside = grown
    if truth is not None:
        inside = _magnified(np.asarray(truth) > 0, zoom)
        rows, columns = np.nonzero(_grown(inside, width) & _grown(~inside, width, beyond=True))
        # Boundaries run along rows and columns of pixels, so on each of them row + column counts its steps.
        is_blue = (rows + columns) // (_DASH * width) % 2 == 0
        picture[rows, columns] = np.where(is_blue[:, None], TRUTH, CASING)
    drawn = Image.fromarray(picture)
    if spot is not None:
        x, y, radius = zoom * (spot[0] + 0.5), zoom * (spot[1] + 0.5), max(drawn.size) / _RING
        for colour, line in ((CASING, 3 * width), (LINE, width)):
            outer = radius + line / 2
            box = (x - outer, y - outer, x + outer, y + outer)
            ImageDraw.Draw(drawn).ellipse(box, outline=colour, width=line)
    return drawn


def _grown(mask: NDArray[np.bool_], radius: int, beyond: bool = False) -> NDArray[np.bool_]:
    """Where ``mask``, which is ``beyond`` outside of the picture, holds within a square of that radius."""
    for _ in range(2):
        padded = np.pad(mask, ((radius + 1, radius), (0, 0)), constant_values=beyond)
        counts = np.cumsum(padded, axis=0, dtype=np.int32)
        mask = (counts[2 * radius + 1 :] > counts[: -2 * radius - 1]).T
    return mask


def _magnified(array: NDArray[Any], zoom: int) -> NDArray[Any]:
    return array.repeat(zoom, axis=0).repeat(zoom, axis=1)


def data_uri(image: Image.Image, file_format: str = "PNG", **options: Any) -> str:
    """``image`` as a ``data:`` address, to stand inside an HTML file; ``options`` are those of Pillow's ``save``."""
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
