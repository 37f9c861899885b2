"""Made-up defects of texture: what a Perlin mask cuts out of one picture and lays upon another (DRAEM's, URD's).

The papers take the Describable Textures Dataset; here the photographs inside scikit-image that the demo set is made of.
All is drawn on the CPU, so that a generator means the same for every device.
"""

import importlib.resources
import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blemish.errors import ConfigError
from blemish.ops.perlin import perlin_mask

PHOTOGRAPHS = ("brick.png", "grass.png", "gravel.png", "ihc.png")
GRABCUT_ROUNDS = 11  # as URD's code has


def load_textures() -> list[Tensor]:
    """Photographs ``3 512 512`` in [0, 1]; a ConfigError, in words, where scikit-image is not there."""
    textures = []
    for name in PHOTOGRAPHS:
        try:
            content = importlib.resources.files("skimage").joinpath("data", name).read_bytes()
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise ConfigError(
                f"made-up defects are cut from {name} inside scikit-image, which is not there: install it with "
                "pip install 'blemish[demo]', or use a method that learns from good images as they are"
            ) from error
        with Image.open(io.BytesIO(content)) as image:
            textures.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255)
    return textures


def cut_texture(textures: Sequence[Tensor], size: Sequence[int], generator: torch.Generator) -> Tensor:
    """``3 h w``: a square of at least half a side of one of the ``textures``, turned and mirrored, brought to size."""
    texture = textures[int(torch.randint(len(textures), (), generator=generator))]
    part = torch.rand(3, generator=generator)
    side = int(texture.shape[-1] * (1 + float(part[0])) / 2)
    top, left = (int(float(at) * (length - side + 1)) for at, length in zip(part[1:], texture.shape[-2:]))
    turn = int(torch.randint(8, (), generator=generator))
    square = torch.rot90(texture[None, :, top : top + side, left : left + side], turn % 4, (2, 3))
    square = square.flip(3) if turn > 3 else square
    return F.interpolate(square, size=tuple(size), mode="bilinear", antialias=True)[0]


def with_textures(
    images: Tensor,
    textures: Sequence[Tensor],
    generator: torch.Generator,
    blend: float = 0.8,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Copies of ``b 3 h w``, each with a texture under a Perlin mask of its own, and the masks ``b 1 h w``, 0 or 1.

    Under the texture each copy keeps a share of its image, drawn from [0, ``blend``]. ``inside``, ``b 1 h w``, limits
    the masks. A mask may be empty: then the copy is the image.
    """
    size = (images.shape[-2], images.shape[-1])
    masks = torch.stack([perlin_mask(size, generator) for _ in images])[:, None].float()
    masks = masks if inside is None else masks * inside
    cuts = torch.stack([cut_texture(textures, size, generator) for _ in images])
    kept = blend * torch.rand((len(images), 1, 1, 1), generator=generator)
    return torch.where(masks > 0, kept * images + (1 - kept) * cuts, images), masks


def find_foreground(image: Tensor) -> Tensor:
    """``1 h w``, 0 or 1: what OpenCV's GrabCut takes for the thing in ``3 h w`` in [0, 1], from the border inwards."""
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
