"""Each mode and defect of image files, against pixels computed without Blemish."""

import io
import itertools
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from blemish.data import images
from blemish.data.images import MAX_PIXELS, decode, read_header, read_image, white_level
from blemish.errors import ImageError

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
ALPHA = RNG.integers(0, 256, (20, 30, 1), dtype=np.uint8)
STRIPES = np.arange(600).reshape(20, 30) % 2
PALETTE = Image.fromarray(STRIPES.astype(np.uint8), "P")
PALETTE.putpalette([200, 10, 30, 5, 60, 90])
DEEP_COLOUR = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
WHITE = np.full_like(DEEP, 65535)
BLENDED = np.floor(COLOUR * (ALPHA / 255) + 0.5)
TIFF_WAYS = [
    {},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"compression": "zlib"},
    {"compression": "zlib", "predictor": 2},
]
TIFF_WAYS += [{"planarconfig": "separate"}, {"planarconfig": "separate", "tile": (16, 16)}]
INKS = np.stack([np.full((20, 30), 255, np.uint8), *[np.zeros((20, 30), np.uint8)] * 3], axis=2)  # full cyan


def saved(picture, kind="PNG", mode=None, **options):
    """The bytes of a file that holds a PIL image or an array."""
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture, mode)
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array, **how):
    """The bytes of a TIFF, one or several pages, as tifffile writes it."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=how.pop("bigtiff", False), byteorder=how.pop("byteorder", "<")) as writer:
        for page, kind in zip(array if isinstance(array, list) else [array], how.pop("kinds", itertools.repeat(0))):
            planes = np.moveaxis(page, -1, 0) if "planarconfig" in how else page
            writer.write(planes, subfiletype=kind, metadata=None, **how)
    return file.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(array, key=None):
    """A PNG of 16 bits a colour, which Pillow cannot write; ``key`` is its transparent colour."""
    height, width, channels = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    hidden = chunk(b"tRNS", key.astype(">u2").tobytes()) if key is not None else b""
    body = chunk(b"IHDR", header) + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def without(array, colour):
    return np.where((array == colour).all(2, keepdims=True), 0, array)


def png_with_header(width, height):
    """A PNG that claims a size and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("source", "expected", "bits"),
    [
        *((saved(COLOUR, kind), COLOUR, 8) for kind in ("PNG", "TIFF", "BMP", "PPM")),
        (saved(COLOUR, "WEBP", lossless=True), COLOUR, 8),
        (saved(GREY), GREY, 8),
        (saved(GREY, "GIF"), GREY, 8),
        (saved(GREY > 127), np.where(GREY > 127, 255, 0), 8),
        (saved(DEEP), DEEP, 16),
        (saved(DEEP, "TIFF"), DEEP, 16),
        (b"P5 30 20 65535\n" + DEEP.astype(">u2").tobytes(), DEEP, 16),
        (Image.frombytes("I;16B", (30, 20), DEEP.astype(">u2").tobytes()), DEEP, 16),
        # Transparency lies over black.
        (saved(np.dstack([COLOUR, ALPHA])), BLENDED, 8),
        (saved(np.dstack([GREY, ALPHA]), mode="LA"), np.floor(GREY * (ALPHA[..., 0] / 255) + 0.5), 8),
        (saved(np.dstack([COLOUR, np.full_like(ALPHA, 255)])), COLOUR, 8),
        (saved(PALETTE), np.where(STRIPES[..., None] == 0, [200, 10, 30], [5, 60, 90]), 8),
        (saved(PALETTE, transparency=b"\x00\xff"), np.where(STRIPES[..., None] == 0, 0, [5, 60, 90]), 8),
        (saved(INKS, "TIFF", mode="CMYK"), np.broadcast_to([0, 255, 255], (20, 30, 3)), 8),
        # Arrays: grey, with a channel, yes or no, 16 bits, floats, half transparent.
        (COLOUR, COLOUR, 8),
        (GREY, GREY, 8),
        (GREY[..., None], GREY, 8),
        (GREY > 9, (GREY > 9) * 255, 8),
        (DEEP, DEEP, 16),
        (DEEP.astype(">u2"), DEEP, 16),
        (DEEP / 65535.0, (DEEP / 65535.0).astype(np.float32), 32),
        # Floats of 256 levels are those levels, so that they are resized as such.
        *((GREY.astype(kind) / kind(255), GREY, 8) for kind in (np.float64, np.float32, np.float16)),
        *((kind(saved(GREY)), GREY, 8) for kind in (bytearray, memoryview, io.BytesIO)),
        # What Pillow alone would give wrongly or at 8 bits.
        (png(DEEP_COLOUR), DEEP_COLOUR, 16),
        (png(np.dstack([DEEP_COLOUR, WHITE])), DEEP_COLOUR, 16),
        (png(np.dstack([DEEP, WHITE])), DEEP, 16),
        (png(DEEP_COLOUR, DEEP_COLOUR[3, 4]), without(DEEP_COLOUR, DEEP_COLOUR[3, 4]), 16),
        (saved(DEEP, transparency=int(DEEP[3, 4])), np.where(DEEP[3, 4] == DEEP, 0, DEEP), 16),
        (saved(COLOUR, transparency=tuple(map(int, COLOUR[3, 4]))), without(COLOUR, COLOUR[3, 4]), 8),
        (saved(GREY, transparency=int(GREY[3, 4])), np.where(GREY[3, 4] == GREY, 0, GREY), 8),
        *((tiff(DEEP_COLOUR, photometric="rgb", **how), DEEP_COLOUR, 16) for how in TIFF_WAYS),
        (tiff(DEEP, photometric="miniswhite"), 65535 - DEEP, 16),
        (tiff(DEEP, photometric="miniswhite", byteorder=">"), 65535 - DEEP, 16),
        (tiff((GREY // 2).astype(np.int8)), GREY // 2, 8),
        (tiff((DEEP // 2).astype(np.int16)), DEEP // 2, 16),
        (tiff(DEEP.astype(np.uint32) * 65537), (DEEP.astype(np.uint32) * 65537 / 4294967295).astype(np.float32), 32),
        (tiff(DEEP_COLOUR.astype(np.float32) / 65536, photometric="rgb"), DEEP_COLOUR.astype(np.float32) / 65536, 32),
        (tiff(np.dstack([COLOUR, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]), BLENDED, 8),
        (tiff(np.dstack([DEEP_COLOUR, WHITE // 2]), photometric="rgb", extrasamples=["assocalpha"]), DEEP_COLOUR, 16),
        (np.dstack([np.ones((9, 9, 3)), np.full((9, 9), 0.5)]), np.full((9, 9, 3), 0.5), 32),
    ],
)
def test_pixels_come_back_in_rgb_order_at_their_depth(source, expected, bits):
    image = read_image(source)
    grey = expected.ndim == 2 and not (isinstance(source, bytes) and source.startswith(b"GIF"))  # a GIF has a palette
    assert (image.bits, image.grey, image.size) == (bits, grey, expected.shape[:2])
    assert image.pixels.dtype == {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    colours = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected
    np.testing.assert_array_equal(image.pixels, colours)
    assert (image.pixels.strides[2] == 0) == grey  # replicated without memory


def test_a_deep_png_opened_by_pillow_is_refused_not_misread():
    deep = png(np.full((9, 8, 3), 4094, np.uint16))
    assert read_image(deep).pixels.max() == 4094
    with pytest.raises(ImageError, match="give its path or its bytes"):
        read_image(Image.open(io.BytesIO(deep)))


def test_one_image_a_file_but_for_a_phone_s_second_view_and_thumbnails():
    first, second = Image.fromarray(np.full((20, 30), 90, np.uint8)), Image.new("L", (30, 20))
    content = saved(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(content).pixels, np.full((20, 30, 3), 90))
    for pages in ([GREY[:9, :9], GREY], [GREY, GREY[:9, :9], GREY[:8, :8]]):
        kinds = [int(page.size < GREY.size) for page in pages]  # 1: a reduced copy
        np.testing.assert_array_equal(read_image(tiff(pages, kinds=kinds)).pixels[..., 0], GREY)
    stack = tiff(np.stack([GREY] * 3), photometric="minisblack", description="ImageJ=1.54\nimages=3\n")
    many = tiff([GREY[:8, :8]] * 3000)  # each page is not looked at
    for content in (saved(first, "GIF", save_all=True, append_images=[second]), tiff([GREY, GREY]), stack, many):
        with pytest.raises(ImageError, match="holds several images"):
            read_image(content)


def test_formats_of_photographs(tmp_path):
    near = Image.effect_mandelbrot((64, 48), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    pytest.importorskip("pillow_heif").register_heif_opener()
    for kind, options in (("AVIF", {"quality": 100}), ("JPEG2000", {}), ("HEIF", {"quality": 100})):
        path = tmp_path / f"a.{kind}"
        near.save(path, kind, **options)
        assert np.abs(read_image(path).pixels.astype(int) - np.asarray(near)).mean() < 2, kind
        assert read_header(path) == ((48, 64), 8)


def dicom(values, syntax="ExplicitVRLittleEndian", **tags):
    """The bytes of a DICOM file of these stored values."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.Rows, data.Columns, data.SamplesPerPixel = *values.shape[:2], values.shape[2] if values.ndim == 3 else 1
    data.BitsAllocated = data.BitsStored = 8 * values.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", values.tobytes()
    data.PlanarConfiguration, data.SOPClassUID, data.SOPInstanceUID = 0, "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    for name, value in tags.items():
        setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


HOUNSFIELD = np.tile(np.array([0, 984, 1064, 1144, 4095, 1024, 1065, 2000], np.uint16), (8, 1))
CT = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize(
    ("content", "first_row"),
    [
        # Over all that 12 bits hold, and the other way round.
        (lambda: dicom(HOUNSFIELD, **CT), HOUNSFIELD[0] / 4095),
        (lambda: dicom(HOUNSFIELD, **CT, PhotometricInterpretation="MONOCHROME1"), 1 - HOUNSFIELD[0] / 4095),
        # -1024, -40, 40, 120, 3071, 0, 41 and 976 HU in a window of 161 about 40: PS3.3 C.11.2.1.2.1 by hand.
        (
            lambda: dicom(HOUNSFIELD, **CT, WindowCenter=40, WindowWidth=161),
            [0, (-40 - 39.5) / 160 + 0.5, 0.5 / 160 + 0.5, 1, 1, -39.5 / 160 + 0.5, 1.5 / 160 + 0.5, 1],
        ),
        (
            lambda: dicom(np.tile(np.array([-32768, 0, 32767, 5] * 2, np.int16), (8, 1))),
            np.array([0, 32768, 65535, 32773] * 2) / 65535,
        ),
        (lambda: dicom(GREY[:8, :8].copy()), GREY[0, :8] / 255),
    ],
)
def test_dicom_in_grey(content, first_row, tmp_path):
    image = read_image(content())
    share = image.pixels[0, :, 0] / (255 if image.bits == 8 else 1)
    assert image.grey
    np.testing.assert_allclose(share, first_row, atol=1e-6)
    (tmp_path / "a.dcm").write_bytes(content())
    assert read_header(tmp_path / "a.dcm") == ((8, 8), 32)


def test_dicom_in_colour_and_what_is_refused():
    content = dicom(COLOUR, PhotometricInterpretation="RGB")
    np.testing.assert_array_equal(read_image(content).pixels, COLOUR)
    for tags, said in (
        ({"NumberOfFrames": 3}, "DICOM of 3 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "DICOM in PALETTE COLOR"),
        ({"Rows": 7}, "at least 8 a side"),
    ):
        with pytest.raises(ImageError, match=said):
            read_image(dicom(GREY, **tags))


def test_packed_numbers_and_lzw():
    pytest.importorskip("imagecodecs")
    packed = np.arange(600, dtype=np.uint16).reshape(20, 30) * 6
    np.testing.assert_array_equal(read_image(tiff(packed, bitspersample=12)).pixels[..., 0], packed)
    content = tiff(DEEP_COLOUR, photometric="rgb", compression="lzw", predictor=2)
    np.testing.assert_array_equal(read_image(content).pixels, DEEP_COLOUR)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    content = dicom(GREY)
    for library, file, extra in (("pydicom", content, "medical"), ("pillow_heif", b"\0\0\0\0ftypheic", "formats")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImageError, match=rf"pip install 'blemish\[{extra}\]'"):
            read_image(file)
    pytest.importorskip("imagecodecs")
    (tmp_path / "a.tif").write_bytes(tiff(DEEP_COLOUR, photometric="rgb", compression="lzw"))
    code = (
        "import sys; sys.modules['imagecodecs'] = None\nfrom blemish.data.images import read_image; read_image('a.tif')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert b"a.tif is a TIFF of 16 bits a sample in RGB, LZW: pip install 'blemish[formats]'" in done.stderr


# How the stored pixels abc, def are to be shown, by the EXIF standard's table: where its first row and column belong.
UPRIGHT = {
    1: "abc def",
    2: "cba fed",
    3: "fed cba",
    4: "def abc",
    5: "ad be cf",
    6: "da eb fc",
    7: "fc eb da",
    8: "cf be ad",
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, array in itertools.product(("PNG", "TIFF"), (COLOUR[:2, :3], DEEP[:2, :3])):
        path = tmp_path / f"turned.{kind.lower()}"
        path.write_bytes(saved(array.repeat(8, axis=0).repeat(8, axis=1), kind, exif=exif))
        pixel = dict(zip("abcdef", array.reshape(6, *array.shape[2:])))
        expected = np.array([[pixel[letter] for letter in row] for row in UPRIGHT[orientation].split()])
        expected = expected.repeat(8, axis=0).repeat(8, axis=1)
        for image in (read_image(path), read_image(Image.open(io.BytesIO(path.read_bytes())))):
            pixels = image.pixels if array.ndim == 3 else image.pixels[..., 0]
            np.testing.assert_array_equal(pixels, expected)
        assert read_header(path) == (expected.shape[:2], array.itemsize * 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_rotation_that_xmp_alone_names_is_seen_in_the_header_too(kind, tmp_path):
    space = "http://ns.adobe.com/tiff/1.0/"
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" xmlns:tiff="{space}"/></x:xmpmeta>'.encode()
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    Image.new("RGB", (64, 32)).save(tmp_path / "x", kind, **{"pnginfo": info} if kind == "PNG" else {"xmp": xmp})
    assert read_header(tmp_path / "x")[0] == read_image(tmp_path / "x").size == (64, 32)


def test_a_damaged_exif_is_no_damaged_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    content = saved(COLOUR, "JPEG", quality=100, exif=exif)
    maker = content.index(b"\x01\x0f\x00\x02")
    broken = content[: maker + 3] + b"\0" + content[maker + 4 :]  # a type that does not exist
    np.testing.assert_array_equal(read_image(broken).pixels, read_image(content).pixels)
    assert read_image(broken).size == (30, 20)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((3, 20, 30), np.uint8), "channels last"),
        (np.zeros((20, 30), np.int64), "uint8, uint16, bool or float"),
        (np.full((20, 30), 1.5), "0 to 1"),
        (np.full((20, 30), np.nan), "0 to 1"),
        (np.zeros((7, 30), np.uint8), "at least 8"),
        (np.zeros((0, 30), np.uint8), "at least 8"),
        (np.zeros(20, np.uint8), "not an image"),
        (saved(np.full((9, 9), 3, np.float32), "TIFF"), r"from 3\.0 to 3\.0"),
        (saved(np.full((9, 9), 65536, np.int32), "TIFF"), "65536"),
        (saved(Image.new("RGB", (1, 1))), "1 x 1 pixels: at least 8"),
        (png_with_header(10_001, 10_001), "10001 x 10001 pixels, more than the 100,000,000"),
        (png_with_header(20_000, 20_000), "claims more than"),
        *((content, "the given bytes") for content in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"P5 9 9 255\n")),
        *((content, "PNG, JPEG, TIFF") for content in (b"hello", b"%PDF-1.7")),
        (b"8BPS\0\1", "is a Photoshop file and is not read"),
        (saved(COLOUR, "BMP")[:28] + b"\x07" + saved(COLOUR, "BMP")[29:], "is BMP of a kind that is not read"),
        (tiff(GREY.astype(np.int8) - 9), "from -128 to 126"),
        (tiff(DEEP.astype(np.uint32)), "black on its scale: save it as 16 bits"),
        (tiff(np.dstack([DEEP] * 4), photometric="separated"), "is a TIFF of 16 bits a sample in SEPARATED"),
        (tiff(DEEP_COLOUR, photometric="rgb")[:-100], "ends before its pixels do"),
        (Image.open(io.BytesIO(tiff(DEEP, photometric="miniswhite"))), "Pillow misreads: give its path"),
        (b"P6 30 20 65535\n" + DEEP_COLOUR.tobytes(), "PPM of more than 8 bits a colour"),
        (saved(GREY, "JPEG", progressive=True) + b"\xff\xda" * 100, "more than 100 scans"),
        *((thing, "is not an image: a path, the bytes") for thing in (None, [[1, 2]], torch.zeros(3, 9, 9), 7)),
        ("a\0.png", "cannot be opened: embedded null"),
        (Path("/dev/zero"), "is a device or a pipe"),
        (Path("nowhere.png"), r"nowhere\.png cannot be opened: No such file"),
        (str(Path(__file__).parent), "Is a directory"),
    ],
)
def test_what_is_no_image_to_judge(source, reason):
    with pytest.raises(ImageError, match=reason):
        read_image(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_cut_short_files_name_the_file(kind, tmp_path):
    content = saved(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8), kind)
    path = tmp_path / "Prüfteil, kürzer 检查 №7.img"
    path.write_bytes(content)
    assert read_image(path).size == read_image(str(path)).size == (90, 90)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"检查 №7\.img"):
        read_image(path)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "deep TIFF", "DICOM"]), st.integers(0, 2**32 - 1))
def test_random_damage_never_escapes_the_error_tree(kind, seed):
    rng = np.random.default_rng(seed)
    made = {"deep TIFF": lambda: tiff(DEEP_COLOUR, photometric="rgb"), "DICOM": lambda: dicom(COLOUR)}
    damaged = np.frombuffer(made.get(kind, lambda: saved(COLOUR, kind))(), np.uint8).copy()
    damaged[rng.integers(0, len(damaged), 6)] = rng.integers(0, 256, 6)
    try:
        assert min(decode(damaged.tobytes(), "damaged").size) >= 8
    except ImageError as error:
        assert "damaged" in str(error)


def test_transparency_takes_little_memory():
    """A part of a band at a time: 1.5 MB of RGBA are blended in less than its own size again."""
    image = Image.new("RGBA", (300, 5000), (200, 100, 50, 100))
    image.load()
    tracemalloc.start()
    assert (read_image(image).pixels[4999, 299] == (78, 39, 20)).all()  # 200 * 100 / 255 and so on
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 4 * 300 * 5000


def test_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for source in (np.zeros((20, 30), np.uint8), Image.new("RGB", (30, 20))):
        with pytest.raises(ImageError, match="more than the 599"):
            read_image(source)


def test_a_caller_s_own_limit_is_checked_before_decoding(monkeypatch):
    Image.fromarray(GREY).save(content := io.BytesIO(), "png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than the 99 that"):
        images.decode(content.getvalue(), "it", 99)


def test_deflated_dicom_is_refused_before_it_is_unpacked():
    with pytest.raises(ImageError, match="is deflated DICOM"):
        read_image(dicom(GREY, "DeflatedExplicitVRLittleEndian"))


def test_headers_tell_depth(tmp_path):
    path = tmp_path / "c.tif"
    Image.fromarray(GREY.astype(np.float32) / 255).save(path)
    assert (read_header(path)[1], read_image(path).pixels[3, 4, 0]) == (32, GREY[3, 4])
    for content in (png(DEEP_COLOUR), tiff(DEEP_COLOUR, photometric="rgb"), tiff(DEEP, photometric="miniswhite")):
        path.write_bytes(content)
        assert read_header(path) == ((20, 30), 16)
    path.write_bytes(png_with_header(10_000, 10_000))  # exactly at the limit
    assert read_header(path) == ((10_000, 10_000), 8) and MAX_PIXELS == 10_000**2
    code = f"import pathlib, blemish.data.images as i; i.read_header(pathlib.Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, check=True, timeout=60)
    assert b"Decompression" not in done.stderr  # Pillow's warning of a large image stays inside
    path.write_bytes(b"no")
    with pytest.raises(ImageError, match=r"c\.tif"):
        read_header(path)


def test_the_white_level_is_the_next_power_of_two():
    levels = {0: 255, 200: 255, 255: 255, 256: 511, 1023: 1023, 3900: 4095, 65535: 65535}
    assert {brightest: white_level(brightest) for brightest in levels} == levels
