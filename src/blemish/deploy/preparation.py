"""Preparation and the way back as a graph holds them: of images of any size, in products that every engine computes.

No engine's own resizing is used: what they call antialiasing differs, and one of them leaves it out. Pillow's bilinear
resize is a product with a triangle kernel along each axis. Its weights are computed from the image's own size, in whole
numbers: to 22 bits, as Pillow has them, in two halves of 11, whose products with grey levels float32 holds exactly.
Where pixels are given, ``position`` of an output counts in ``length`` outputs for all ``given`` of the image's pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blemish.data.preprocessing import Preprocessing

HALF = 2**11  # each weight is high / 2^11 + low / 2^22
BLOCK = 8  # outputs that share a window of inputs: more waste products with zeros, fewer read pixels more often


class Prepare(nn.Module):
    """Images ``n h w c`` of whole numbers and the number that is white, to ``n c y x`` in [0, 1] at the input size.

    Numbers above ``white`` count as that. They are rounded to whole ones after each axis where it is 255, as 8-bit
    images are.
    """

    def __init__(self, preparation: Preprocessing) -> None:
        super().__init__()
        self.preparation = preparation

    def forward(self, images: Tensor, white: Tensor) -> Tensor:
        antialias = self.preparation.resize != "opencv"
        places = placings(self.preparation, images)
        (rows, columns), (height, width) = places, self.preparation.input_size
        down, across = (_bands(*axis, antialias) for axis in ((*rows, height), (*columns, width)))
        # Pillow takes the axis first that leaves less to do for the other: this is its rule, as of 12.
        removed = [given - length for given, length, _ in places]
        is_vertical_first = (removed[0] > 0) & (removed[0] > 2 * removed[1])

        count, given_height, _, channels = images.shape

        # Pixels are gathered by rows: the axis in work comes first. Engines are quick at turning whole matrices only.
        def vertical_first(images: Tensor, most: Tensor, rounds: Tensor, *bands: Tensor) -> Tensor:
            y = _resized(images.permute(1, 0, 2, 3).flatten(1), bands[:3], most, rounds)[:height]
            turned = torch.unflatten(y.reshape(height * count, -1).T, 0, (-1, channels)).flatten(1)
            x = _resized(turned, bands[3:], most, rounds)[:width]
            return x.reshape(width, channels, height, count).permute(3, 1, 2, 0).contiguous()

        def horizontal_first(images: Tensor, most: Tensor, rounds: Tensor, *bands: Tensor) -> Tensor:
            turned = torch.unflatten(images.flatten(0, 1).flatten(1).T, 0, (-1, channels)).flatten(1)
            x = _resized(turned, bands[3:], most, rounds)[:width]
            y = _resized(x.reshape(width * channels * count, given_height).T, bands[:3], most, rounds)[:height]
            return y.reshape(height, width, channels, count).permute(3, 2, 0, 1).contiguous()

        operands = (images, white, (white == 255) & antialias, *down, *across)
        if torch.compiler.is_compiling():
            resized: Tensor = torch.cond(is_vertical_first, vertical_first, horizontal_first, operands)
        else:
            resized = (vertical_first if is_vertical_first else horizontal_first)(*operands)
        return resized / white


def placings(preparation: Preprocessing, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For height and width of images ``n h w c``: the pixels given, the length and the offset in the input."""
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


def _bands(given: Tensor, length: Tensor, offset: Tensor, side: int, antialias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For blocks of outputs: the pixels in their windows, and weights in two halves (blocks, outputs, window)."""
    blocks = -(-side // BLOCK)
    positions = (torch.arange(blocks * BLOCK).clamp(max=side - 1) - offset).clamp(torch.zeros_like(length), length - 1)
    centres = ((2 * positions + 1) * given).view(blocks, BLOCK)  # of each output, in 1 / (2 * length) of a pixel
    reach = torch.maximum(given, length) if antialias else length
    if not antialias:
        centres = torch.minimum(torch.maximum(centres, length), (2 * given - 1) * length)
    # A weight is positive within 2 * reach of the centre.
    first = _divided((centres[:, 0] - 2 * reach).clamp(min=0), 2 * length)
    last = _divided(centres[:, -1] + 2 * reach, 2 * length)
    size = (last - first).max().item() + 1
    torch._check(size >= 1)
    window = first[:, None] + torch.arange(size)
    distances = ((2 * window + 1) * length)[:, None] - centres[..., None]
    weights = (2 * reach - distances.abs()).clamp(min=0) * (window < given)[:, None]
    total = weights.sum(dim=2, keepdim=True)
    high = _divided(weights * HALF, total)
    low = _divided(2 * HALF * (weights * HALF - high * total) + total, 2 * total)
    return torch.minimum(window, given - 1), high.float(), low.float()


def _divided(number: Tensor, by: Tensor) -> Tensor:
    """Whole parts of quotients of whole numbers that are not negative."""
    return torch.div(number, by, rounding_mode="trunc")


def _resized(pixels: Tensor, bands: Sequence[Tensor], most: Tensor, rounds: Tensor) -> Tensor:
    """``pixels`` up to ``most``, given along the first of two axes, at the bands' positions."""
    near, high, low = bands
    rows = pixels[near].float()  # blocks, window, the other axis
    if pixels.dtype != torch.uint8:
        rows = torch.minimum(rows, most)
    highs, lows = ((half @ rows).flatten(0, 1) for half in (high, low))
    exact = ((highs + (lows / HALF).floor() + HALF / 2) / HALF).floor()
    return torch.where(rounds, exact, (highs + lows / HALF) / HALF)


class ToOriginal(nn.Module):
    """Maps ``n y x`` of the input size and the images ``n h w c`` that they are of, to maps ``n h w``."""

    def __init__(self, preparation: Preprocessing) -> None:
        super().__init__()
        self.preparation = preparation

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        smallest = maps.amin(dim=(1, 2), keepdim=True)
        sides = zip(images.shape[1:3], placings(self.preparation, images), self.preparation.input_size)
        for pixels, placing, side in sides:
            maps = _spread(maps, smallest, torch.arange(pixels), *placing, side)
        return maps


def _spread(
    maps: Tensor, smallest: Tensor, pixels: Tensor, given: Tensor, length: Tensor, offset: Tensor, side: int
) -> Tensor:
    """``n y x`` read linearly, along y, at the centres of ``given`` pixels; y and x change places."""
    unit = 2 * given  # of which whole numbers count positions
    centres = (2 * pixels + 1) * length - given + unit * offset
    last = torch.minimum(length + offset, torch.full_like(length, side)) - 1
    held = torch.minimum(torch.maximum(centres, unit * offset.clamp(min=0)), unit * last)
    below = held // unit
    weight = (held - below * unit).float() / unit.float()
    lower, upper = maps[:, below], maps[:, torch.minimum(below + 1, last)]
    unknown = (centres < -given) | (centres > unit * side - given)
    spread = torch.where(unknown[:, None], smallest, torch.lerp(lower, upper, weight[:, None]))
    return spread.mT
