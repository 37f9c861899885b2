"""Drawing on pixel arrays: a layer of colours, the double line around what was found, dashes around what was marked.

Lines are drawn pixel by pixel rather than by a drawing library: the double line lies wholly outside of what it
surrounds, and dashes have one length whatever the direction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from blemish.inspection.regions import Polygon, trace

Colour = tuple[int, int, int]

LINE: Colour = (255, 255, 255)
CASING: Colour = (0, 0, 0)
TRUTH: Colour = (90, 220, 255)

_DASH = 6  # in line widths


def blended(image: NDArray[np.uint8], layer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of ``image`` under ``layer``; where that is transparent, unchanged to the bit."""
    picture = image.copy()
    covered = layer[..., 3] > 0
    over, under = layer[covered].astype(np.float32), image[covered].astype(np.float32)
    opacity = over[:, 3:] / 255
    picture[covered] = (opacity * over[:, :3] + (1 - opacity) * under).round().astype(np.uint8)
    return picture


def draw_line_around(picture: NDArray[np.uint8], inside: NDArray[np.bool_], width: int) -> None:
    """Draw a white line just outside of ``inside``, and a black one around it, on ``picture`` (``h w 3``)."""
    lined = _thickened(inside, width)
    cased = _thickened(lined, width)
    picture[cased & ~lined] = CASING
    picture[lined & ~inside] = LINE


def draw_ring(picture: NDArray[np.uint8], centre: tuple[float, float], radius: float, width: int) -> None:
    """Draw a white ring within two black ones about ``centre`` (x, y) on ``picture``: where to look, no more."""
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    off = np.abs(np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1]) - radius)
    picture[off < 1.5 * width] = CASING
    picture[off < 0.5 * width] = LINE


def _thickened(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """``mask`` and all pixels within ``width`` rows and columns of it."""
    near: NDArray[np.bool_] = ndimage.maximum_filter(mask, size=2 * width + 1)
    return near


def draw_dashes(picture: NDArray[np.uint8], truth: NDArray[np.bool_], zoom: int, width: int) -> None:
    """Draw light blue and black dashes along the boundary of ``truth`` on ``picture``, ``zoom`` times its size."""
    bottom, right = picture.shape[0] - 1, picture.shape[1] - 1
    marks = np.zeros((bottom + 1, right + 1), dtype=np.uint8)
    for polygon in trace(truth):
        columns, rows = _walked(polygon, zoom)
        blue = np.arange(columns.size) % (2 * _DASH * width) < _DASH * width
        # A corner at the far edge has no pixel of its own: the last one takes it.
        marks[np.minimum(rows, bottom), np.minimum(columns, right)] = 1 + blue
    marks = ndimage.maximum_filter(marks, size=1 + width)
    picture[marks == 1] = CASING
    picture[marks == 2] = TRUTH


def _walked(polygon: Polygon, zoom: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Columns and rows of every step along ``polygon``, in order, so that dashes have one length everywhere."""
    corners = zoom * np.array([*polygon, polygon[0]])
    steps = np.diff(corners, axis=0)
    lengths = np.abs(steps).sum(axis=1)
    moves = np.repeat(np.sign(steps), lengths, axis=0)
    points = corners[0] + np.cumsum(moves, axis=0)
    return points[:, 0], points[:, 1]
