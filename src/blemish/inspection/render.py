"""What people look at: maps over pictures, legends, contact sheets, and the map itself as a file.

Up to the model's threshold the picture is left exactly as it is; above it lie the colours of the model's ``Scale``.
Colour never speaks alone: regions are outlined in white within black, which shows on any part and to any eye.
Text is drawn in Pillow's own font, so nothing depends on the machine's fonts.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from blemish.errors import ConfigError, DataError, OutputError
from blemish.inspection.drawing import Colour, blended, draw_dashes, draw_line_around, draw_ring
from blemish.inspection.regions import Region, checked_map, rasterise
from blemish.inspection.scale import RAMP, Scale, fixed_scale

__all__ = ["Scale", "contact_sheet", "data_uri", "fixed_scale", "legend", "overlay", "png_bytes", "save_heatmap"]

PAPER: Colour = (250, 250, 250)
INK: Colour = (30, 30, 30)
MOUNT: Colour = (228, 228, 228)

RING = 16
"""A ring's radius is this part of the picture's longer side."""

_TEXT = 13  # pixels
_GAP = 10


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
    """``image`` under the map's colours, with regions outlined in white within black.

    Args:
        image: RGB, ``h w 3``.
        heatmap: ``h w``, the same size.
        scale: the model's.
        regions: what to outline; lines lie just outside, so that no coloured pixel is hidden.
        truth: a mask ``h w``; where a person marked a defect, outlined in dashed light blue.
        zoom: each pixel becomes ``zoom`` by ``zoom`` ones, so that lines stay thin on small images.
        spot: a pixel (x, y) to ring: where a person should look although nothing lies above the threshold.

    Raises:
        DataError: the sizes differ, the image is not RGB uint8, or the map holds values that are not finite.
        ConfigError: ``zoom`` is less than 1.
    """
    values = checked_map(heatmap)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.shape[:2] != values.shape:
        raise DataError(
            f"an image of shape {image.shape} and type {image.dtype} was given with a map of shape {values.shape}; "
            f"an RGB image of shape {(*values.shape, 3)} and type uint8 is needed"
        )
    marked = np.zeros(values.shape, dtype=bool) if truth is None else np.asarray(truth) > 0
    if marked.shape != values.shape:
        raise DataError(f"a mask of shape {marked.shape} was given with a map of shape {values.shape}; make them equal")
    if zoom < 1:
        raise ConfigError(f"zoom {zoom}: a whole number, 1 or more, is needed")
    picture = _magnified(blended(image, scale.layer(values)), zoom)
    width = max(1, round(max(picture.shape[:2]) / 400))
    if regions:
        _outline(picture, regions, zoom, width)
    if spot is not None:
        centre = (zoom * (spot[0] + 0.5), zoom * (spot[1] + 0.5))
        draw_ring(picture, centre, max(picture.shape[:2]) / RING, width)
    if marked.any():
        draw_dashes(picture, marked, zoom, width)
    return Image.fromarray(picture)


def _magnified(array: NDArray[np.uint8], zoom: int) -> NDArray[np.uint8]:
    return array.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else array


def _outline(picture: NDArray[np.uint8], regions: Sequence[Region], zoom: int, width: int) -> None:
    """Draw the double line around every region, as one where two touch."""
    inside = np.zeros(picture.shape[:2], dtype=bool)
    for region in regions:
        x0, y0, x1, y1 = (zoom * edge for edge in region.box)
        shape = rasterise(region.outline, region.box).repeat(zoom, axis=0).repeat(zoom, axis=1)
        inside[y0:y1, x0:x1] |= shape
    draw_line_around(picture, inside, width)


def legend(
    scale: Scale, sentence: str, ticks: Sequence[tuple[float, str]] = (), *, truth: bool = False, width: int = 480
) -> Image.Image:
    """What the colours and lines mean.

    Args:
        scale: the model's.
        sentence: the promise in words; wrapped.
        ticks: map values and what each means, such as ``(4.31, "1 in 100 good parts")``. Those outside the scale are
            left out. Without any, the scale's two ends are named.
        truth: whether to explain the dashed line as well.
        width: in pixels.
    """
    font = _font()
    lines = _wrapped(sentence, font, width - 2 * _GAP)
    start, end, depth = _GAP + 2 * _TEXT, width - _GAP - 1, 2 * _TEXT
    shown = [(value, text) for value, text in sorted(ticks) if scale.threshold <= value <= scale.top]
    if not ticks:
        shown = [(scale.threshold, f"{scale.threshold:.4g}"), (scale.top, f"{scale.top:.4g} and above")]
    pixels = (end - start) / (scale.top - scale.threshold)
    labels = _stacked([(start + (value - scale.threshold) * pixels, text) for value, text in shown], width)
    row = round(1.4 * _TEXT)
    bar = _GAP + row * len(lines) + 4
    keys = bar + depth + _GAP + row * (1 + max((level for *_, level in labels), default=0)) + _GAP
    meanings = _meanings(truth)
    page = Image.new("RGB", (width, keys + (row + 4) * len(meanings) + _GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(lines):
        draw.text((_GAP, _GAP + row * index), line, INK, font)
    page.paste(Image.fromarray(_bar(start - _GAP, end - start + 1, depth)), (_GAP, bar))
    for at, left, text, level in labels:
        draw.line([(at, bar + depth), (at, bar + depth + 4 + row * level)], INK)
        draw.text((left, bar + depth + 5 + row * level), text, INK, font)
    for index, (swatch, text) in enumerate(meanings):
        page.paste(Image.fromarray(swatch), (_GAP, keys + (row + 4) * index))
        draw.text((_GAP + swatch.shape[1] + 6, keys + (row + 4) * index), text, INK, font)
    return page


def _bar(plain: int, coloured: int, depth: int) -> NDArray[np.uint8]:
    """A strip of made-up part, dark above and light below: ``plain`` columns as it is, the others under the ramp."""
    shade = np.linspace(70, 190, depth).round().astype(np.uint8)
    strip = np.broadcast_to(shade[:, None, None], (depth, plain + coloured, 3)).copy()
    layer = np.zeros((*strip.shape[:2], 4), dtype=np.uint8)
    layer[:, plain:] = RAMP[np.linspace(0, len(RAMP) - 1, coloured).round().astype(np.intp)]
    return blended(strip, layer)


def _stacked(ticks: Sequence[tuple[float, str]], width: int) -> list[tuple[int, int, str, int]]:
    """Where each tick stands, where its text begins, the text, and the first row in which it meets no other."""
    ends: list[float] = []
    placed = []
    for at, text in ticks:
        length = _font().getlength(text)
        left = min(max(at - length / 2, _GAP), width - _GAP - length)
        level = next((row for row, end in enumerate(ends) if end + _GAP <= left), len(ends))
        ends[level : level + 1] = [left + length]
        placed.append((round(at), round(left), text, level))
    return placed


def _meanings(truth: bool) -> list[tuple[NDArray[np.uint8], str]]:
    """Samples of what stands on pictures, drawn by what draws it there, and what each means."""
    plain = np.full((_TEXT + 4, 3 * _TEXT, 3), 128, dtype=np.uint8)
    mask = np.zeros(plain.shape[:2], dtype=bool)
    mask[5:-5, 5:-5] = True
    found, marked = plain.copy(), plain.copy()
    draw_line_around(found, mask, 1)
    draw_dashes(marked, mask, 1, 1)
    meanings = [(plain, "no colour: the map is not above the threshold"), (found, "found by the model")]
    return [*meanings, (marked, "marked by a person")] if truth else meanings


def contact_sheet(
    tiles: Sequence[tuple[Image.Image, str]], columns: int = 5, tile: tuple[int, int] = (220, 220), title: str = ""
) -> Image.Image:
    """Many pictures with captions on one page, row by row.

    Args:
        tiles: pictures and captions. A picture keeps its shape; small ones grow by whole factors. A caption may have
            several lines; what is too long loses its middle, for in a path the ends matter.
        columns: pictures in a row; fewer where there are fewer pictures.
        tile: width and height of the space for a picture, in pixels.
        title: above all; shortened like a caption.

    Raises:
        ConfigError: ``columns`` or a side of ``tile`` is less than 1.
    """
    if min(columns, *tile) < 1:
        raise ConfigError(f"{columns} columns of tiles {tile[0]} x {tile[1]}: each of the three must be at least 1")
    font, heading = _font(), _font(round(1.5 * _TEXT))
    row = round(1.4 * _TEXT)
    columns = max(1, min(columns, len(tiles)))
    wide = tile[0] + _GAP
    deep = tile[1] + row * max((text.count("\n") + 1 for _, text in tiles), default=0) + _GAP
    head = _GAP + (2 * row if title else 0)
    page = Image.new("RGB", (_GAP + wide * columns, head + deep * -(-len(tiles) // columns)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), _shortened(title, heading, page.width - 2 * _GAP), INK, heading)
    for index, (picture, caption) in enumerate(tiles):
        left, top = _GAP + wide * (index % columns), head + deep * (index // columns)
        small = _fitted(picture, tile)
        page.paste(MOUNT, (left, top, left + tile[0], top + tile[1]))
        page.paste(small, (left + (tile[0] - small.width) // 2, top + (tile[1] - small.height) // 2))
        for line, text in enumerate(caption.split("\n")):
            draw.text((left, top + tile[1] + 2 + row * line), _shortened(text, font, tile[0]), INK, font)
    return page


def _fitted(picture: Image.Image, tile: tuple[int, int]) -> Image.Image:
    """``picture`` as large as ``tile`` allows; pixels of small ones stay square and sharp."""
    factor = min(tile[0] / picture.width, tile[1] / picture.height)
    if factor >= 1:
        return picture.convert("RGB").resize(
            (int(factor) * picture.width, int(factor) * picture.height), Image.Resampling.NEAREST
        )
    size = (max(1, round(factor * picture.width)), max(1, round(factor * picture.height)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _font(size: int = _TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """``text`` in lines no longer than ``width`` pixels, where its words allow."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """``text``, without its middle where it is longer than ``width`` pixels."""
    short, kept = text, len(text)
    while kept > 0 and font.getlength(short) > width:
        kept -= 1
        short = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return short


def png_bytes(image: Image.Image) -> bytes:
    """``image`` as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    """``image`` as a ``data:`` address, to stand inside an HTML file."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def save_heatmap(path: str | Path, heatmap: ArrayLike) -> None:
    """Write raw map values: ``.tif`` and ``.tiff`` as 32-bit float TIFF (ImageJ opens it), ``.npy`` for NumPy.

    Raises:
        ConfigError: the suffix is another one.
        DataError: the map is not a finite array ``h w``.
        OutputError: the file cannot be written; nothing half-written is left.
    """
    path, values = Path(path), checked_map(heatmap)
    if path.suffix.lower() not in (".tif", ".tiff", ".npy"):
        raise ConfigError(f"{path.name}: a map is written as .tif, .tiff or .npy; name the file so")
    file = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(file, values, allow_pickle=False)
    else:
        Image.fromarray(values).save(file, format="TIFF")
    _write(path, file.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one move; ``run`` has such a function, but importing it imports torch."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(f"{path} was not written: {error.strerror or error}. Write to another folder.") from error
