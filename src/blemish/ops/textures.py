"""Made-up defects: another texture shows through an irregular mask (DRAEM, DeSTSeg and their heirs).

The papers take textures from DTD, whose photographs are not ours to ship. Here they are the photographs that travel
inside scikit-image, where it is installed, and otherwise drawn by ourselves: clouds and stripes in two colours. The
photographs are more like real foreign matter, and none is of any set that figures are given for.
"""

import importlib.resources
import io
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from blemish.ops.perlin import perlin_mask, perlin_noise
from blemish.run import Run

_PHOTOGRAPHS = "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png "
_PHOTOGRAPHS += "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png"
SIDE = 512  # pixels of a photograph's longer side, at most
DRAWN, DRAWN_SIDE = 16, 128
KEPT = 0.8  # of the image, at most, where a texture shows through


class Textures:
    """What a training cuts its made-up defects from; the run's log and notes say what that is."""

    def __init__(self, run: Run) -> None:
        self.pictures = _photographs() or _drawn()
        source = f"{len(self.pictures)} photographs of scikit-image" if _photographs() else f"{DRAWN} drawn textures"
        hint = "" if _photographs() else "; photographs serve better: pip install 'blemish[demo]'"
        run.log.facts["made-up defects"] = source
        run.progress.note(f"made-up defects are cut from {source}{hint}")

    def draw(self, size: Sequence[int], generator: torch.Generator, alter: bool = True) -> Tensor:
        """``3 h w`` in [0, 1]: some square of some picture at ``size``, by default after three of ten alterations."""
        from torchvision.transforms.v2 import functional as tv  # takes a second to import, and few fits need it

        def between(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        picture = self.pictures[int(between(0, len(self.pictures)))]
        height, width = picture.shape[1:]
        side = int(between(0.4, 1) * min(height, width))
        top, left = int(between(0, height - side + 1)), int(between(0, width - side + 1))
        texture = tv.resized_crop(picture, top, left, side, side, list(size), antialias=True)
        alterations = [
            lambda seen: tv.adjust_gamma(seen, between(0.5, 2)),
            lambda seen: tv.adjust_brightness(seen, between(0.7, 1.3)),
            lambda seen: tv.adjust_sharpness(seen, between(0, 3)),
            lambda seen: tv.adjust_hue(tv.adjust_saturation(seen, between(0.5, 1.5)), between(-0.2, 0.2)),
            lambda seen: tv.solarize(seen, between(32, 128)),
            lambda seen: tv.posterize(seen, int(between(1, 8))),
            tv.invert,
            tv.autocontrast,
            tv.equalize,
            lambda seen: tv.rotate(seen, between(-45, 45)),
        ]
        chosen = torch.randperm(len(alterations), generator=generator)[: 3 if alter else 0]
        for index in chosen.tolist():
            texture = alterations[index](texture)
        return texture.float() / 255


def with_textures(
    images: Tensor, textures: Textures, generator: torch.Generator, chance: float = 1.0, alter: bool = True
) -> tuple[Tensor, Tensor]:
    """Copies of ``b 3 h w`` images on the CPU with made-up defects, and where these are, ``b h w``, bool.

    Each image gets one with probability ``chance``; where the mask drawn is empty, it stays as it is. In a defect the
    image keeps a share of up to ``KEPT``, drawn for each.
    """
    spoiled, masks = images.clone(), torch.zeros_like(images[:, 0], dtype=torch.bool)
    for image, mask in zip(spoiled, masks):
        if float(torch.rand((), generator=generator)) >= chance:
            continue
        mask.copy_(perlin_mask((image.shape[1], image.shape[2]), generator))
        kept = KEPT * float(torch.rand((), generator=generator))
        texture = textures.draw(image.shape[1:], generator, alter)
        image.copy_(torch.where(mask, torch.lerp(texture, image, kept), image))
    return spoiled, masks


@lru_cache(maxsize=1)
def _photographs() -> tuple[Tensor, ...]:
    """Each ``3 y x``, uint8; none where scikit-image is not installed or holds others."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        folder = importlib.resources.files("skimage").joinpath("data")
        contents = [folder.joinpath(name).read_bytes() for name in _PHOTOGRAPHS.split()]
    except (ModuleNotFoundError, FileNotFoundError):
        return ()
    pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    return tuple(pil_to_tensor(picture) for picture in pictures)


@lru_cache(maxsize=1)
def _drawn() -> tuple[Tensor, ...]:
    """``DRAWN`` square textures ``3 s s``, uint8: clouds of different fineness, most of them over stripes."""
    generator, pictures = torch.Generator().manual_seed(0), []
    rows, columns = torch.meshgrid(*[torch.linspace(0, 1, DRAWN_SIDE)] * 2, indexing="ij")
    for number in range(DRAWN):
        octaves = range(number % 4 + 1, 7)
        clouds = sum(
            perlin_noise((DRAWN_SIDE, DRAWN_SIDE), (2**e, 2**e), generator) * 0.7 ** (e - octaves[0]) for e in octaves
        )
        down, right = 64 * torch.rand(2, generator=generator) - 32
        stripes = torch.sin(2 * math.pi * (down * rows + right * columns))
        pattern = torch.sigmoid(4 * clouds + number % 3 * stripes)
        dark, light = torch.rand((2, 3, 1, 1), generator=generator)
        pictures.append((255 * torch.lerp(dark, light, pattern.float())).round().to(torch.uint8))
    return tuple(pictures)
