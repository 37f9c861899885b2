"""Every image file below some folders, as Blemish reads it and as a second decoder does (imagecodecs).

    python benchmarks/decoders.py FOLDER...

Prints how many were read equal, refused, not compared (no second decoder reads them) or differing, and which differ.
Grey and colours stored as such must be equal to the last bit; CMYK, YCbCr and what is lossy may differ by rounding.
"""

import collections
import io
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from blemish.data.images import read_image
from blemish.errors import ImageError

ROUNDING = 5.5  # levels of 255, where colours are converted or a transform is inverted
TURNS = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1)}
TURNS |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


def over_black(values: np.ndarray, alpha: bool, white: float | None = None) -> np.ndarray:
    """Shares of white, 0 to 1, in three channels."""
    values = values[..., None] if values.ndim == 2 else values
    if white is None:
        white = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    scaled = values.astype(np.float64) / white
    if values.shape[2] in (2, 4) and alpha:
        scaled = scaled[..., :-1] * scaled[..., -1:]
    return np.broadcast_to(scaled[..., : 1 if values.shape[2] < 3 else 3], (*values.shape[:2], 3))


def second_tiff(content: bytes) -> tuple[np.ndarray, float]:
    """What libtiff says of the page that is no thumbnail, and the difference allowed, in shares of white."""
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = next((page for page in tiff.pages if not page.subfiletype & 5), tiff.pages[0])
        index, bits, shown, alpha = page.index, page.bitspersample, page.photometric, list(page.extrasamples)
        lossy, turned = page.compression in (6, 7, 34712, 34933, 50001, 34887), int(page.tags.valueof(274, 1))
    if shown in (8, 9) or (turned > 4 and bits < 8):
        raise NotImplementedError  # LAB has as many ways to RGB as there are libraries; libtiff does not turn
    if bits <= 8 and (shown > 2 or bits < 8 or lossy):
        values = over_black(imagecodecs.tiff_decode(content, index=index, asrgb=True)[..., :3], False)
        return values, 0 if bits < 8 or shown == 3 else ROUNDING / 255
    values = imagecodecs.tiff_decode(content, index=index)
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        values = np.moveaxis(values, 0, -1)
    if values.dtype.kind == "i":
        values, bits = values.astype(np.uint8 if bits == 8 else np.uint16), min(bits, 16)
    white = 2**bits - 1 if bits > 16 and values.dtype.kind == "u" else 65535 if bits > 8 else 255
    white = 1 if values.dtype.kind == "f" else white
    levels = over_black(values, alpha[:1] == [2] or (not alpha and page.samplesperpixel in (2, 4)), white)
    if shown == 0:
        levels = (((1 << bits) - 1) / white if white > 1 else 1) - levels
    return TURNS.get(turned, lambda a: a)(levels), ROUNDING / 255 if lossy or alpha[:1] == [1] else 0


def second(content: bytes) -> tuple[np.ndarray, float]:
    if content[:2] in (b"II", b"MM"):
        return second_tiff(content)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        turn = TURNS.get(image.getexif().get(274, 1), lambda a: a)
    if content[:4] == b"\x89PNG":
        return turn(over_black(imagecodecs.png_decode(content), True)), 0
    if content[:2] == b"\xff\xd8" and image.mode in ("L", "RGB"):
        return turn(over_black(imagecodecs.jpeg_decode(content), False)), ROUNDING / 255
    if content[:2] == b"BM" and image.mode != "RGBA":  # imagecodecs knows no transparent BMP
        return over_black(imagecodecs.bmp_decode(content), False), 0
    if content[8:12] == b"WEBP":
        return turn(over_black(imagecodecs.webp_decode(content), True)), 0
    if content[4:11] == b"ftypavi":
        return turn(over_black(imagecodecs.avif_decode(content), True)), ROUNDING / 255
    if content[4:6] == b"jP" or content[:2] == b"\xff\x4f":
        values, bits = imagecodecs.jpeg2k_decode(content), content[content.find(b"\xff\x51") + 40] + 1
        # Pillow shifts to 16 bits and does not spread.
        return over_black(values, True, 65535 / 2 ** (16 - bits) if bits > 8 else None), 1.1 / 255
    raise NotImplementedError


def main(folders: list[str]) -> None:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*") if path.is_file()):
        kind, content, said = path.suffix.lower(), path.read_bytes(), ""
        try:
            ours = read_image(path)
        except ImageError as error:
            outcome, said = "refused", str(error)
        else:
            try:
                theirs, allowed = second(content)
            except Exception as error:  # whatever a decoder raises
                outcome, said = "not compared", type(error).__name__
            else:
                levels = ours.pixels.astype(np.float64) / {8: 255, 16: 65535, 32: 1}[ours.bits]
                if levels.shape != theirs.shape:
                    outcome, said = "DIFFERING", f"{levels.shape} {theirs.shape}"
                else:
                    apart = float(np.abs(levels - theirs).max())
                    # Blending rounds to a level.
                    limit = max(allowed, 0.51 / (255 if ours.bits == 8 else 65535))
                    outcome, said = ("equal", "") if apart <= limit else ("DIFFERING", f"by {255 * apart:.2f} levels")
        counts[kind][outcome] += 1
        if outcome == "DIFFERING" or "-v" in sys.argv:
            print(f"{outcome:12} {path}: {said}")
    total = sum(counts.values(), collections.Counter())
    for kind, counted in [*sorted(counts.items()), ("all", total)]:
        print(f"{kind:8} " + "  ".join(f"{name} {number}" for name, number in sorted(counted.items())))


if __name__ == "__main__":
    main([argument for argument in sys.argv[1:] if argument != "-v"])
