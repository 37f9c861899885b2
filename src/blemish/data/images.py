"""Reading one image, whatever its format, into RGB pixels of known depth.

* grey and 1-bit images are replicated to three channels (a view: no memory is spent on it);
* 16 bits a channel keep their depth, in grey and in colour, 10, 12 and 14 bits their values. A PGM or JPEG 2000 of
  other depths comes spread over 16 bits; AVIF and HEIC are read at 8 bits;
* float images (TIFF, numpy) must lie in [0, 1]; those that hold nothing but the 256 levels of 8 bits count as such;
* transparency, also that of a single colour, is laid over black;
* CMYK, YCbCr, LAB and palettes become RGB; a rotation noted by the camera (EXIF) is applied;
* of several frames a phone's second view and a TIFF's thumbnails are passed over: files of several images are refused.

The largest image takes up to 1 GB of memory while it is read, of 16 bits a colour up to 2.7 GB.
"""

import io
import os
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from blemish.data import decoders
from blemish.data.decoders import UPRIGHT, Unsupported, Values, pillow_reads
from blemish.errors import ImageError

# What Pillow warns of is either raised as an error here or harmless. Set once, at import: a filter around each reading
# would race in threads, and one set with each reading would overrule what a program chose since.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

MAX_PIXELS = 100_000_000
"""No larger image is decoded: one part of 10,000 x 10,000 pixels. Checked on the header, before any memory is taken."""
MIN_SIDE = 8
MAX_BYTES = 2 * 1024**3  # of a file
MAX_SCANS = 100  # of a progressive JPEG: encoders write about ten, and each takes time without adding bytes

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF")
_NEEDED = "PNG, JPEG, TIFF, BMP, WebP, PPM, PGM, GIF, JPEG 2000, AVIF, HEIC or DICOM is needed"
_STARTS = re.compile(  # how files begin, to say what one is that cannot be read; those up to DICOM can
    rb"(?P<PNG>\x89PNG)|(?P<JPEG>\xff\xd8\xff)|(?P<BMP>BM)|(?P<WebP>RIFF....WEBP)|(?P<GIF>GIF8)|(?P<PPM>P[1-6]\s)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<AVIF>....ftyp)|(?P<JPEG_2000>\0\0\0.jP|\xff\x4f\xff\x51)|.{128}(?P<DICOM>DICM)"
    rb"|(?P<Photoshop>8BPS)|(?P<PDF>%PDF)|(?P<OpenEXR>v/1\x01)|(?P<Radiance>#\?R)|(?P<JPEG_XL>\xff\x0a|\0{3}\x0cJXL)"
    rb"|(?P<NumPy>\x93NUMPY)|(?P<ZIP>PK\3\4)|(?P<SVG>\s*<svg)|(?P<ICO>\0\0\1\0)|(?P<FITS>SIMPLE  =)",
    re.DOTALL,
)
_DEEP = ("RGB;16B", "RGBA;16B", "LA;16B")  # PNG of 16 bits a colour, of which Pillow would give 8
_ORIENTATION = 0x0112
_BAND = 512  # rows that are worked on at a time


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One decoded image."""

    pixels: Values  # h w 3 in RGB order, uint8, uint16 or float32 in [0, 1]; not to be written to
    bits: int  # 8, 16 or 32, for these three
    grey: bool  # the three channels are one and the same

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(source: Any) -> DecodedImage:
    """The image as RGB pixels, from a path, the bytes of an image file, an open file, a PIL image, or an array.

    Arrays are ``h w``, ``h w 1``, ``h w 3`` (RGB order) or ``h w 4`` of bool, uint8, uint16 or float in [0, 1].

    Raises:
        ImageError: missing, damaged, cut short, not an image, several in one file, under 8 pixels a side or above
            ``MAX_PIXELS``; or ``source`` is nothing of the kind.
    """
    if isinstance(source, np.ndarray):
        name = f"the given array of shape {source.shape} and type {source.dtype}"
        if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (1, 3, 4)):
            raise ImageError(f"{name} is not an image: h w, h w 1, h w 3 or h w 4 (channels last) is needed.")
        _check_size(source.shape[0], source.shape[1], name)
        if source.dtype.kind not in "fub" or (source.dtype.kind == "u" and source.dtype.itemsize > 2):
            raise ImageError(f"{name} is not an image: uint8, uint16, bool or float in [0, 1] is needed.")
        return _from_values(source.astype(source.dtype.newbyteorder("="), copy=False), name)
    if isinstance(source, Image.Image):
        if source.format == "TIFF" and not pillow_reads(getattr(source, "tag_v2", {}).get):
            raise ImageError("the given PIL image is of a TIFF that Pillow misreads: give its path or its bytes.")
        return _from_pil(source, "the given PIL image")
    if isinstance(source, (str, os.PathLike)):
        return decode(read_bytes(Path(source)), os.fspath(source))
    content = source.read() if hasattr(source, "read") else source
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"{type(source).__name__} is not an image: a path, the bytes of an image file or that file opened, a PIL "
            "image, or an array h w or h w c is needed (of a tensor c h w: tensor.permute(1, 2, 0).numpy())."
        )
    return decode(bytes(content), "the given bytes")


def read_bytes(path: Path) -> bytes:
    """The content of a file; an ImageError where it cannot be opened, is a device or a pipe, or above ``MAX_BYTES``."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ImageError(f"{path} is a device or a pipe: a file is needed.")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{path} has {status.st_size:,} bytes, more than the {MAX_BYTES:,} that are taken.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from error


def decode(content: bytes, name: str, most: int | None = None) -> DecodedImage:
    """The image, of at most ``most`` pixels, whose file holds ``content``; errors as of ``read_image``, of ``name``."""
    page = None
    try:
        if content[128:132] == b"DICM":
            header = decoders.dicom_header(io.BytesIO(content))
            _check_size(header.Rows, header.Columns, name, most)
            return _from_values(decoders.dicom_values(header, content), name)
        if content[:4] in decoders.TIFF_STARTS:
            page = decoders.tiff_page(io.BytesIO(content))
            _check_size(page.imagelength, page.imagewidth, name, most)
            if not pillow_reads(page.tags.valueof):
                return _from_values(decoders.tiff_values(page, content), name)
        try:
            with _open(io.BytesIO(content)) as image:
                if page is not None:
                    image.seek(page.index)
                return _from_pil(image, name, content, most)
        except UnidentifiedImageError:
            if page is None:
                raise
            return _from_values(decoders.tiff_values(page, content), name)
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(name, error, content) from error


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width after any EXIF rotation, and bits a channel; an ImageError where no image begins."""
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(132)
            file.seek(0)
            if start[128:] == b"DICM":
                header = decoders.dicom_header(file)
                return (header.Rows, header.Columns), 8 if header.SamplesPerPixel > 1 else 32
            if start[:4] in decoders.TIFF_STARTS:
                page = decoders.tiff_page(file)
                bits = 32 if page.sampleformat == 3 or page.bitspersample > 16 else 16 if page.bitspersample > 8 else 8
                size = page.imagelength, page.imagewidth
                return size[::-1] if page.tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8) else size, bits
            with _open(file) as image:
                turned = orientation(image) in (5, 6, 7, 8)
                deep = image.mode.startswith("I") or (image.format == "PNG" and _unpacking(image) in _DEEP)
                size = image.size if turned else (image.height, image.width)
                return size, 16 if deep else 32 if image.mode == "F" else 8
    except Exception as error:
        raise _unreadable(str(path), error, start) from error


def drawn(content: bytes, name: str) -> npt.NDArray[np.bool_]:
    """Where a mask, the ``content`` of an image file, is not black; of a JPEG, which blurs edges, not below half."""
    values = decode(content, name).pixels.max(axis=2)
    area: npt.NDArray[np.bool_] = values > (values.max() // 2 if content.startswith(b"\xff\xd8") else 0)
    return area


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF or XMP has it. Not asked for where there is neither: that would decode a whole PNG."""
    told = image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp"}
    return int(image.getexif().get(_ORIENTATION, 1)) if told else 1


def white_level(brightest: int) -> int:
    """What counts as white in 16-bit images up to this value: the smallest 2^n - 1 not below it, n from 8 to 16.

    It is fixed when a model learns, because a scale chosen for each image would hide that one is too bright.
    """
    return max(255, (1 << brightest.bit_length()) - 1)


def _open(file: Any) -> Image.Image:
    start = file.read(12)
    file.seek(0)
    heif = start[4:8] == b"ftyp" and start[8:] in decoders.HEIF_BRANDS
    return decoders.open_heif(file) if heif else Image.open(file, formats=_FORMATS)


def _unpacking(image: Image.Image) -> str:
    """How Pillow is about to unpack the pixels of a file; empty for an image that is decoded already."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def _from_pil(image: Image.Image, name: str, content: bytes = b"", most: int | None = None) -> DecodedImage:
    """From an opened image and, unless a program gave it, the ``content`` of its file."""
    _check_size(image.height, image.width, name, most)
    # Phones add a second view to a photograph; the pages of a TIFF were looked at before, where its bytes were given.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "TIFF" if content else "MPO"):
        raise ImageError(f"{name} holds several images, {decoders.ONE_AT_A_TIME}.")
    try:
        unpacking = _unpacking(image)
        if image.format == "PPM" and image.mode == "RGB" and int(re.sub("[^0-9]", "", unpacking) or 0) > 255:
            raise Unsupported("is a PPM of more than 8 bits a colour: save it as PNG or TIFF")
        start = content.find(b"\xff\x51") if image.format == "JPEG2000" else -1
        if start > 0:  # the SIZ marker: bits less one of each component, the highest bit of which is a sign
            depths = content[start + 40 : start + 40 + 3 * content[start + 39] : 3]
            if max(depths) > 127 or (len(depths) > 1 and max(depths) > 7):
                raise Unsupported("is JPEG 2000 of signed numbers or over 8 bits a colour: save it as PNG or TIFF")
        if image.info.get("progressive") and content.count(b"\xff\xda") > MAX_SCANS:
            raise Unsupported(f"is a JPEG of more than {MAX_SCANS} scans: save it anew")
        if not content and image.format == "PNG" and unpacking in _DEEP:
            raise Unsupported("holds 16 bits a colour, of which Pillow gives 8: give its path or its bytes")
        image.load()
        key = image.info.get("transparency") if image.mode in ("1", "L", "RGB", "I;16") else None
        mode = image.mode
        if not mode.startswith(("I", "F")):
            mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
            if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (image.mode == "P" and "transparency" in image.info):
                mode += "A"
        if content and image.format == "PNG" and unpacking in _DEEP:
            values = decoders.png_values(content, unpacking)
        else:
            converted = image if image.mode == mode else image.convert(mode)
            values = _opaque(converted) if mode.endswith("A") else np.asarray(converted)
        if key is not None:  # in the file's own bits: those of 1, 2 and 4 bits were spread over 8
            white = {"1": 1, "L;2": 3, "L;4": 15}.get(unpacking, 255)
            same = values == (np.asarray(key) if values.itemsize > 1 else (np.asarray(key) & white) * (255 // white))
            values = np.where(same.all(2, keepdims=True) if values.ndim == 3 else same, values.dtype.type(0), values)
        turn = UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:
        raise _unreadable(name, error, content or b" ") from error
    return _from_values(np.ascontiguousarray(turn(values)) if turn else values, name)


def _opaque(image: Image.Image | Values) -> Values:
    """Colours and straight alpha laid over black, some rows at a time: the arithmetic takes four times their memory."""
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    blended: Values = np.empty(0)
    for top in range(0, height, _BAND):
        below = min(top + _BAND, height)
        part = image[top:below] if isinstance(image, np.ndarray) else np.asarray(image.crop((0, top, width, below)))
        values, alpha = part[..., :-1], part[..., -1:]
        if values.dtype.kind == "f":
            values = values * alpha
        elif (alpha < (white := np.iinfo(values.dtype).max)).any():  # rounded to the nearest integer
            values = ((values.astype(np.uint32) * alpha + white // 2) // white).astype(values.dtype)
        blended = blended if top else np.empty((height, *values.shape[1:]), values.dtype)
        blended[top:below] = values
    return blended


def _from_values(values: Values, name: str) -> DecodedImage:
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
        deep = np.uint8 if values.dtype == np.int8 else np.uint16
        values = _as_levels(values) if limit == 1 else values.astype(deep, copy=False)
    if values.shape[2] in (2, 4):
        values = _opaque(values)
    pixels = np.broadcast_to(values, (*values.shape[:2], 3))
    return DecodedImage(pixels, 8 * values.dtype.itemsize, grey=values.shape[2] == 1)


def _as_levels(values: Values) -> Values:
    """Floats in [0, 1] as uint8 where they are nothing else, so that both are resized alike; otherwise as float32."""
    tolerance = 0.25 if values.dtype == np.float16 else 3e-5  # in levels: half floats near 1 are as coarse as that
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND):
        scaled = values[top : top + _BAND].astype(np.float64) * 255
        nearest = np.rint(scaled)
        if (np.abs(scaled - nearest) > tolerance).any():
            return values.astype(np.float32, copy=False)
        levels[top : top + _BAND] = nearest
    return levels


def _check_size(height: int, width: int, name: str, most: int | None = None) -> None:
    size, most = f"{name} has {width} x {height} pixels", MAX_PIXELS if most is None else most
    if height * width > most:
        raise ImageError(f"{size}, more than the {most:,} that are taken for one part: cut it or shrink it first.")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{size}: at least {MIN_SIDE} a side are needed.")


def _unreadable(name: str, error: Exception, content: bytes | None = None) -> ImageError:
    """What became of a file whose ``content`` cannot be decoded; None where it could not be read at all."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        raise error
    start = _STARTS.match(content or b"")
    kind, reason = ((start and start.lastgroup) or "").replace("_", " "), str(error) or type(error).__name__
    known = start is not None and (start.lastindex or 0) <= _STARTS.groupindex["DICOM"]
    if isinstance(error, Unsupported):
        said = reason
    elif isinstance(error, Image.DecompressionBombError):
        said = f"claims more than the {MAX_PIXELS:,} pixels that are taken for one part: shrink it"
    elif content is None or (isinstance(error, OSError) and error.errno is not None):
        said = f"cannot be opened: {getattr(error, 'strerror', None) or error}"
    elif isinstance(error, UnidentifiedImageError) and not known:
        said = f"is {f'a {kind} file and is not read' if kind else 'not an image'}: {_NEEDED}"
    elif isinstance(error, UnidentifiedImageError):
        said = f"is damaged: it begins as {kind} and does not go on so"
    elif not isinstance(error, TypeError) and re.search("(?i)unsupported|not support|cannot handle|unknown", reason):
        said = f"is {kind} of a kind that is not read ({reason}): save it as PNG or TIFF"
    else:  # damaged files make Pillow raise nearly anything: struct.error, KeyError, OverflowError, SyntaxError ...
        said = f"is damaged: {reason}. Copy or export it again"
    return ImageError(f"{name} {said}.")
