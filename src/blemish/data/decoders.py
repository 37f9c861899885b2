"""Files that Pillow does not read, or reads wrongly or too shallowly, by libraries that do.

* TIFF of more than 8 bits in colour, white at zero, floats, signed or packed numbers: tifffile; LZW and packed bits
  need imagecodecs as well (extra ``formats``). Whole numbers keep their values, those of 32 bits become shares of all.
* PNG of 16 bits a colour: torchvision.
* DICOM: pydicom (extra ``medical``). Grey values are rescaled, then spread over the file's window, or over all that its
  bits can hold; MONOCHROME1 is inverted.
* HEIC: pillow-heif (extra ``formats``), by way of Pillow.

All give ``h w`` or ``h w c``, upright: grey or colours and perhaps straight alpha, of uint8, uint16 or float in [0, 1].
"""

import io
import logging
import warnings
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from tifffile import TiffPage

Values = npt.NDArray[Any]

MAX_PAGES = 64  # of a TIFF, thumbnails included
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# What they warn of is raised as an error here, or harmless.
for _library in ("tifffile", "pydicom"):
    logging.getLogger(_library).addHandler(logging.NullHandler())
    logging.getLogger(_library).propagate = False
    warnings.filterwarnings("ignore", module=rf"{_library}(\.|$)")

UPRIGHT: dict[int, Callable[[Values], Values]] = {  # EXIF's orientations, as views of an array
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class Unsupported(Exception):
    """A whole file of a kind that is not read; the text goes after the file's name: what it is, and what helps."""


def open_heif(file: Any) -> Image.Image:
    """A HEIC or HEIF file, at 8 bits a channel."""
    try:
        import pillow_heif
    except ImportError:
        raise Unsupported(
            "is HEIC, which needs pillow-heif: pip install 'blemish[formats]', or save it as PNG"
        ) from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=("HEIF",))


# TIFF


def tiff_page(file: Any) -> "TiffPage":
    """The one picture of a TIFF; pages marked as thumbnails or masks are passed over."""
    import tifffile

    tiff = tifffile.TiffFile(file)
    first, mains = None, list[tifffile.TiffPage]()
    for number in range(MAX_PAGES):
        try:
            page = tiff.pages[number].aspage()
        except IndexError:
            break
        if first is not None and page.offset == first.offset:  # a circle
            break
        first = first or page
        if not page.subfiletype & 5:  # 1: a reduced copy of another page, 4: its mask
            mains.append(page)
        volume = page.imagedepth > 1 or (tiff.is_imagej and int((tiff.imagej_metadata or {}).get("images", 1)) > 1)
        if len(mains) > 1 or volume or number == MAX_PAGES - 1:
            raise Unsupported("holds several images, and one is judged at a time: save each as a file of its own")
    if first is None:
        raise ValueError("it has no page")
    return mains[0] if mains else first


def pillow_reads(bits: int, kind: int, samples: int, photometric: int, fill_order: int, planar: int) -> bool:
    """Whether Pillow gives all bits of a TIFF, and the right ones, by its tags (kind: its SampleFormat)."""
    if bits <= 8 and kind == 1:
        return samples != 2 or planar == 1
    return (samples, photometric, fill_order) == (1, 1, 1) and (bits, kind) in ((16, 1), (16, 2), (32, 2), (32, 3))


def tiff_values(page: "TiffPage", content: bytes) -> Values:
    """The pixels of a page that Pillow does not read."""
    import tifffile

    bits, kind, colours = page.bitspersample, page.sampleformat, {0: 1, 1: 1, 2: 3}.get(page.photometric)
    numbers = {1: "", 2: " signed", 3: " float", 5: " complex", 6: " complex"}.get(kind, " undefined")
    compression = getattr(page.compression, "name", page.compression)
    what = f"is a TIFF of {bits}{numbers} bits a sample"
    if colours is None or bits < 8:
        shown = getattr(page.photometric, "name", page.photometric)
        raise Unsupported(f"{what}, {page.samplesperpixel} samples in {shown}: save it as grey or RGB of 8 bits")
    extra = list(page.extrasamples) or [2] * (page.samplesperpixel - colours)  # as Pillow: alpha where it does not say
    has_alpha = extra[:1] == [2]  # colours with associated alpha lie over black as they are; other samples mean nothing
    if len(extra) > 1 or kind not in (1, 2, 3) or bits > 64 or (has_alpha and bits not in (8, 16, 32)):
        raise Unsupported(f"{what}{' with transparency' * has_alpha}: save it as 8 or 16 bits")
    if page.compression not in (1, 5, 8, 32773, 32946) or page.nbytes > 1_600_000_000:
        raise Unsupported(f"{what} in {compression}, {page.nbytes} bytes: save it as 16 bits, uncompressed")
    segment = page.nbytes // max(1, len(page.dataoffsets)) if page.compression == 1 else page.nbytes + 2**20
    for start, length in zip(page.dataoffsets, page.databytecounts):
        stream = zlib.decompressobj() if page.compression in (8, 32946) else None
        if length == 0 or start + length > len(content):
            raise ValueError("it ends before its pixels do")
        if stream and len(stream.decompress(content[start : start + length], segment)) == segment:
            raise ValueError("it holds more than its pixels")
    try:
        values = page.asarray()
    except (ValueError, NotImplementedError, ImportError, AttributeError) as error:
        if "imagecodecs" not in str(error) or isinstance(error, tifffile.TiffFileError):
            raise
        packing = f"{what} in {compression}, which needs imagecodecs"
        raise Unsupported(f"{packing}: pip install 'blemish[formats]', or save it as 16 bits, uncompressed") from None
    if page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
        values = values[..., : colours + has_alpha]
    if kind == 1 and bits > 16:
        if values.max() < 65536:
            raise Unsupported(f"{what} with values up to {values.max()}, black on its scale: save it as 16 bits")
        values = values / (2.0**bits - 1)
    if page.photometric == 0:
        values = ((1 << bits) - 1 if kind == 1 and bits <= 16 else 1) - values
    turn = UPRIGHT.get(int(page.tags.valueof(274, 1)))
    return turn(values) if turn else values


def png_values(content: bytes) -> Values:
    """The pixels of a PNG of 16 bits a channel."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    values: Values = decode_image(encoded, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    return values


# DICOM


def dicom_header(file: Any) -> Any:
    """What a DICOM file of one picture says of it."""
    try:
        import pydicom
    except ImportError:
        raise Unsupported(
            "is DICOM, which needs pydicom: pip install 'blemish[medical]', or export it as PNG"
        ) from None
    data = pydicom.dcmread(file, stop_before_pixels=True)
    if int(data.get("NumberOfFrames") or 1) > 1:
        frames = f"is DICOM of {data.NumberOfFrames} frames"
        raise Unsupported(f"{frames}, and one image is judged at a time: save each as a file of its own")
    if "Rows" not in data or "Columns" not in data:
        raise Unsupported("is DICOM without a picture: give files that hold one")
    return data


def dicom_values(data: Any, content: bytes) -> Values:
    """The pixels of a DICOM picture."""
    from pydicom.pixels.utils import pixel_array

    try:
        values: Values = pixel_array(io.BytesIO(content))  # in colour: RGB, whatever was stored
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise Unsupported(f"is DICOM whose pixels are not read ({reason}): export it as PNG") from error
    shown = str(data.PhotometricInterpretation)
    if values.ndim == 3 and (shown == "RGB" or shown.startswith("YBR")):
        return values
    if shown not in ("MONOCHROME1", "MONOCHROME2") or "ModalityLUTSequence" in data:
        table = " with a table of values" * ("ModalityLUTSequence" in data)
        raise Unsupported(f"is DICOM in {shown}{table}: export it as PNG")
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    least = -(1 << (data.BitsStored - 1)) if data.PixelRepresentation else 0
    ends = sorted(slope * stored + intercept for stored in (least, least + (1 << data.BitsStored) - 1))
    if data.get("WindowWidth") and data.get("WindowCenter") is not None:
        centre, width = (np.atleast_1d(data[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        law = data.get("VOILUTFunction", "LINEAR")
        if law not in ("LINEAR", "LINEAR_EXACT"):
            raise Unsupported(f"is DICOM with a window of kind {law}: export it as PNG")
        # PS3.3 C.11.2.1.2: the linear window's ends lie half a value inside.
        inside = 0.5 if law == "LINEAR" else 0.0
        ends = [float(centre) - inside + side * max(float(width) - 2 * inside, 1e-6) / 2 for side in (-1, 1)]
    if not ends[1] > ends[0]:
        raise ValueError(f"its values span {ends}")
    grey = np.clip((values * slope + intercept - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return 1 - grey if shown == "MONOCHROME1" else grey
