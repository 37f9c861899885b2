"""What an exported file and its model are compared on: a folder's images, or textures, in several sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blemish.data.demo import read_photograph
from blemish.data.images import DecodedImage, read_image
from blemish.data.public import DEMO_CATEGORIES
from blemish.data.readers import find_images
from blemish.errors import DataError, ImageError

MOST = 200  # images of a folder that are looked at: all are held in memory
SIZES = ((301, 170), (90, 333), (256, 256))  # height and width: an odd portrait, something long, a usual square


def pictures(folder: Path | None, white_level: int, grey: bool = False) -> dict[str, DecodedImage]:
    """What to compare on, by name: a folder's images, or textures; the first also in ``SIZES``, so that there are some.

    Raises what reading an image does; an ImageError also for one of floats, which the file does not take, and for one
    with colours where they are to be ``grey``.
    """
    if folder is not None:
        paths = find_images(folder)
        found = {str(path): read_image(path) for path in paths[:: -(-len(paths) // MOST)]}
    else:
        found = {name: read_image(texture(name)[..., : 1 if grey else 3]) for name in DEMO_CATEGORIES}
    for name, image in found.items():
        if image.bits == 32:
            raise ImageError(f"{name} is an image of floats, and the exported file takes whole numbers: convert it")
        if grey and not image.grey and (image.pixels != image.pixels[..., :1]).any():
            raise ImageError(f"{name} has colours, and the file is to take grey images: leave --grey out")
        if image.bits == 16 and white_level == 255:
            found[name] = replace(image, pixels=image.pixels.clip(0, 255).astype(np.uint8), bits=8)
    name, first = next(iter(found.items()))
    for height, width in SIZES:
        rows, columns = (np.arange(side) * given // side for side, given in zip((height, width), first.size))
        resized = np.ascontiguousarray(first.pixels[rows][:, columns])
        found[f"{name} at {width} x {height}"] = replace(first, pixels=resized)
    if white_level > 255:
        deep = (first.pixels.astype(np.float64) * (white_level / max(1, first.pixels.max()))).astype(np.uint16)
        found[f"{name} at 16 bits"] = DecodedImage(deep, 16, first.grey)
    return found


def texture(name: str) -> NDArray[np.uint8]:
    """A photograph of the demo set, or noise of several scales where scikit-image, which holds it, is not installed."""
    try:
        values = read_photograph(name)
    except DataError:
        rng = np.random.default_rng(len(name))
        scales = [np.kron(rng.random((512 // k, 512 // k, 3)), np.ones((k, k, 1))) for k in (1, 4, 16, 64)]
        values = np.mean(scales, axis=0)
    return (values * 255).round().astype(np.uint8)
