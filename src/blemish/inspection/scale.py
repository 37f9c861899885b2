"""One model's colours: what each map value looks like, on every image alike.

Up to the model's threshold a map is transparent, so good parts stay dark. Above it, a value has one colour whatever
the image: nothing is stretched to an image's own range.

The ramp goes from violet through pink and orange to yellow: parts are seldom violet or pink, so it stands out on grey
metal and brown wood alike. It grows lighter all the way, and blue falls while red and green rise, so that people with
any of the three colour blindnesses see the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError
from blemish.inspection.regions import checked_map

_ANCHORS = (
    *((40, 15, 130), (110, 35, 185), (175, 40, 165), (220, 65, 125)),
    *((245, 112, 75), (253, 172, 50), (250, 235, 60)),
)
_FAINTEST, _STRONGEST = 0.45, 0.70  # the defect must stay visible under its colour
_STEPS = 256


def _ramp() -> NDArray[np.uint8]:
    """The colours and opacities that a scale runs through, ``256 4``."""
    at = np.linspace(0, len(_ANCHORS) - 1, _STEPS)
    channels = [np.interp(at, range(len(_ANCHORS)), channel) for channel in zip(*_ANCHORS)]
    opacity = 255 * np.linspace(_FAINTEST, _STRONGEST, _STEPS)
    return np.stack([*channels, opacity], axis=1).round().astype(np.uint8)


RAMP = _ramp()


@dataclass(frozen=True)
class Scale:
    """One model's colours, fixed when it is calibrated.

    Attributes:
        threshold: up to and including this map value the picture is left as it is.
        top: from this map value on, the last colour.

    Raises:
        ConfigError: the two are not finite, or ``top`` does not lie above ``threshold``.
    """

    threshold: float
    top: float

    def __post_init__(self) -> None:
        # Maps are float32: the two ends must differ there too.
        if not (math.isfinite(self.threshold) and np.float32(self.threshold) < np.float32(self.top) < math.inf):
            raise ConfigError(
                f"a scale from {self.threshold} to {self.top} was given; two finite map values are needed, the second "
                "one higher: fixed_scale() finds them"
            )

    def layer(self, heatmap: ArrayLike) -> NDArray[np.uint8]:
        """What lies over the picture: red, green, blue and opacity, ``h w 4``, all 0 up to the threshold.

        Raises:
            DataError: the map is not a finite array ``h w``.
        """
        values = checked_map(heatmap)
        colours = np.zeros((*values.shape, 4), dtype=np.uint8)
        above = values > np.float32(self.threshold)
        place = (values[above].astype(np.float64) - self.threshold) / (self.top - self.threshold)
        colours[above] = RAMP[np.clip(place * _STEPS, 0, _STEPS - 1).astype(np.intp)]
        return colours


def fixed_scale(threshold: float, good_maxima: ArrayLike) -> Scale:
    """The scale that follows from calibration alone.

    The top lies as far above the threshold as twice the threshold's distance from what a good part usually shows
    (the median of ``good_maxima``): three times as far out as the usual good part's limit has the last colour.
    Where that distance is unknown or nothing, half the threshold's size (or 1) serves in its place.

    Args:
        threshold: the map value above which pixels are coloured.
        good_maxima: the highest map value of each good image that calibrated the model; may be empty.

    Raises:
        ConfigError: the threshold or one of the maxima is not finite.
    """
    maxima = np.asarray(good_maxima, dtype=np.float64).ravel()
    if not (math.isfinite(threshold) and np.isfinite(maxima).all()):
        raise ConfigError("a scale needs a finite threshold and finite maps of good images: calibrate the model again")
    distance = threshold - float(np.median(maxima)) if maxima.size else 0.0
    if distance <= 1e-3 * abs(threshold):
        distance = abs(threshold) / 4 or 0.5
    return Scale(float(threshold), float(threshold + 2 * distance))
