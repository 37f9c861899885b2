"""Reading one image, whatever its format, into RGB pixels of known depth.

* grey and 1-bit images are replicated to three channels (a view: no memory is spent on it);
* 16-bit grey keeps its depth. 16-bit *colour* does not: Pillow reads it as 8 bits a channel. A PGM whose maximum is
  below 65535 comes spread over 16 bits, also Pillow's way;
* float images (TIFF, numpy) must lie in [0, 1]; transparency is laid over black;
* CMYK, YCbCr, LAB and palettes become RGB; a rotation noted by the camera (EXIF) is applied;
* of several frames only a phone's second view is passed over: files of several images are refused.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from blemish.errors import ImageError

# What Pillow warns of is either raised as an error here or harmless. Set once, at import: a filter around each reading
# would race in threads, and one set with each reading would overrule what a program chose since.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

MAX_PIXELS = 100_000_000
"""No larger image is decoded: one part of 10,000 x 10,000 pixels. Checked on the header, before any memory is taken."""
MIN_SIDE = 8

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "PPM", "GIF")
_ORIENTATION = 0x0112
_UPRIGHT = {  # ImageOps.exif_transpose also writes the EXIF anew, which fails where that is damaged
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One decoded image."""

    pixels: npt.NDArray[Any]  # h w 3 in RGB order, uint8, uint16 or float32 in [0, 1]; not to be written to
    bits: int  # 8, 16 or 32, for these three
    grey: bool  # the three channels are one and the same

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(source: Path | str | bytes | Image.Image | npt.NDArray[Any]) -> DecodedImage:
    """The image as RGB pixels, from a path, the bytes of an image file, a PIL image, or an array.

    Arrays are ``h w``, ``h w 1``, ``h w 3`` (RGB order) or ``h w 4`` of bool, uint8, uint16 or float in [0, 1].

    Raises:
        ImageError: missing, damaged, cut short, not an image, several in one file, under 8 pixels a side or above
            ``MAX_PIXELS``.
    """
    if isinstance(source, np.ndarray):
        name = f"the given array of shape {source.shape} and type {source.dtype}"
        if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (1, 3, 4)):
            raise ImageError(f"{name} is not an image: h w, h w 1, h w 3 or h w 4 (channels last) is needed.")
        _check_size(source.shape[0], source.shape[1], name)
        if source.dtype not in (np.bool_, np.uint8, np.uint16) and source.dtype.kind != "f":
            raise ImageError(f"{name} is not an image: uint8, uint16, bool or float in [0, 1] is needed.")
        return _from_values(source, name)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the given PIL image")
    if isinstance(source, bytes):
        return decode(source, "the given bytes")
    return decode(read_bytes(Path(source)), str(source))


def read_bytes(path: Path) -> bytes:
    """The content of a file; an ImageError where it cannot be opened."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error) from error


def decode(content: bytes, name: str) -> DecodedImage:
    """The image whose file holds ``content``; ``name`` is how errors, those of ``read_image``, call it."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _from_pil(image, name)
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width after any EXIF rotation, and bits a channel; an ImageError where no image begins."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # Asking a PNG without EXIF for it would decode the whole file; a TIFF's size is turned already.
            turned = "exif" in image.info and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            size = image.size if turned else (image.height, image.width)
            return size, 16 if image.mode.startswith("I") else 32 if image.mode == "F" else 8
    except Exception as error:
        raise _unreadable(str(path), error) from error


def white_level(brightest: int) -> int:
    """What counts as white in 16-bit images up to this value: the smallest 2^n - 1 not below it, n from 8 to 16.

    It is fixed when a model learns, because a scale chosen for each image would hide that one is too bright.
    """
    return max(255, (1 << brightest.bit_length()) - 1)


def _from_pil(image: Image.Image, name: str) -> DecodedImage:
    _check_size(image.height, image.width, name)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # phones add a second view to a photograph
        raise ImageError(f"{name} holds {frames} images, and one is judged at a time: save each as a file of its own.")
    try:
        image.load()
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        upright = image if turn is None else image.transpose(turn)
        if not image.mode.startswith(("I", "F")):
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            palette = image.mode == "P" and "transparency" in image.info
            if palette or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
                mode += "A"
            upright = upright.convert(mode)
        values = np.asarray(upright)
    except Exception as error:
        raise _unreadable(name, error) from error
    return _from_values(values, name)


def _from_values(values: npt.NDArray[Any], name: str) -> DecodedImage:
    """From ``h w`` or ``h w c``: grey, grey and alpha, colours, or colours and alpha."""
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype != np.uint8:
        limit = 1 if values.dtype.kind == "f" else 65535
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= limit):
            problem = f"{name} holds values from {low} to {high}"
            raise ImageError(f"{problem}: {values.dtype} pixels must lie in 0 to {limit}. Scale them.")
        values = values.astype(np.float32 if limit == 1 else np.uint16, copy=False)
    if values.shape[2] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1:]
        if values.dtype.kind == "f":
            values = values * alpha
        elif (alpha < (white := np.iinfo(values.dtype).max)).any():  # rounded to the nearest integer
            values = ((values.astype(np.uint32) * alpha + white // 2) // white).astype(values.dtype)
    pixels = np.broadcast_to(values, (*values.shape[:2], 3))
    return DecodedImage(pixels, 8 * values.dtype.itemsize, grey=values.shape[2] == 1)


def _check_size(height: int, width: int, name: str) -> None:
    size = f"{name} has {width} x {height} pixels"
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{size}, more than the {MAX_PIXELS:,} that are taken for one part: cut it or shrink it first."
        )
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{size}: at least {MIN_SIDE} a side are needed.")


def _unreadable(name: str, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{name} claims more than the {MAX_PIXELS:,} pixels that are taken for one part: shrink it.")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{name} is not an image: PNG, JPEG, TIFF, BMP, WebP, PPM, PGM or GIF is needed.")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(f"{name} cannot be opened: {error.strerror or error}.")
    # Damaged files make Pillow raise nearly anything: struct.error, KeyError, OverflowError, SyntaxError ...
    return ImageError(f"{name} is damaged: {error or type(error).__name__}. Copy or export it again.")
