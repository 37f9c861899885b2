"""Preparation and the way back as a graph holds them: of images of any size, in products that every engine computes.

No engine's own resizing is used: what they call antialiasing differs, and one of them leaves it out. Pillow's bilinear
resize is a product with a triangle kernel along each axis. Its weights are computed from the image's own size, in whole
numbers: to 22 bits, as Pillow has them, in two halves of 11, whose products with grey levels float32 holds exactly.
Where pixels are given, ``position`` of an output counts in ``length`` outputs for all ``given`` of the image's pixels.
"""

import torch
from torch import Tensor, nn

from blemish.data.preprocessing import Preprocessing

HALF = 2**11  # each weight is high / 2^11 + low / 2^22
BLOCK = 16  # outputs that share a window of inputs: more waste products with zeros, fewer read pixels more often


class Prepare(nn.Module):
    """Images ``n h w 3`` of whole numbers and the number that is white, to ``n 3 y x`` in [0, 1] at the input size.

    Numbers are rounded to whole ones after each axis where ``white`` is 255, as 8-bit images are.
    """

    def __init__(self, preparation: Preprocessing) -> None:
        super().__init__()
        self.preparation = preparation

    def forward(self, images: Tensor, white: Tensor) -> Tensor:
        antialias = self.preparation.resize != "opencv"
        rows, columns = placings(self.preparation, images)
        # Rows of pixels are gathered, so the axis in work comes first: n h w 3 -> w n h 3 -> y n x 3.
        x = _resized(images.permute(2, 0, 1, 3), columns, self.preparation.input_size[1], white, antialias)
        y = _resized(x.permute(2, 1, 0, 3), rows, self.preparation.input_size[0], white, antialias)
        return (y.permute(1, 3, 0, 2) / white).clamp(0, 1)


def placings(preparation: Preprocessing, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For height and width of images ``n h w 3``: the pixels given, the length and the offset in the input."""
    sides = [torch.full((), images.shape[axis], dtype=torch.int64) for axis in (1, 2)]
    wanted = [torch.full((), side, dtype=torch.int64) for side in preparation._sides]
    zero = torch.zeros((), dtype=torch.int64)
    if preparation.resize == "crop":
        shorter = torch.minimum(*sides)
        lengths = [wanted[0] * side // shorter for side in sides]
        # The middle, rounded half to even.
        doubled = [length - side for length, side in zip(lengths, preparation.input_size)]
        offsets = [-(extra // 2 + (extra % 2) * ((extra // 2) % 2)) for extra in doubled]
        return list(zip(sides, lengths, offsets))
    if preparation.resize == "letterbox":
        scale = torch.minimum(*(side.double() / given for side, given in zip(wanted, sides)))
        lengths = [(given.double() * scale).round().long().clamp(min=1) for given in sides]
        return [(given, length, (side - length) // 2) for given, length, side in zip(sides, lengths, wanted)]
    return [(given, side, zero) for given, side in zip(sides, wanted)]


def _resized(pixels: Tensor, placing: tuple[Tensor, Tensor, Tensor], side: int, white: Tensor, antialias: bool) -> Tensor:
    """``pixels``, given along the first of their four axes, at ``side`` positions."""
    given, length, offset = placing
    blocks = -(-side // BLOCK)
    positions = (torch.arange(blocks * BLOCK).clamp(max=side - 1) - offset).clamp(torch.zeros_like(length), length - 1)
    centres = ((2 * positions + 1) * given).view(blocks, BLOCK)  # of each output, in 1 / (2 * length) of a pixel
    reach = torch.maximum(given, length) if antialias else length
    if not antialias:
        centres = torch.minimum(torch.maximum(centres, length), (2 * given - 1) * length)
    start = (centres[:, 0] - 2 * reach) // (2 * length)
    size = ((centres[:, -1] + 2 * reach) // (2 * length) - start).max().item() + 1
    torch._check(size >= 1)
    window = start[:, None] + torch.arange(size)
    distances = ((2 * window + 1) * length)[:, None] - centres[..., None]
    weights = (2 * reach - distances.abs()).clamp(min=0) * ((window >= 0) & (window < given))[:, None]
    total = weights.sum(dim=2, keepdim=True)
    high = weights * HALF // total
    rest = weights * HALF - high * total
    low = (2 * HALF * rest + total) // (2 * total)
    near = torch.minimum(window.clamp(min=0), given - 1)
    shape = pixels.shape
    rows = pixels.flatten(1)[near].float()  # blocks, window, the other axes
    sums = [(half.float() @ rows).flatten(0, 1)[:side] for half in (high, low)]
    exact = ((sums[0] + (sums[1] / HALF).floor() + HALF / 2) / HALF).floor()
    plain = (sums[0] + sums[1] / HALF) / HALF
    whole = torch.where(white == 255, exact, plain) if antialias else plain
    return whole.view(side, *shape[1:])


class ToOriginal(nn.Module):
    """Maps ``n y x`` of the input size and the images ``n h w 3`` that they are of, to maps ``n h w``."""

    def __init__(self, preparation: Preprocessing) -> None:
        super().__init__()
        self.preparation = preparation

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        smallest = maps.amin(dim=(1, 2), keepdim=True)
        for (given, length, offset), side in zip(placings(self.preparation, images), self.preparation.input_size):
            maps, smallest = _spread(maps, smallest, given, length, offset, side), smallest.mT
        return maps


def _spread(maps: Tensor, smallest: Tensor, given: Tensor, length: Tensor, offset: Tensor, side: int) -> Tensor:
    """The second axis of ``n y x`` read linearly at the centres of ``given`` pixels; the last two axes change places."""
    unit = 2 * given  # of which whole numbers count positions
    centres = (2 * torch.arange(given) + 1) * length - given + unit * offset
    last = torch.minimum(length + offset, torch.full_like(length, side)) - 1
    held = torch.minimum(torch.maximum(centres, unit * offset.clamp(min=0)), unit * last)
    below = held // unit
    weight = (held - below * unit).float() / unit.float()
    lower, upper = maps[:, below], maps[:, torch.minimum(below + 1, last)]
    unknown = (centres < -given) | (centres > unit * side - given)
    spread = torch.where(unknown[:, None], smallest, torch.lerp(lower, upper, weight[:, None]))
    return spread.mT
