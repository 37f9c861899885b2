"""The photographs that the demo set is cut from, and where its crops lie.

They travel inside the scikit-image wheel and are read from its files: nothing is downloaded. Each is divided into a
training part and a test part with ``MARGIN`` rows between them that neither uses, each part into rectangles, and crops
are taken within rectangles: crops of one rectangle overlap and share a group, crops of two never share a pixel.
"""

from __future__ import annotations

import importlib.resources
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blemish.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CROP = 96
"""Side of a crop, in pixels of the photograph."""
MARGIN = 16
"""Rows of the photograph between the training part and the test part, used by neither."""

PHOTOGRAPH = 512  # width and height of all four
TEST_ROWS = 196

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in the photograph; right and bottom are outside the box."""


@dataclass(frozen=True)
class Photograph:
    """Where a category of the demo set comes from.

    Attributes:
        file: its name among scikit-image's data files.
        shows: what is on it.
        licence: as scikit-image states it.
        source: where scikit-image has it from.
        test: the end of the photograph that the test crops are cut from.
        foreign: the category whose texture serves as foreign matter here.
        spill: the colour of a dark stain in it.
        boldness: how much larger and stronger its defects are painted than those of the brick wall.
        pit: what a hole shows: the dark inside of the thing, or a light ground behind it.
    """

    file: str
    shows: str
    licence: str
    source: str
    test: Literal["top", "bottom"]
    foreign: str
    spill: tuple[float, float, float]
    boldness: float
    pit: Literal["dark", "light"]


DEMO_CATEGORIES: dict[str, Photograph] = {
    "brick": Photograph(
        file="brick.png",
        shows="a brick wall",
        licence="CC0",
        source="skimage.data.brick, from CC0Textures Bricks25",
        test="top",
        foreign="gravel",
        spill=(0.12, 0.12, 0.12),
        boldness=1.0,
        pit="dark",
    ),
    "grass": Photograph(
        file="grass.png",
        shows="a lawn",
        licence="CC0",
        source="skimage.data.grass, from DeviantArt, linolafett, Grass 01",
        test="bottom",
        foreign="brick",
        spill=(0.1, 0.1, 0.1),
        boldness=1.6,
        pit="dark",
    ),
    "gravel": Photograph(
        file="gravel.png",
        shows="gravel",
        licence="CC0",
        source="skimage.data.gravel, from CC0Textures Gravel04",
        test="bottom",
        foreign="grass",
        spill=(0.1, 0.1, 0.1),
        boldness=1.6,
        pit="dark",
    ),
    "tissue": Photograph(
        file="ihc.png",
        shows="colon glands under the microscope, FHL2 stained brown, nuclei blue",
        licence="no known copyright restrictions",
        source="skimage.data.immunohistochemistry, from the Center for Microscopy and Molecular Imaging (CMMI)",
        test="top",
        foreign="grass",
        spill=(0.2, 0.14, 0.4),
        boldness=1.65,
        pit="light",
    ),
}


def demo_datasets() -> tuple[tuple[str, str, str], ...]:
    """Name, content and origin with licence of each category, for ``blemish datasets``."""
    return tuple((name, photo.shows, f"{photo.licence}: {photo.source}") for name, photo in DEMO_CATEGORIES.items())


def photograph(category: str) -> Photograph:
    """A line of the table.

    Raises:
        ConfigError: there is no such category.
    """
    if category not in DEMO_CATEGORIES:
        raise ConfigError(f"the demo set has no category {category!r}: choose one of {', '.join(DEMO_CATEGORIES)}")
    return DEMO_CATEGORIES[category]


def read_photograph(category: str) -> NDArray[np.float64]:
    """A photograph as ``512 512 3`` in [0, 1], read from the installed package's own files.

    Raises:
        ConfigError: there is no such category.
        DataError: scikit-image is not installed, or lacks the photograph.
    """
    import numpy as np
    from PIL import Image

    file = photograph(category).file
    remedy = "install it with pip install 'blemish[demo]'"
    try:
        content = importlib.resources.files("skimage").joinpath("data", file).read_bytes()
    except ModuleNotFoundError as error:
        raise DataError(f"the demo set needs the photographs inside scikit-image, which is absent: {remedy}") from error
    except FileNotFoundError as error:
        raise DataError(f"this scikit-image comes without its photograph {file}: {remedy}") from error
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    if pixels.shape[:2] != (PHOTOGRAPH, PHOTOGRAPH):
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise DataError(f"scikit-image's {file} is {size} pixels, not 512 x 512 as in 0.25 and 0.26: {remedy}")
    return pixels


def parts(photo: Photograph) -> tuple[Box, Box]:
    """The training part and the test part of a photograph, ``MARGIN`` rows apart."""
    if photo.test == "top":
        return (0, TEST_ROWS + MARGIN, PHOTOGRAPH, PHOTOGRAPH), (0, 0, PHOTOGRAPH, TEST_ROWS)
    edge = PHOTOGRAPH - TEST_ROWS
    return (0, 0, PHOTOGRAPH, edge - MARGIN), (0, edge, PHOTOGRAPH, PHOTOGRAPH)


def cut_boxes(
    part: Box, grid: tuple[int, int], each: int, split: str, rng: np.random.Generator
) -> list[tuple[str, Box]]:
    """Groups and boxes: ``each`` crops, spread from left to right, in every rectangle of a part."""
    left, top, right, bottom = part
    wide, high = (right - left) // grid[1], (bottom - top) // grid[0]
    crops: list[tuple[str, Box]] = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            for number in range(each):
                x = left + column * wide + round((wide - CROP) * (number + rng.uniform()) / each)
                y = top + row * high + int(rng.integers(0, high - CROP + 1))
                crops.append((f"{split}-r{row}c{column}", (x, y, x + CROP, y + CROP)))
    return crops
