"""Each mode and defect of image files, against pixels computed without Blemish."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from blemish.data import images
from blemish.data.images import MAX_PIXELS, decode, read_header, read_image, white_level
from blemish.errors import ImageError

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_colour_comes_back_in_rgb_order(kind):
    raster = read_image(saved(Image.fromarray(COLOUR), kind))
    assert (raster.bits, raster.grey, raster.size) == (8, False, (20, 30))
    np.testing.assert_array_equal(raster.pixels, COLOUR)


def test_a_phone_s_jpeg_with_a_second_picture_inside():
    first, second = Image.fromarray(np.full((20, 30), 90, np.uint8)), Image.new("L", (30, 20))
    content = saved(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(content).pixels, np.full((20, 30, 3), 90))


def test_lossless_webp_and_gif_of_one_frame_alone():
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(COLOUR), "WEBP", lossless=True)).pixels, COLOUR)
    frames = [Image.fromarray(np.full((20, 30), value, np.uint8)) for value in (40, 200)]
    np.testing.assert_array_equal(read_image(saved(frames[0], "GIF")).pixels, np.full((20, 30, 3), 40))
    with pytest.raises(ImageError, match="holds 2 images"):
        read_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def test_grey_is_replicated_without_memory():
    raster = read_image(saved(Image.fromarray(GREY)))
    assert raster.grey
    np.testing.assert_array_equal(raster.pixels, np.repeat(GREY[..., None], 3, axis=2))
    assert raster.pixels.strides[2] == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_depth(kind):
    raster = read_image(saved(Image.fromarray(DEEP), kind))
    assert (raster.bits, raster.grey, raster.pixels.dtype) == (16, True, np.uint16)
    np.testing.assert_array_equal(raster.pixels[..., 1], DEEP)


def test_16_bit_pgm_and_big_endian():
    pgm = b"P5 30 20 65535\n" + DEEP.astype(">u2").tobytes()
    np.testing.assert_array_equal(read_image(pgm).pixels[..., 0], DEEP)
    swapped = Image.frombytes("I;16B", (30, 20), DEEP.astype(">u2").tobytes())
    raster = read_image(swapped)
    assert raster.pixels.dtype == np.uint16
    np.testing.assert_array_equal(raster.pixels[..., 2], DEEP)


def test_transparency_lies_over_black():
    alpha = RNG.integers(0, 256, (20, 30, 1), dtype=np.uint8)
    expected = np.floor(COLOUR * (alpha / 255) + 0.5)
    found = read_image(saved(Image.fromarray(np.concatenate([COLOUR, alpha], axis=2))))
    np.testing.assert_array_equal(found.pixels, expected)
    grey = read_image(saved(Image.fromarray(np.concatenate([GREY[..., None], alpha], axis=2), "LA")))
    assert grey.grey
    np.testing.assert_array_equal(grey.pixels, np.floor(GREY[..., None] * (alpha / 255) + 0.5).repeat(3, axis=2))


def test_opaque_alpha_changes_nothing():
    opaque = np.concatenate([COLOUR, np.full((20, 30, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(opaque))).pixels, COLOUR)


def test_palette_with_and_without_transparency():
    indices = Image.fromarray((np.arange(600).reshape(20, 30) % 2).astype(np.uint8), "P")
    indices.putpalette([200, 10, 30, 5, 60, 90])
    expected = np.where((np.arange(600).reshape(20, 30, 1) % 2) == 0, [200, 10, 30], [5, 60, 90])
    np.testing.assert_array_equal(read_image(saved(indices)).pixels, expected)
    see_through = read_image(saved(indices, transparency=b"\x00\xff"))
    np.testing.assert_array_equal(see_through.pixels, np.where(expected == [200, 10, 30], 0, expected))


def test_one_bit_is_black_and_white():
    raster = read_image(saved(Image.fromarray(GREY > 127)))
    assert raster.grey
    np.testing.assert_array_equal(raster.pixels[..., 0], np.where(GREY > 127, 255, 0))


def test_cmyk_becomes_rgb():
    inks = np.zeros((20, 30, 4), np.uint8)
    inks[..., 0] = 255  # full cyan: no red is left
    np.testing.assert_array_equal(
        read_image(saved(Image.fromarray(inks, "CMYK"), "TIFF")).pixels, np.broadcast_to([0, 255, 255], (20, 30, 3))
    )
    jpeg = read_image(saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)).pixels.astype(int)
    assert np.abs(jpeg - [0, 255, 255]).max() <= 4


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
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_applied(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = UPRIGHT[orientation](COLOUR)
    path = tmp_path / f"turned.{kind.lower()}"
    path.write_bytes(saved(Image.fromarray(COLOUR), kind, exif=exif))
    np.testing.assert_array_equal(read_image(path).pixels, expected)
    assert read_header(path).size == expected.shape[:2]


def test_exif_rotation_of_16_bit_and_of_a_given_pil_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(DEEP), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(content).pixels[..., 0], np.rot90(DEEP, -1))
    given = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(read_image(given).pixels[..., 0], np.rot90(DEEP, -1))
    assert given.size == (30, 20)  # the caller's image is left as it was


def test_arrays():
    np.testing.assert_array_equal(read_image(COLOUR).pixels, COLOUR)
    assert read_image(GREY).grey and read_image(GREY[..., None]).grey
    np.testing.assert_array_equal(read_image(GREY > 9).pixels[..., 0], (GREY > 9) * 255)
    deep = read_image(DEEP)
    assert deep.bits == 16
    np.testing.assert_array_equal(deep.pixels[..., 0], DEEP)
    floating = read_image(GREY / 255.0)
    assert (floating.bits, floating.pixels.dtype) == (32, np.float32)
    np.testing.assert_allclose(floating.pixels[..., 2], GREY / 255.0, atol=1e-7)
    half = np.concatenate([np.ones((9, 9, 3)), np.full((9, 9, 1), 0.5)], axis=2)
    np.testing.assert_array_equal(read_image(half).pixels, np.full((9, 9, 3), 0.5, np.float32))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 20, 30), np.uint8), "channels last"),
        (np.zeros((20, 30), np.int64), "uint8, uint16, bool or float"),
        (np.full((20, 30), 1.5), "0 to 1"),
        (np.full((20, 30), np.nan), "0 to 1"),
        (np.zeros((7, 30), np.uint8), "at least 8"),
        (np.zeros((0, 30), np.uint8), "at least 8"),
        (np.zeros(20, np.uint8), "not an image"),
    ],
)
def test_arrays_that_are_no_image(array, reason):
    with pytest.raises(ImageError, match=reason):
        read_image(array)


def test_float_tiff_outside_the_unit_range_is_refused():
    assert read_image(saved(Image.fromarray(np.full((9, 9), 0.25, np.float32)), "TIFF")).pixels[0, 0, 0] == 0.25
    with pytest.raises(ImageError, match=r"from 3\.0 to 3\.0"):
        read_image(saved(Image.fromarray(np.full((9, 9), 3, np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="65536"):
        read_image(saved(Image.fromarray(np.full((9, 9), 65536, np.int32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_cut_short_files_name_the_file(kind, tmp_path):
    picture = RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    content = saved(Image.fromarray(picture), kind)
    path = tmp_path / "cut short.img"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cut short\.img"):
        read_image(path)


def test_bytes_that_are_no_image(tmp_path):
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%PDF-1.7", b"P5 9 9 255\n"):
        with pytest.raises(ImageError):
            read_image(content)
    with pytest.raises(ImageError, match="PNG, JPEG, TIFF"):
        read_image(b"hello")
    with pytest.raises(ImageError, match=r"nowhere\.png cannot be opened: No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(str(tmp_path))


def test_random_damage_never_escapes_the_error_tree():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"):
        whole = np.frombuffer(saved(Image.fromarray(COLOUR), kind), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            try:
                assert min(decode(damaged.tobytes(), "damaged").size) >= 8
            except ImageError as error:
                assert "damaged" in str(error)


def test_tiny_and_huge_images_are_refused(tmp_path):
    with pytest.raises(ImageError, match="1 x 1 pixels: at least 8"):
        read_image(saved(Image.new("RGB", (1, 1))))
    for side, words in ((10_001, "10001 x 10001 pixels, more than the 100,000,000"), (20_000, "claims more than")):
        with pytest.raises(ImageError, match=words):
            read_image(png_with_header(side, side))
    # Exactly at the limit the header passes, and only the missing pixels are complained of.
    assert MAX_PIXELS == 10_000**2
    path = tmp_path / "limit.png"
    path.write_bytes(png_with_header(10_000, 10_000))
    assert read_header(path).size == (10_000, 10_000)


def test_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than the 599"):
        read_image(np.zeros((20, 30), np.uint8))
    with pytest.raises(ImageError, match="more than the 599"):
        read_image(Image.new("RGB", (30, 20)))


def test_names_with_spaces_and_letters_of_any_alphabet(tmp_path):
    path = tmp_path / "Prüf teil 检查 №7.png"
    Image.fromarray(COLOUR).save(path)
    np.testing.assert_array_equal(read_image(path).pixels, COLOUR)
    np.testing.assert_array_equal(read_image(str(path)).pixels, COLOUR)


def test_headers_tell_depth(tmp_path):
    for name, array, bits in (("a.png", GREY, 8), ("b.png", DEEP, 16), ("c.tif", GREY.astype(np.float32), 32)):
        Image.fromarray(array).save(tmp_path / name)
        assert read_header(tmp_path / name).bits == bits
    (tmp_path / "d.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"d\.png"):
        read_header(tmp_path / "d.png")


@pytest.mark.parametrize(
    ("largest", "scale"), [(0, 255), (200, 255), (255, 255), (256, 511), (1023, 1023), (3900, 4095), (65535, 65535)]
)
def test_white_level_is_the_next_power_of_two(largest, scale):
    deep = np.zeros((9, 9), np.uint16)
    deep[4, 4] = largest
    assert white_level([read_image(deep), read_image(GREY), read_image(np.zeros((9, 9), np.uint16))]) == scale


def test_white_level_without_deep_images():
    assert white_level([read_image(GREY), read_image(GREY / 255)]) == 255
    assert white_level([]) == 255


def test_filters_for_warnings_are_restored_after_threads():
    before = list(warnings.filters)
    content = saved(Image.fromarray(COLOUR))
    threads = [threading.Thread(target=lambda: [read_image(content) for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
