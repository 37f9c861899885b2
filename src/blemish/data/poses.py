"""Copies of good images in the poses that parts really have, for a method to learn from.

A part that lies in any direction is normal in all of them, and thirty photographs show thirty. Which poses a set has is
found by ``blemish.training.profiles``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.contract import Batch, Images
from blemish.errors import ConfigError

Poses = Literal["none", "flips", "turns", "all"]
MEANING: dict[Poses, str] = {
    "none": "as it is",
    "flips": "as it is and mirrored, both ways",
    "turns": "in four quarter turns, each also mirrored",
    "all": "in 12 directions",
}
_MIRRORED = ((0.0, False), (0.0, True), (180.0, False), (180.0, True))
_POSES: dict[Poses, tuple[tuple[float, bool], ...]] = {  # degrees anticlockwise, after mirroring left and right
    "none": _MIRRORED[:1],
    "flips": _MIRRORED,
    "turns": (*_MIRRORED, (90.0, False), (90.0, True), (270.0, False), (270.0, True)),
    "all": tuple((30.0 * step, False) for step in range(12)),
}


def copies(poses: Poses) -> int:
    """How many of each image are learned."""
    return len(_POSES[poses])


@dataclass(frozen=True)
class PosedImages:
    """Images in each of the ``poses``, all poses of an image one after the other: implements ``contract.Images``.

    The first pose is the image itself. What a turn uncovers at the border is filled with the picture mirrored there.
    """

    _images: Images
    poses: Poses = "none"

    def __post_init__(self) -> None:
        if self.poses not in _POSES:
            raise ConfigError(f"poses {self.poses!r} are unknown: choose {', '.join(get_args(Poses))}")

    def __len__(self) -> int:
        return len(self._images) * copies(self.poses)

    @property
    def parts(self) -> list[int]:
        """All poses of an image show its part."""
        return [part for part in self._images.parts for _ in range(copies(self.poses))]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Image ``index // poses`` in pose ``index % poses``; the pose is part of the key."""
        poses = _POSES[self.poses]
        places = [divmod(index, len(poses)) for index in indices]
        needed = sorted({image for image, _ in places})
        originals = self._images.batch(needed)
        row = {image: number for number, image in enumerate(needed)}
        keys = tuple(originals.keys[row[image]] + f"/{self.poses}{pose}" * (pose > 0) for image, pose in places)
        return Batch(lambda: torch.stack([turned(originals.images[row[i]], *poses[pose]) for i, pose in places]), keys)


def turned(image: Tensor, degrees: float, mirrored: bool) -> Tensor:
    """``image``, ``c h w``, mirrored left and right if ``mirrored``, then turned anticlockwise about its middle."""
    image = image.flip(-1) if mirrored else image
    height, width = image.shape[-2:]
    if degrees % 180 == 0 or (degrees % 90 == 0 and height == width):
        return torch.rot90(image, int(degrees // 90), (-2, -1))
    angle = torch.deg2rad(torch.tensor(degrees))
    cos, sin = float(angle.cos()), float(angle.sin())
    # From a place in the result to one in the image, both counted from -1 to 1 along either side.
    inverse = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(inverse[None], [1, 1, height, width], align_corners=False)
    result: Tensor = F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]
    return result
