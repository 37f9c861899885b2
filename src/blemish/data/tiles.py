"""Cutting a large image into overlapping tiles, and putting their maps together again.

A tile is prepared and judged as an image of its own, so it knows least of what lies at its border. Where tiles overlap
their maps are averaged, and each weighs the less the nearer its own border is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError

SMALLEST = 32  # pixels a side
Window = tuple[slice, slice]  # rows and columns of an image


@dataclass(frozen=True)
class Tiling:
    """Squares of ``side`` pixels that overlap by ``overlap`` or a little more, so that all are equally large.

    An image shorter than a side has tiles of its own height or width. A defect no wider than ``overlap`` lies in one
    tile as a whole.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < SMALLEST:
            raise ConfigError(f"tiles of {self.side} pixels: {SMALLEST} or more a side are needed")
        if not 0 <= self.overlap <= self.side // 2:
            raise ConfigError(f"tiles of {self.side} pixels cannot overlap by {self.overlap}: give 0 to half a tile")

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Where the tiles of an image of ``size`` (height, width) lie, row by row."""
        rows, columns = (self._starts(length) for length in size)
        height, width = (min(self.side, length) for length in size)
        return [(slice(top, top + height), slice(left, left + width)) for top in rows for left in columns]

    def blend(
        self, size: tuple[int, int], maps: Iterable[tuple[Window, NDArray[np.float32]]]
    ) -> NDArray[np.float32] | None:
        """The map of an image of ``size`` from those of its tiles: 0 where no tile was given, None for none at all."""
        vertical, horizontal = (self.weights(length) for length in size)
        blended = None
        for (rows, columns), map_ in maps:
            blended = np.zeros(size, np.float32) if blended is None else blended
            blended[rows, columns] += vertical[rows.start][:, None] * horizontal[columns.start] * map_
        return blended

    def weights(self, length: int) -> dict[int, NDArray[np.float32]]:
        """Along one side of an image: each tile's weights by its start. At every pixel those of all tiles sum to 1."""
        side, starts = min(self.side, length), self._starts(length)
        position = np.arange(side) + 0.5
        ramp = np.minimum(np.minimum(position, side - position), max(self.overlap, 1))
        total = np.zeros(length)
        for start in starts:
            total[start : start + side] += ramp
        return {start: (ramp / total[start : start + side]).astype(np.float32) for start in starts}

    def _starts(self, length: int) -> list[int]:
        side = min(self.side, length)
        count = 1 if side == length else -(-(length - self.overlap) // (side - self.overlap))
        starts: list[int] = np.linspace(0, length - side, count).round().astype(int).tolist()
        return starts
