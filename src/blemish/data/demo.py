"""The demo set: four small inspection tasks made from real photographs that travel inside scikit-image.

Each category is **one** photograph of 512 x 512 pixels, read from the installed scikit-image. It is cut in two:
training crops come from one part, test crops from the other, and ``MARGIN`` rows between them are used by neither. Each
part is divided into rectangles: crops of one overlap and share a ``group``, crops of two groups share no pixel. The
photographs and their good crops are real; every defect is painted (``synthetic``), with an exact mask, on a crop of 96
pixels that is then doubled, so that a defect is no sharper than the photograph.

Difficulty was set by one trial, in which test crops took part: ``boldness`` so that the image AUROC of a memory of
EfficientNet-Lite0 patches lies between .85 and .99 (brightness, contrast and gradient reach .37 to .59), the test end
of each photograph so that its good crops look no stranger than unseen training crops.
The set shows that things work: quote no figure of it as evidence of how a method does in a factory or a clinic.
"""

import csv
import importlib.resources
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from blemish.data.public import DEMO_CATEGORIES
from blemish.data.samples import Sample, Split
from blemish.data.synthetic import PAINTERS, Array, Scene, colours_by_brightness, scene_of
from blemish.errors import ConfigError, DataError, OutputError

KINDS = tuple(PAINTERS)
MARGIN = 16
CROP, SCALE = 96, 2  # side of a crop in the photograph; how much larger it is saved
PHOTOGRAPH, TEST_ROWS = 512, 196
TRAIN_GRID, TEST_GRID = (3, 4), (2, 4)  # rows and columns of rectangles
TRAIN_EACH, TEST_EACH, DEFECTS_OF_A_KIND = 4, 2, 4
VISIBLE = 0.1  # a pixel painted less than this keeps its own value

Box = tuple[int, int, int, int]  # left, top, right, bottom in the photograph; right and bottom are outside


class Drawing(NamedTuple):
    """One picture of the demo set: paths are inside the category's folder, the mask is 255 where the defect is."""

    sample: Sample
    box: Box
    image: Image.Image
    mask: Image.Image | None = None


def write_demo(root: Path, seed: int = 0, categories: Sequence[str] = tuple(DEMO_CATEGORIES)) -> list[Path]:
    """The folders of the categories, written in the layout of MVTec AD with manifests; one seed, the same bytes."""
    for name in categories:
        if name not in DEMO_CATEGORIES:
            raise ConfigError(f"the demo set has no category {name!r}: choose one of {', '.join(DEMO_CATEGORIES)}")
    folders = [root / name for name in categories]
    for folder in folders:
        rows = [("file", "mask", "split", "label", "group", "source", "note")]
        source = DEMO_CATEGORIES[folder.name].source
        try:
            for sample, box, image, mask in draw_category(folder.name, seed):
                for picture, file in ((image, sample.path), (mask, sample.mask)):
                    if picture is not None and file is not None:
                        (folder / file).parent.mkdir(parents=True, exist_ok=True)
                        picture.save(folder / file, format="PNG", compress_level=4)
                written, mask_written = sample.path.as_posix(), sample.mask.as_posix() if sample.mask else ""
                note = f"box={' '.join(map(str, box))}"
                rows.append((written, mask_written, sample.split, sample.kind, sample.group, source, note))
            with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream, lineterminator="\n").writerows(rows)
        except OSError as error:
            problem = f"cannot write the demo set to {folder}: {error.strerror or error}"
            raise OutputError(f"{problem}; name a folder you may write to") from error
    return folders


def draw_category(category: str, seed: int = 0) -> Iterator[Drawing]:
    """The pictures of one category, made as they are asked for: training, good test, then defects, kinds in turn."""
    photo, pixels = DEMO_CATEGORIES[category], read_photograph(category)
    on_top = photo.test == "top"
    rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
    edge = TEST_ROWS if on_top else PHOTOGRAPH - TEST_ROWS - MARGIN  # of the upper part
    upper, lower = (0, 0, PHOTOGRAPH, edge), (0, edge + MARGIN, PHOTOGRAPH, PHOTOGRAPH)
    train_part, test_part = (lower, upper) if on_top else (upper, lower)
    normal: tuple[tuple[Split, Box, tuple[int, int], int], ...] = (
        ("train", train_part, TRAIN_GRID, TRAIN_EACH),
        ("test", test_part, TEST_GRID, TEST_EACH),
    )
    for split, part, grid, each in normal:
        for number, (group, box) in enumerate(_cut_boxes(part, grid, each, split, rng)):
            sample = Sample(Path(f"{split}/good/{number:03d}.png"), "normal", split, group=group)
            yield Drawing(sample, box, _picture(_enlarged(pixels[box[1] : box[3], box[0] : box[2]])))
    each = len(KINDS) * DEFECTS_OF_A_KIND // (TEST_GRID[0] * TEST_GRID[1])
    boxes = _cut_boxes(test_part, TEST_GRID, each, "test", rng)
    # Foreign matter takes the photograph's colours, so that it is no brighter.
    ranked, texture = colours_by_brightness(pixels), read_photograph(photo.foreign).mean(axis=-1)
    low, high = ranked[len(ranked) // 10], ranked[-(len(ranked) // 10)]
    level = 0.5 + (texture - texture.mean()) / (4 * texture.std())
    foreign = low + (high - low) * np.clip(level, 0, 1)[..., None]
    pit, spill = float(photo.pit == "light"), np.array(photo.spill)
    scene = replace(scene_of(pixels), spill=spill, foreign=foreign, boldness=photo.boldness, pit=pit)
    for number, chosen in enumerate(rng.permutation(len(boxes))):
        round_, kind = number // len(KINDS), KINDS[number % len(KINDS)]
        group, box = boxes[chosen]
        tone = 1 if (round_ + number) % 2 else -1
        painted, inside = _painted(kind, tone, pixels[box[1] : box[3], box[0] : box[2]], scene, rng)
        path, mask_path = f"test/{kind}/{round_:03d}.png", f"ground_truth/{kind}/{round_:03d}_mask.png"
        sample = Sample(Path(path), "anomalous", "test", kind, group, Path(mask_path))
        yield Drawing(sample, box, _picture(painted), Image.fromarray(inside.astype(np.uint8) * 255))


def read_photograph(category: str) -> Array:
    """A photograph as ``512 512 3`` in [0, 1], read from the installed package's own files."""
    file = DEMO_CATEGORIES[category].file
    remedy = "install it with pip install 'blemish[demo]'"
    try:
        content = importlib.resources.files("skimage").joinpath("data", file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise DataError(f"the demo set needs {file} inside scikit-image, which is not there: {remedy}") from error
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    if pixels.shape[:2] != (PHOTOGRAPH, PHOTOGRAPH):
        raise DataError(f"scikit-image's {file} is not 512 x 512 pixels, as in 0.25 and 0.26: {remedy}")
    return pixels


def _cut_boxes(part: Box, grid: tuple[int, int], each: int, split: str, rng: Generator) -> list[tuple[str, Box]]:
    """Groups and boxes: ``each`` crops, spread from left to right, in every rectangle of a part."""
    left, top, right, bottom = part
    wide, high = (right - left) // grid[1], (bottom - top) // grid[0]
    crops: list[tuple[str, Box]] = []
    for row, column, number in np.ndindex(*grid, each):
        x = left + column * wide + round((wide - CROP) * (number + rng.uniform()) / each)
        y = top + row * high + int(rng.integers(0, high - CROP + 1))
        crops.append((f"{split}-r{row}c{column}", (x, y, x + CROP, y + CROP)))
    return crops


def _painted(kind: str, tone: int, crop: Array, scene: Scene, rng: Generator) -> tuple[Array, NDArray[np.bool_]]:
    """A crop with one defect, painted again until it can be seen, at the size it is saved in; and where it is."""
    while True:
        painted, cover = PAINTERS[kind](crop, scene, tone, rng)
        inside = _enlarged(cover) > VISIBLE
        change = np.abs(painted - crop).mean(axis=-1)[cover > VISIBLE]
        if inside.sum() >= 60 and change.mean() > (0.12 if kind == "faint" else 0.35) * scene.contrast:
            return np.where(inside[..., None], _enlarged(painted), _enlarged(crop)), inside


def _enlarged(values: Array) -> Array:
    """``h w`` or ``h w 3``, larger by ``SCALE`` along each side."""
    if values.ndim == 3:
        return np.stack([_enlarged(values[..., colour]) for colour in range(values.shape[2])], axis=-1)
    plane = Image.fromarray(values.astype(np.float32))
    size = (plane.width * SCALE, plane.height * SCALE)
    return np.asarray(plane.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)


def _picture(values: Array) -> Image.Image:
    """An 8-bit picture; grey where all three colours are equal, as three of the photographs are."""
    levels = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if (levels == levels[..., :1]).all() else levels)
