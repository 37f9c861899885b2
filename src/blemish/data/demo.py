"""The demo set: four small inspection tasks made from real photographs that travel inside scikit-image.

Each category is **one** photograph of 512 x 512 pixels, cut in two. Training crops come from one part of it, test crops
from another, and ``MARGIN`` rows between them are used by neither: no pixel is in both. Each part is divided into
rectangles, and all crops of one rectangle share a ``group``, because they overlap; crops of different groups never do.
So a group is one *part*, as the rest of the library understands it, and the set has few: 12 to train on and 8 to test.

The photographs and their good crops are real; every defect is painted (``painting.py``), with an exact mask. Crops are
96 pixels wide, painted at that size and then doubled, so that a defect is no sharper than the photograph. A good test
crop, and the unpainted twin of a bad one (``clean_twin``), differ from the photograph by the doubling alone.

How the difficulty was set: by looking, and by one trial. Strengths are relative to each photograph's own darkest and
lightest colours and contrast; ``boldness`` makes defects larger and stronger on busy surfaces, where the same paint is
lost; ``tone`` alternates, so that about as many defects lighten as darken (holes cannot). Which end of a photograph
became the test part was chosen so that its good crops look no stranger, to a nearest-neighbour memory of
EfficientNet-Lite0 patches, than unseen training crops. Boldness was then set so that this memory's image AUROC lies
between .85 and .99: seed 0 gave .96 on brick, .89 on grass, .87 on gravel, .89 on tissue; faint defects alone .62 to
.75, the hardest kind in every category; mean brightness, contrast and gradient alone .37 to .59. Test crops thus took
part in the design. The set shows that things work; it is ours, and small: quote no figure of it as evidence of how a
method does in a factory or a clinic.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blemish.data.photographs import (
    CROP,
    DEMO_CATEGORIES,
    MARGIN,
    Box,
    cut_boxes,
    demo_datasets,
    parts,
    photograph,
    read_photograph,
)
from blemish.errors import OutputError

if TYPE_CHECKING:
    from blemish.data.synthetic import Scene

SCALE = 2
"""How much larger crops are saved than they were cut."""
KINDS = ("scratch", "stain", "hole", "missing", "foreign", "faint")
"""The kinds of defect, in every category."""

TRAIN_GRID, TEST_GRID = (3, 4), (2, 4)  # rows and columns of rectangles
TRAIN_EACH, TEST_EACH, BAD_OF_A_KIND = 4, 2, 4
VISIBLE = 0.1  # a pixel painted less than this keeps its own value

__all__ = [
    "CROP",
    "DEMO_CATEGORIES",
    "KINDS",
    "MARGIN",
    "DemoSample",
    "clean_twin",
    "demo_datasets",
    "draw_category",
    "write_demo",
]


@dataclass(frozen=True)
class DemoSample:
    """One picture of the demo set.

    Attributes:
        file: its place in the category's folder.
        mask_file: its mask's place, or an empty string.
        split: ``train`` or ``test``.
        label: ``good`` or the kind of defect.
        group: the rectangle of the photograph that the crop lies in.
        box: the crop.
        image: the picture, grey or RGB.
        mask: 255 where the defect is, or None.
    """

    file: str
    mask_file: str
    split: str
    label: str
    group: str
    box: Box
    image: Image.Image
    mask: Image.Image | None


def write_demo(root: Path, seed: int = 0, categories: Sequence[str] = tuple(DEMO_CATEGORIES)) -> list[Path]:
    """The folders of the categories, written under ``root`` in the layout of MVTec AD, each with a manifest.

    The same seed writes the same bytes. Nothing is downloaded. Files of an earlier demo set are written over.

    Raises:
        ConfigError: there is no such category.
        DataError: scikit-image is not installed, or lacks a photograph.
        OutputError: ``root`` cannot be written.
    """
    for name in categories:
        photograph(name)
    return [_write_category(root / name, draw_category(name, seed)) for name in categories]


def draw_category(category: str, seed: int = 0) -> Iterator[DemoSample]:
    """The pictures of one category, made as they are asked for: training, good test, then defects of each kind in turn.

    Raises:
        ConfigError: there is no such category.
        DataError: scikit-image is not installed, or lacks a photograph.
    """
    photo, pixels = photograph(category), read_photograph(category)
    rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
    train_part, test_part = parts(photo)
    for number, (group, box) in enumerate(cut_boxes(train_part, TRAIN_GRID, TRAIN_EACH, "train", rng)):
        yield _good(category, "train", number, group, box, pixels)
    for number, (group, box) in enumerate(cut_boxes(test_part, TEST_GRID, TEST_EACH, "test", rng)):
        yield _good(category, "test", number, group, box, pixels)
    bad = cut_boxes(test_part, TEST_GRID, len(KINDS) * BAD_OF_A_KIND // (TEST_GRID[0] * TEST_GRID[1]), "test", rng)
    scene = _scene(category, pixels)
    order = rng.permutation(len(bad))
    for number, place in enumerate(order):
        kind, tone = KINDS[number % len(KINDS)], 1 if (number // len(KINDS) + number) % 2 else -1
        group, box = bad[place]
        yield _bad(kind, number // len(KINDS), tone, group, box, pixels, scene, rng)


def clean_twin(category: str, box: Box) -> Image.Image:
    """The picture at ``box`` without any defect: what a bad picture of the demo set was before it was painted.

    Raises:
        ConfigError: there is no such category.
        DataError: scikit-image is not installed, or lacks the photograph.
    """
    return _picture(_enlarged(_cut(read_photograph(category), box)))


def _cut(pixels: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def _enlarged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``h w`` or ``h w 3``, larger by ``SCALE`` along each side."""
    if values.ndim == 3:
        if (values == values[..., :1]).all():  # grey: one plane does for three
            return np.repeat(_enlarged(values[..., 0])[..., None], values.shape[2], axis=-1)
        return np.stack([_enlarged(values[..., colour]) for colour in range(values.shape[2])], axis=-1)
    plane = Image.fromarray(values.astype(np.float32))
    size = (plane.width * SCALE, plane.height * SCALE)
    larger: NDArray[np.float64] = np.asarray(plane.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    return larger


def _picture(values: NDArray[np.float64]) -> Image.Image:
    """An 8-bit picture; grey where all three colours are equal, as three of the photographs are."""
    levels = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    grey = bool((levels == levels[..., :1]).all())
    return Image.fromarray(levels[..., 0] if grey else levels)


def _good(category: str, split: str, number: int, group: str, box: Box, pixels: NDArray[np.float64]) -> DemoSample:
    image = _picture(_enlarged(_cut(pixels, box)))
    return DemoSample(f"{split}/good/{number:03d}.png", "", split, "good", group, box, image, None)


def _bad(
    kind: str,
    number: int,
    tone: int,
    group: str,
    box: Box,
    pixels: NDArray[np.float64],
    scene: Scene,
    rng: np.random.Generator,
) -> DemoSample:
    """A crop with one defect, painted again until it can be seen."""
    from blemish.data.synthetic import PAINTERS

    crop = _cut(pixels, box)
    while True:
        painted = PAINTERS[kind](crop, scene, tone, rng)
        inside = _enlarged(painted.cover) > VISIBLE
        change = np.abs(painted.image - crop).mean(axis=-1)[painted.cover > VISIBLE]
        if inside.sum() >= 60 and change.mean() > (0.12 if kind == "faint" else 0.35) * scene.contrast:
            break
    whole = np.where(inside[..., None], _enlarged(painted.image), _enlarged(crop))
    mask = Image.fromarray(inside.astype(np.uint8) * 255)
    names = f"test/{kind}/{number:03d}.png", f"ground_truth/{kind}/{number:03d}_mask.png"
    return DemoSample(*names, "test", kind, group, box, _picture(whole), mask)


def _scene(category: str, pixels: NDArray[np.float64]) -> Scene:
    """What the painters need to know of a photograph."""
    from scipy.ndimage import gaussian_filter

    from blemish.data.synthetic import Scene

    photo = photograph(category)
    flat = pixels.reshape(-1, 3)
    ranked = flat[np.argsort(flat.mean(axis=1), kind="stable")]
    tail = len(ranked) // 100
    grey = pixels.mean(axis=-1)
    return Scene(
        dark=ranked[:tail].mean(axis=0),
        spill=np.array(photo.spill),
        light=ranked[-tail:].mean(axis=0),
        contrast=float(grey.std()),
        grain=float((grey - gaussian_filter(grey, 0.8)).std()),
        foreign=_recoloured(read_photograph(photo.foreign).mean(axis=-1), ranked),
        boldness=photo.boldness,
        pit=1.0 if photo.pit == "light" else 0.0,
    )


def _recoloured(texture: NDArray[np.float64], ranked: NDArray[np.float64]) -> NDArray[np.float64]:
    """A grey texture between two colours of ``ranked`` (from dark to light): foreign matter, but no brighter a one."""
    low, high = ranked[len(ranked) // 10], ranked[-(len(ranked) // 10)]
    level = 0.5 + (texture - texture.mean()) / (4 * texture.std())
    coloured: NDArray[np.float64] = low + (high - low) * np.clip(level, 0, 1)[..., None]
    return coloured


def _write_category(folder: Path, samples: Iterator[DemoSample]) -> Path:
    """One category's pictures, masks and manifest."""
    rows = [("file", "mask", "split", "label", "group", "source", "note")]
    source = DEMO_CATEGORIES[folder.name].source
    try:
        for sample in samples:
            _save(sample.image, folder / sample.file)
            if sample.mask is not None:
                _save(sample.mask, folder / sample.mask_file)
            box = "box=" + " ".join(map(str, sample.box))
            rows.append((sample.file, sample.mask_file, sample.split, sample.label, sample.group, source, box))
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write the demo set to {folder}: {reason}; name a folder you may write to") from error
    return folder


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG", compress_level=4)
