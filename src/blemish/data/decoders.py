"""Files that Pillow does not read, or reads wrongly or too shallowly, by libraries that do.

* TIFF of more than 8 bits in colour, white at zero, floats, signed or packed numbers: tifffile; LZW and packed bits
  need imagecodecs as well (extra ``formats``). Whole numbers keep their values, those above 16 bits become shares.
* PNG of 16 bits a colour: Pillow, asked twice. HEIC: pillow-heif (extra ``formats``), by way of Pillow.
* DICOM: pydicom (extra ``medical``). Grey values are rescaled, spread over the file's first window or over all that its
  bits can hold, and inverted for MONOCHROME1.

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
ONE_AT_A_TIME = "and one is judged at a time: save each as a file of its own"
UPRIGHT: dict[int, Callable[[Values], Values]] = {  # EXIF's orientations, as views of an array
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}

for _library in ("tifffile", "pydicom"):  # what they would print is raised here, or harmless
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=rf"{_library}(\.|$)")


class Unsupported(Exception):
    """A whole file of a kind that is not read; the text goes after the file's name: what it is, and what helps."""


def open_heif(file: Any) -> Image.Image:
    """A HEIC or HEIF file, at 8 bits a channel."""
    try:
        import pillow_heif
    except ImportError:
        raise Unsupported("is HEIC: pip install 'blemish[formats]', or save it as PNG") from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=("HEIF",))


def tiff_page(file: Any) -> "TiffPage":
    """The one picture of a TIFF; pages marked as thumbnails or masks are passed over."""
    import tifffile

    tiff, pages = tifffile.TiffFile(file), list[tifffile.TiffPage]()
    for number in range(MAX_PAGES + 1):
        try:
            page = tiff.pages[number].aspage()
        except IndexError:
            break
        if pages and page.offset == pages[0].offset:  # the pages go round in a circle
            break
        pages.append(page)
        mains = [page for page in pages if not page.subfiletype & 5]  # 1: a reduced copy of another page, 4: its mask
        volume = page.imagedepth > 1 or (tiff.is_imagej and int((tiff.imagej_metadata or {}).get("images", 1)) > 1)
        if len(mains) > 1 or number == MAX_PAGES or volume:
            raise Unsupported(f"holds several images, {ONE_AT_A_TIME}")
    if not pages:
        raise ValueError("it has no page")
    page = (mains or pages)[0]
    if not all(isinstance(number, int) for number in (page.imagelength, page.imagewidth, page.bitspersample)):
        raise ValueError("it gives several numbers where one is needed")
    return page


def pillow_reads(tag: Callable[[int, Any], Any]) -> bool:
    """Whether Pillow gives all bits of a TIFF, and the right ones, by its tags."""
    bits, kind = (np.max(tag(number, 1)) for number in (258, 339))  # kind: unsigned, signed, float
    samples, shown, order, planar = (tag(number, 1) for number in (277, 262, 266, 284))
    if bits <= 8 and kind == 1:
        return bool(samples != 2 or planar == 1)
    plain = (samples, shown, order) == (1, 1, 1)
    return plain and (bits, kind) in ((16, 1), (16, 2), (32, 2), (32, 3))


def tiff_values(page: "TiffPage", content: bytes) -> Values:
    """The pixels of a page that Pillow does not read."""
    bits, kind, colours = page.bitspersample, page.sampleformat, {0: 1, 1: 1, 2: 3}.get(page.photometric)
    packing, shown = (getattr(value, "name", value) for value in (page.compression, page.photometric))
    what = f"is a TIFF of {bits}{ {2: ' signed', 3: ' float'}.get(kind, '') } bits a sample in {shown}, {packing}"
    extra = list(page.extrasamples) or [2] * (page.samplesperpixel - (colours or 0))  # as Pillow: alpha unless it says
    alpha = extra[:1] == [2]  # colours with associated alpha lie over black as they are; other samples mean nothing
    strange = colours is None or len(extra) > 1 or kind not in (1, 2, 3) or (alpha and bits not in (8, 16, 32))
    if strange or not 8 <= bits <= 64 or page.compression not in (1, 5, 8, 32773, 32946) or page.nbytes > 1.6e9:
        raise Unsupported(f"{what}: save it as grey or RGB of 8 or 16 bits, uncompressed")
    for start, length in zip(page.dataoffsets, page.databytecounts):
        if length == 0 or start + length > len(content):
            raise ValueError("it ends before its pixels do")
        if packing != "NONE" and page.compression in (8, 32946):
            limit = page.nbytes + 2**20
            if len(zlib.decompressobj().decompress(content[start : start + length], limit)) == limit:
                raise ValueError("it unpacks to more than its pixels")
    try:
        values = page.asarray()
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
        raise Unsupported(f"{what}: pip install 'blemish[formats]', or save it uncompressed") from None
    if page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
        values = values[..., : (colours or 0) + alpha]
    if kind == 1 and bits > 16:
        if values.max() < 65536:
            raise Unsupported(f"{what} with values up to {values.max()}, black on its scale: save it as 16 bits")
        values = values / (2.0**bits - 1)
    if page.photometric == 0:
        values = ((1 << bits) - 1 if kind == 1 and bits <= 16 else 1) - values
    turn = UPRIGHT.get(page.tags.valueof(274, 1))
    return turn(values) if turn else values


def png_values(content: bytes, unpacking: str) -> Values:
    """The pixels of a PNG of 16 bits a channel, of which Pillow gives high bytes or, told otherwise, low ones."""
    values: Values = np.zeros(1, np.uint16)
    for order in "BL":
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            how = "RGBA" if unpacking == "LA;16B" else unpacking[:-1] + order  # grey and alpha are four bytes, too
            image.tile = [image.tile[0]._replace(args=how)]
            part: Values = np.asarray(image)
        if unpacking == "LA;16B":
            return np.left_shift(part[..., ::2].astype(np.uint16), 8) | part[..., 1::2]
        values = part.astype(np.uint16) << 8 if order == "B" else np.bitwise_or(values, part, out=values)
    return values


def dicom_header(file: Any) -> Any:
    """What a DICOM file of one picture says of it."""
    try:
        import pydicom
    except ImportError:
        raise Unsupported("is DICOM: pip install 'blemish[medical]', or export it as PNG") from None
    file.seek(132)
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group > 2)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:  # all of it, to any size
        raise Unsupported("is deflated DICOM, whose size nobody knows before it is unpacked: save it uncompressed")
    file.seek(0)
    data = pydicom.dcmread(file, stop_before_pixels=True)
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise Unsupported(f"is DICOM of {data.NumberOfFrames} frames, {ONE_AT_A_TIME}")
    if "Rows" not in data or "Columns" not in data:
        raise Unsupported("is DICOM without a picture: give files that hold one")
    return data


def dicom_values(data: Any, content: bytes) -> Values:
    """The pixels of a DICOM picture."""
    from pydicom.pixels.processing import apply_rescale, apply_windowing
    from pydicom.pixels.utils import pixel_array

    shown = str(data.PhotometricInterpretation)
    if not shown.startswith(("MONOCHROME", "RGB", "YBR")) or "ModalityLUTSequence" in data:
        raise Unsupported(f"is DICOM in {shown} or with a table of values: export it as PNG")
    try:
        values: Values = pixel_array(io.BytesIO(content))  # in colour: RGB, whatever was stored
    except (RuntimeError, AttributeError) as error:  # pydicom's ways to say that it has no decoder, or too few tags
        reason = " ".join(str(error).split())
        raise Unsupported(f"is DICOM whose pixels are not read ({reason}): export it as PNG") from error
    if values.ndim == 3:
        return values
    least = -(1 << (data.BitsStored - 1)) if data.PixelRepresentation else 0
    ends = np.sort(apply_rescale(np.array([least, least + (1 << data.BitsStored) - 1]), data))
    if ends[0] == ends[1]:
        raise ValueError("its values are rescaled to one")
    # A window is spread over what the stored bits can hold after rescaling.
    grey: Values = np.clip((apply_windowing(apply_rescale(values, data), data) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return 1 - grey if shown == "MONOCHROME1" else grey
