"""Residual blocks that keep, halve or double the grid: what teachers' mirrored students are built of.

A block that doubles the grid has a 2x2 transposed convolution of stride 2 where its counterpart in a ResNet has a
strided 3x3 one, and in its shortcut, as the released reverse distillation does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "instance", "plain"]
Step = Literal["same", "down", "up"]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class BlockKind:
    """Two 3x3 convolutions, or a bottleneck: 1x1, 3x3, 1x1, inside of a ``squeeze``-th of the width outside."""

    bottleneck: bool
    squeeze: int = 4
    norm: Norm = "batch"


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The norm after a convolution, with learned scale and shift; ``plain``: an instance norm without."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.InstanceNorm2d(channels, affine=norm == "instance")


def convolution(ins: int, outs: int, size: int = 3, step: Step = "same") -> nn.Module:
    """A convolution without bias that keeps, halves (rounding up) or doubles the grid."""
    if step == "up":
        return nn.ConvTranspose2d(ins, outs, kernel_size=2, stride=2, bias=False)
    return nn.Conv2d(ins, outs, size, stride=2 if step == "down" else 1, padding=size // 2, bias=False)


def convolutions(widths: Sequence[int], steps: Sequence[Step], norm: Norm, activation: nn.Module) -> nn.Sequential:
    """3x3 convolutions from each width to the next, each with its norm and the activation."""
    path = nn.Sequential()
    for (ins, outs), step in zip(pairwise(widths), steps):
        path.extend([convolution(ins, outs, 3, step), normalisation(norm, outs), activation])
    return path


def join_levels(paths: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """Feature maps, shallowest first, each through its path to the deepest grid, joined."""
    rows, columns = features[-1].shape[-2:]
    return torch.cat([path(map_)[..., :rows, :columns] for path, map_ in zip(paths, features, strict=True)], dim=1)


class Residual(nn.Module):
    """One residual block: ``b ins y x`` to ``b outs y' x'``."""

    def __init__(self, ins: int, outs: int, kind: BlockKind, step: Step = "same") -> None:
        super().__init__()
        inner = outs // kind.squeeze if kind.bottleneck else outs
        if kind.bottleneck:
            layers = [convolution(ins, inner, 1), convolution(inner, inner, 3, step), convolution(inner, outs, 1)]
        else:
            layers = [convolution(ins, outs, 3, step), convolution(outs, outs, 3)]
        self.convolutions = nn.ModuleList(layers)
        self.norms = nn.ModuleList(normalisation(kind.norm, width) for width in [inner] * (len(layers) - 1) + [outs])
        self.shortcut: nn.Module = nn.Identity()
        if step != "same" or ins != outs:
            self.shortcut = nn.Sequential(convolution(ins, outs, 1, step), normalisation(kind.norm, outs))

    def forward(self, features: Tensor) -> Tensor:
        branch = features
        for index, (convolve, norm) in enumerate(zip(self.convolutions, self.norms)):
            branch = norm(convolve(F.relu(branch, inplace=True) if index else branch))
        return F.relu(branch + self.shortcut(features), inplace=True)


def residual_stage(ins: int, outs: int, blocks: int, kind: BlockKind, step: Step) -> nn.Sequential:
    """``blocks`` residual blocks, the first of which takes the step."""
    return nn.Sequential(Residual(ins, outs, kind, step), *(Residual(outs, outs, kind) for _ in range(blocks - 1)))


def untrained(build: Callable[[], Network]) -> Network:
    """What ``build`` gives, in channels-last order, all zeros: drawing 84 million values takes seconds."""
    with torch.device("meta"):
        network = build()
    network = network.to_empty(device="cpu").to(memory_format=torch.channels_last)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    return network


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator, xavier: bool = False) -> None:
    """Fresh values, drawn on the CPU so that a seed means the same on every device, as reverse distillation's code has.

    Convolutions: Kaiming normal by fan-out (a group's own), or, with linear layers, Xavier normal; transposed ones
    torch's default; norms 1 and 0; biases 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels + (module.in_channels if xavier else 0)
            std = math.sqrt(2 * module.groups / (fan * module.weight[0, 0].numel()))
            module.weight.copy_(torch.empty(module.weight.shape).normal_(std=std, generator=generator))
        elif xavier and isinstance(module, nn.Linear):
            std = math.sqrt(2 / (module.in_features + module.out_features))
            module.weight.copy_(torch.empty(module.weight.shape).normal_(std=std, generator=generator))
        elif isinstance(module, nn.ConvTranspose2d):
            bound = 1 / math.sqrt(module.out_channels // module.groups * module.weight[0, 0].numel())
            module.weight.copy_(torch.empty(module.weight.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            module.reset_running_stats()
            if module.affine:
                nn.init.ones_(module.weight)
        else:
            continue
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


@torch.no_grad()
def initialise_uniform(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh values by torch's default rule, weights and biases uniform within 1 / sqrt(fan-in); norms 1 and 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for values in module.parameters():
                values.copy_(torch.empty(values.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            module.reset_parameters()
