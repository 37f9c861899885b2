"""Each mode and defect of image files, against pixels computed without Blemish."""

import io
import itertools
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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
INKS = np.stack([np.full((20, 30), 255, np.uint8), *[np.zeros((20, 30), np.uint8)] * 3], axis=2)  # full cyan


def saved(picture, kind="PNG", mode=None, **options):
    """The bytes of a file that holds a PIL image or an array."""
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture, mode)
    image.save(file, kind, **options)
    return file.getvalue()


def png_with_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

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
        (saved(np.dstack([COLOUR, ALPHA])), np.floor(COLOUR * (ALPHA / 255) + 0.5), 8),
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
        (GREY / 255.0, (GREY / 255.0).astype(np.float32), 32),
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


def test_one_image_a_file_but_for_a_phone_s_second_view():
    first, second = Image.fromarray(np.full((20, 30), 90, np.uint8)), Image.new("L", (30, 20))
    content = saved(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(content).pixels, np.full((20, 30, 3), 90))
    with pytest.raises(ImageError, match="holds 2 images"):
        read_image(saved(first, "GIF", save_all=True, append_images=[second]))


# Where the stored first row and first column appear, by the EXIF standard's table of orientations.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, array in itertools.product(("PNG", "TIFF"), (COLOUR, DEEP)):
        path = tmp_path / f"turned.{kind.lower()}"
        path.write_bytes(saved(array, kind, exif=exif))
        expected = UPRIGHT[orientation](array)
        for image in (read_image(path), read_image(Image.open(io.BytesIO(path.read_bytes())))):
            pixels = image.pixels if array.ndim == 3 else image.pixels[..., 0]
            np.testing.assert_array_equal(pixels, expected)
        assert read_header(path) == (expected.shape[:2], array.itemsize * 8)


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
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"]), st.integers(0, 2**32 - 1))
def test_random_damage_never_escapes_the_error_tree(kind, seed):
    rng = np.random.default_rng(seed)
    damaged = np.frombuffer(saved(COLOUR, kind), np.uint8).copy()
    damaged[rng.integers(0, len(damaged), 6)] = rng.integers(0, 256, 6)
    try:
        assert min(decode(damaged.tobytes(), "damaged").size) >= 8
    except ImageError as error:
        assert "damaged" in str(error)


def test_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for source in (np.zeros((20, 30), np.uint8), Image.new("RGB", (30, 20))):
        with pytest.raises(ImageError, match="more than the 599"):
            read_image(source)


def test_headers_tell_depth(tmp_path):
    path = tmp_path / "c.tif"
    Image.fromarray(GREY.astype(np.float32) / 255).save(path)
    assert (read_header(path)[1], read_image(path).pixels[3, 4, 0]) == (32, np.float32(GREY[3, 4]) / 255)
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
