"""Made-up defects of texture: what Perlin masks cut out of one picture and lay upon another (DRAEM and its followers).

The papers take the Describable Textures Dataset. Here they are the photographs inside scikit-image that the demo set is
made of, or drawn. All is drawn on the CPU, so that a generator means the same for every device.
"""

import importlib.resources
import io
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from blemish.errors import ConfigError
from blemish.ops.perlin import perlin_mask, perlin_noise

PHOTOGRAPHS = ("brick.png", "grass.png", "gravel.png", "ihc.png")
DRAWN, SIDE, OCTAVES = 16, 256, (1, 2, 3, 4, 5, 6)  # how many are drawn, how large, of which 2**n cells a side
GRABCUT_ROUNDS = 11  # as URD's code has

TextureSource = Annotated[
    Literal["photographs", "drawn"],
    Field(description="what made-up defects show: scikit-image's photographs, or noise in two colours"),
]


def load_textures(source: Literal["photographs", "drawn"], generator: torch.Generator) -> list[Tensor]:
    """Pictures ``3 s s`` in [0, 1]; a ConfigError, in words, where scikit-image is not there."""
    textures = []
    if source == "drawn":
        for _ in range(DRAWN):
            heights = sum(perlin_noise((SIDE, SIDE), (2**n, 2**n), generator) / n for n in OCTAVES)
            colours = torch.rand((2, 3, 1, 1), generator=generator)
            textures.append((colours[0] + (colours[1] - colours[0]) * torch.sigmoid(6 * heights)).float())
        return textures
    for name in PHOTOGRAPHS:
        try:
            content = importlib.resources.files("skimage").joinpath("data", name).read_bytes()
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise ConfigError(
                f"textures=photographs are cut from {name} inside scikit-image, which is not there: install it with "
                "pip install 'blemish[demo]', or give --set textures=drawn"
            ) from error
        with Image.open(io.BytesIO(content)) as image:
            textures.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255)
    return textures


def cut_texture(textures: Sequence[Tensor], size: Sequence[int], generator: torch.Generator) -> Tensor:
    """``3 h w``: a square of at least half a side of one of the ``textures``, turned and mirrored, brought to size."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    texture = textures[draw(0, len(textures))]
    side = draw(texture.shape[-1] // 2, texture.shape[-1] + 1)
    top, left = (draw(0, length - side + 1) for length in texture.shape[-2:])
    square = torch.rot90(texture[:, top : top + side, left : left + side], draw(0, 4), (1, 2))
    square = square.flip(2) if draw(0, 2) else square
    return F.interpolate(square[None], size=tuple(size), mode="bilinear", antialias=True)[0]


def with_textures(
    images: Tensor,
    textures: Sequence[Tensor],
    generator: torch.Generator,
    blend: float = 0.8,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Copies of ``b 3 h w`` with a texture under a Perlin mask of each one's own, and the masks ``b 1 h w``, 0 or 1.

    Of the image under it, each copy keeps a share drawn from [0, ``blend``]. ``inside``, ``b 1 h w``, limits the masks.
    A mask may be empty, and then the copy is the image.
    """
    height, width = images.shape[-2:]
    masks = torch.stack([perlin_mask((height, width), generator) for _ in images])[:, None].float()
    masks = masks if inside is None else masks * inside
    cuts = torch.stack([cut_texture(textures, (height, width), generator) for _ in images])
    kept = blend * torch.rand((len(images), 1, 1, 1), generator=generator)
    return torch.where(masks > 0, kept * images + (1 - kept) * cuts, images), masks


def find_foreground(image: Tensor) -> Tensor:
    """``1 h w``, 0 or 1: where OpenCV's GrabCut sees the thing in ``3 h w`` in [0, 1], from the border inwards."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ConfigError(
            "foreground=grabcut needs OpenCV, which is not there: install it with pip install opencv-python-headless, "
            "or give --set foreground=none"
        ) from error
    pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy()[..., ::-1].copy()
    mask, models = np.zeros(pixels.shape[:2], np.uint8), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)  # it begins from clusters drawn at random
    frame = (1, 1, pixels.shape[1] - 1, pixels.shape[0] - 1)
    cv2.grabCut(pixels, mask, frame, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT)
    return torch.from_numpy((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).float()[None]
