"""Normalising flows: steps that can be undone and turn features into independent standard normal numbers.

A coupling permutes the channels, in an order drawn once, leaves one half of them alone, and scales and shifts the other
by what a small network, its subnet, reads from the first. So it can be undone whatever the subnet is, and the logarithm
of its determinant, the ``volume``, is the sum of the log scales, which are bounded softly.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.contract import Backbone, Batch, Images
from blemish.errors import ConfigError
from blemish.ops.residual import initialise_uniform
from blemish.run import Run, epochs

SCALES = 3  # of a pyramid, each half as large as the one before
RIDGE = 0.1  # of the mean deviation of features, added to each one: a channel that hardly varies would carry a flow off
MOST = 1e6  # as released, numbers are cut off there: the squares of what is stranger still would overflow
UNIT = 2 * math.log(math.exp(5) - 1)  # what a stored scale of 1 is, as ``Coupling._affine`` reads it

Subnet = Callable[[int, int], nn.Module]  # builds one, from how many channels it is given and gives back


class Coupling(nn.Module):
    """A step of maps ``b c y x`` or vectors ``b c``: of one, or of several, all of which the subnet reads at once.

    One-sided, as FastFlow's: the first half changes the second, log scales are ``clamp`` times the tanh of a tenth of
    what the subnet says, and a trained scale and shift of each channel follow. Two-sided, as DifferNet's and CS-Flow's:
    the second half changes the first and is then changed by it; an arctangent bounds the log scales.
    """

    order: Tensor

    def __init__(self, channels: int, subnet: Subnet, clamp: float, two_sided: bool = False) -> None:
        super().__init__()
        self.split, self.clamp, self.two_sided = [channels - channels // 2, channels // 2], clamp, two_sided
        self.register_buffer("order", torch.arange(channels))
        first, second = self.split
        sides = [(first, second), (second, first)][: 1 + two_sided]
        self.subnets = nn.ModuleList(subnet(ins, 2 * outs) for ins, outs in sides)
        if not two_sided:
            self.scale, self.shift = nn.Parameter(torch.full((channels,), UNIT)), nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw the order of the channels and the subnets' first values."""
        self.order.copy_(torch.randperm(len(self.order), generator=generator))
        initialise_uniform(self.subnets, generator)
        if not self.two_sided:
            self.scale.fill_(UNIT)
            self.shift.zero_()

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The maps after the step, and its volume ``b``."""
        sides = [
            list(halves) for halves in zip(*(torch.split(map_[:, self.order], self.split, dim=1) for map_ in maps))
        ]
        volume = torch.zeros(maps[0].shape[0], device=maps[0].device)
        for side in (1, 0) if self.two_sided else (0,):
            logs, shifts = self._read(side, sides[side])
            sides[1 - side] = [half * log.exp() + t for half, log, t in zip(sides[1 - side], logs, shifts)]
            volume = volume + torch.stack([log.flatten(1).sum(dim=1) for log in logs]).sum(dim=0)
        joined = [torch.cat(halves, dim=1).clamp(-MOST, MOST) for halves in zip(*sides)]
        if not self.two_sided:
            scale, shift = self._affine(joined[0])
            joined = [map_ * scale + shift for map_ in joined]
            volume = volume + sum(map_[0, 0].numel() for map_ in joined) * scale.log().sum()
        return joined, volume

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What ``forward`` made these maps of."""
        if not self.two_sided:
            scale, shift = self._affine(maps[0])
            maps = [(map_ - shift) / scale for map_ in maps]
        sides = [list(halves) for halves in zip(*(torch.split(map_, self.split, dim=1) for map_ in maps))]
        for side in (0, 1) if self.two_sided else (0,):
            logs, shifts = self._read(side, sides[side])
            sides[1 - side] = [(half - t) * (-log).exp() for half, log, t in zip(sides[1 - side], logs, shifts)]
        return [torch.cat(halves, dim=1)[:, self.order.argsort()] for halves in zip(*sides)]

    def _read(self, side: int, halves: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Log scales and shifts of the other halves."""
        read = self.subnets[side](*halves)
        values = [value.float() for value in ([read] if isinstance(read, Tensor) else read)]
        if self.two_sided:
            logs, shifts = zip(*(value.chunk(2, dim=1) for value in values))
            return [self.clamp * 2 / math.pi * (log / self.clamp).atan() for log in logs], list(shifts)
        logs, shifts = zip(*((0.1 * value).chunk(2, dim=1) for value in values))
        return [self.clamp * log.tanh() for log in logs], list(shifts)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The trained scale, positive whatever is stored, and shift of each channel, to go with ``like``."""
        shape = (-1, *[1] * (like.ndim - 2))
        return 0.1 * F.softplus(self.scale, beta=0.5).view(shape), self.shift.view(shape)


class Flow(nn.Module):
    """Couplings one after the other, one for each subnet."""

    def __init__(self, channels: int, subnets: Sequence[Subnet], clamp: float, two_sided: bool = False) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Coupling(channels, subnet, clamp, two_sided) for subnet in subnets)

    def reset(self, generator: torch.Generator) -> None:
        """Draw all first values, on the CPU: a seed means the same on every device."""
        for step in self.steps:
            step.reset(generator)  # type: ignore[operator]

    def forward(self, *maps: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps of the same shapes, float32, whose numbers are to look standard normal, and the volume ``b``."""
        flowed, total = list(maps), torch.zeros(maps[0].shape[0], device=maps[0].device)
        for step in self.steps:
            flowed, volume = step(flowed)
            total = total + volume
        return flowed, total


def negative_log_likelihood(flowed: Sequence[Tensor], volume: Tensor) -> Tensor:
    """``b``: minus the log-likelihood of what a flow was given, less a constant, from what it gave back."""
    return torch.stack([map_.square().flatten(1).sum(dim=1) for map_ in flowed]).sum(dim=0) / 2 - volume


def convolutional(kernels: tuple[int, int], ins: int, outs: int) -> nn.Module:
    """A subnet of two convolutions, as wide inside as what it is given, with a ReLU between."""
    enter, leave = (nn.Conv2d(ins, c, k, padding="same") for c, k in zip((ins, outs), kernels))
    return nn.Sequential(enter, nn.ReLU(True), leave)


def dense(hidden: int, ins: int, outs: int) -> nn.Module:
    """A subnet, of vectors, of three hidden layers."""
    network = nn.Sequential()
    for width in (hidden, hidden, hidden):
        network.extend([nn.Linear(ins, width), nn.ReLU(True)])
        ins = width
    return network.append(nn.Linear(ins, outs))


def joined(features: Sequence[Tensor]) -> Tensor:
    """All levels ``b c y x``, shallowest first, averaged down to the deepest one's grid."""
    grid = (features[-1].shape[-2], features[-1].shape[-1])
    return torch.cat([F.adaptive_avg_pool2d(map_, grid) for map_ in features], dim=1)


def check_pyramid(name: str, backbone: Backbone, size: tuple[int, int]) -> None:
    """A ConfigError where a transformer, which sees whole cells, cannot see every fourth pixel of such images."""
    if backbone.tokens and any(side % (multiple := 4 * backbone.levels[0].stride) for side in size):
        raise ConfigError(
            f"{name} shows {backbone.name} every fourth pixel, too: use a --size of multiples of {multiple}"
        )


def pyramid(see: Callable[[Any], list[Tensor]], given: Batch | Tensor, images: Tensor) -> list[Tensor]:
    """Joined features of what is ``given``, then of every second and every fourth pixel of its ``images``."""
    return [joined(see(given)), *(joined(see(images[..., ::step, ::step])) for step in (2, 4))]


def train(
    name: str,
    network: nn.Module,
    loss: Callable[[Batch, torch.Generator], Tensor],
    images: Images,
    config: Any,
    run: Run,
    clip: float = math.inf,
    **adam: Any,
) -> None:
    """Go down ``loss``, of a batch and what is drawn for it, by Adam; ``clip``: the largest norm of the gradient."""
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True, **adam)
    for epoch in epochs(run, name, {"network": network, "optimiser": optimiser}, config, len(images)):
        network.train()
        draws = epoch.generator("draws")
        for indices in epoch.batches():
            value = loss(images.batch(indices), draws)
            epoch.descend(value, optimiser, clip=clip, loss=value)
