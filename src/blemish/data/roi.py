"""Regions of interest: the part of every image that is judged, as a mask at the images' own size.

One rule serves all methods, and is all that an exported model has to repeat:

1. before anything else, pixels outside take one grey level: the mean of the training images inside;
2. in the map, at the image's size, they take the smallest value found inside.

So nothing outside can change a verdict, not by one bit. What it costs: the network sees an edge along the mask (always
the same one, hence learned as normal), and a few places of a memory or some updates are spent on plain grey.
"""

import base64
import contextlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from blemish.data.images import MAX_PIXELS, DecodedImage, drawn, read_bytes
from blemish.errors import DataError, ImageError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Roi:
    """A mask ``h w``, True where parts are judged, kept as bits, and the grey ``level`` (0 to 255) of all else."""

    size: tuple[int, int]
    bits: bytes = field(repr=False)
    level: int = 128

    @classmethod
    def of(cls, mask: Mask, level: int = 128) -> "Roi":
        """From a mask; a DataError where it leaves nothing."""
        if not mask.any():
            raise DataError("the region of interest leaves nothing of the images: look at the files of --roi, --ignore")
        return cls((mask.shape[0], mask.shape[1]), np.packbits(mask).tobytes(), level)

    @cached_property
    def mask(self) -> Mask:
        """``h w``, True where parts are judged."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.size[0] * self.size[1])
        return bits.reshape(self.size).astype(bool)

    def check(self, image: DecodedImage) -> None:
        """An ImageError where an image has another size than the mask."""
        if image.size != self.size:
            raise ImageError(
                f"the image has {image.size[1]} x {image.size[0]} pixels, the region of interest "
                f"{self.size[1]} x {self.size[0]}: they must be equal. Give images of that size, or fit with another"
            )

    def cover(self, image: DecodedImage, white_level: int) -> DecodedImage:
        """``image`` with all outside at the grey level, on the image's own scale; raises what ``check`` does."""
        self.check(image)
        pixels = image.pixels[..., :1] if image.grey else image.pixels
        level = self.level / 255 * {8: 255, 16: white_level, 32: 1}[image.bits]
        covered = np.where(self.mask[..., None], pixels, pixels.dtype.type(level if image.bits == 32 else round(level)))
        return replace(image, pixels=np.broadcast_to(covered, (*image.size, 3)))

    def clear(self, map_: NDArray[np.float32]) -> NDArray[np.float32]:
        """A map ``h w`` with the smallest value inside at all that lies outside."""
        return np.where(self.mask, map_, map_[self.mask].min())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model file; ``mask`` is text: base64 of the packed bits, deflated."""
        text = base64.b64encode(zlib.compress(self.bits, 9)).decode()
        return {"size": list(self.size), "level": self.level, "mask": text}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Roi":
        """What ``to_dict`` gave, back; a ValueError where it is anything else."""
        height, width, level = (int(number) for number in (*stored["size"], stored["level"]))
        needed = -(-height * width // 8)
        if not (0 < height * width <= MAX_PIXELS and 0 <= level <= 255):
            raise ValueError(f"a region of interest of {width} x {height} pixels over the level {level}")
        bits = b""
        with contextlib.suppress(zlib.error):
            bits = zlib.decompressobj().decompress(base64.b64decode(stored["mask"]), needed + 1)
        if len(bits) != needed:
            raise ValueError("the mask of the region of interest is not whole")
        return cls.of(cls((height, width), bits).mask, level)


def read_roi(include: Path | None, ignore: Path | None, size: tuple[int, int]) -> Roi:
    """What ``include`` leaves (all without it) less what ``ignore`` takes, of images of ``size`` (height, width).

    Raises:
        DataError: a file is neither a mask of that size nor polygons, or together they leave nothing.
    """
    mask = np.ones(size, bool) if include is None else read_area(include, size)
    return Roi.of(mask if ignore is None else mask & ~read_area(ignore, size))


def read_area(path: Path, size: tuple[int, int]) -> Mask:
    """Where a mask image is not black, or what polygons in a JSON file cover, in pixels of the images: bool ``h w``.

    Polygons are a list of lists of ``[x, y]``, or such a list as ``polygons`` of an object; or LabelMe's ``shapes``.
    """
    if path.suffix.casefold() != ".json":
        mask: Mask = drawn(read_bytes(path), str(path))
        if mask.shape != size:
            problem = f"the mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels"
            raise DataError(f"{problem}, the images {size[1]} x {size[0]}: they must be equal")
        return mask
    canvas = Image.new("1", (size[1], size[0]))
    try:
        stored: Any = json.loads(read_bytes(path))
        if isinstance(stored, dict):
            stored = stored["polygons"] if "polygons" in stored else [shape["points"] for shape in stored["shapes"]]
        are_pairs = all(len(polygon) > 2 and {len(point) for point in polygon} == {2} for polygon in stored)
        polygons = [np.array(polygon, float) for polygon in stored if are_pairs]
        if not are_pairs or not all(np.isfinite(points).all() for points in polygons):
            raise ValueError("a polygon is three or more pairs of numbers")
        for points in polygons:
            ImageDraw.Draw(canvas).polygon([(x, y) for x, y in points.clip(-1e6, 1e6).tolist()], fill=1)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        needed = "a list of polygons, each a list of [x, y], or that list as 'polygons' of an object, is needed"
        raise DataError(f"{path} does not hold polygons ({error}): {needed}") from error
    return np.array(canvas)
