"""ResNet and EfficientNet-Lite as feature extractors: the catalogue's networks, to be trained or frozen.

Written here once, so that loading a model imports neither timm nor torchvision (three seconds, more than everything
else together) and depends on no version of theirs. Tensor names, random first values and outputs are timm's, to the
last bit. Whatever is not in the catalogue is passed on to ``blemish.backbones.timm``.

Stage 0 has stride 2, stage 1 stride 4 and so on: a network is built up to the last stage that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from blemish.backbones import timm
from blemish.backbones.catalogue import BACKBONES, Rgb
from blemish.contract import Level, ResidualStages
from blemish.errors import ConfigError, WeightsError
from blemish.run import torch_seeded

RESNETS = {
    "resnet18": ResidualStages((2, 2, 2, 2), 2, 64),
    "resnet34": ResidualStages((3, 4, 6, 3), 2, 64),
    "resnet50": ResidualStages((3, 4, 6, 3), 3, 64),
    "resnet101": ResidualStages((3, 4, 23, 3), 3, 64),
    "wide_resnet50_2": ResidualStages((3, 4, 6, 3), 3, 128),
    "wide_resnet101_2": ResidualStages((3, 4, 23, 3), 3, 128),
}

# Blocks and width of each of EfficientNet's seven groups of blocks; what is common to all sizes stands below.
_LITES = {
    "efficientnet_lite0": ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet_lite1": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet_lite2": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
}
_LITE_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_LITE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_LITE_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_LITE_LAST_GROUPS = (0, 1, 2, 4, 6)
"""The group of blocks that ends each stage: the last one of its stride."""


def choose_levels(name: str, stages: Sequence[int]) -> tuple[Level, ...]:
    """The levels of ``stages``, shallowest first; those of timm's architectures all count as signed.

    Raises:
        ConfigError: the name is unknown, no stage is given, or the architecture has no such stage.
    """
    if name not in BACKBONES:
        offered = {level.stage: level for level in timm.offered_levels(name).values()}
    else:
        if name in _LITES:
            channels = [_LITES[name][1][group] for group in _LITE_LAST_GROUPS]
        else:
            channels = [64, *((256 if RESNETS[name][1] == 3 else 64) << layer for layer in range(4))]
        signed = BACKBONES[name].signed
        offered = {stage: Level(stage, width, 2 << stage, signed) for stage, width in enumerate(channels)}
    chosen = sorted(set(stages))
    if not chosen or any(stage not in offered for stage in chosen):
        raise ConfigError(
            f"stages {tuple(stages)} of backbone {name!r}: choose one or more of {', '.join(map(str, offered))}"
        )
    return tuple(offered[stage] for stage in chosen)


def blank_network(name: str, stages: Sequence[int], folded: bool = False) -> nn.Module:
    """A network of ascending ``stages`` without values, to be filled by ``load_state_dict(..., assign=True)``.

    It takes normalised images ``b 3 h w`` and gives a map ``b c y x`` for each stage. ``folded`` ones, of the catalogue
    only, are as ``fold_batchnorm`` leaves them.
    """
    if name not in BACKBONES:
        return timm.blank_network(name, stages)
    with torch.device("meta"):
        network = _Lite(name, stages) if name in _LITES else _ResNet(name, stages)
        if folded:
            for parent, convolution, norm in _with_norms(network):
                convolution.bias = nn.Parameter(torch.empty(convolution.out_channels))
                setattr(parent, norm, nn.Identity())
    return network


def random_network(name: str, stages: Sequence[int], seed: int) -> nn.Module:
    """The same with random values fixed by ``seed``, which are those that timm draws.

    The last norm of a residual block starts at a half: at zero, timm's choice, the features would leave the block out.
    """
    if name not in BACKBONES:
        return timm.random_network(name, stages, seed)
    with torch_seeded(seed):
        whole: nn.Module
        if name in _LITES:
            whole = _Lite(name, [4])
            for module in whole.modules():
                if isinstance(module, nn.Conv2d):
                    fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                    nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        else:
            whole = _ResNet(name, [4])
            nn.Linear(whole.channels, 1000)  # timm draws a classifier too, and drops it
            for module in whole.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(module, _ResidualBlock):
                    nn.init.constant_(module.get_parameter(f"bn{module.depth}.weight"), 0.5)
    network, values = blank_network(name, stages), whole.state_dict()
    network.load_state_dict({key: values[key] for key in network.state_dict()}, assign=True)
    return network


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """A network of the catalogue with each BatchNorm multiplied into the convolution before it; to be frozen."""
    for parent, convolution, name in _with_norms(network):
        norm: Any = parent.get_submodule(name)
        # In float64, so that the only rounding is the last one.
        kernel, mean, variance, scale, shift = (
            tensor.detach().double()
            for tensor in (convolution.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        weight, bias = fuse_conv_bn_weights(kernel, None, mean, variance, norm.eps, scale, shift)
        convolution.weight, convolution.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
        setattr(parent, name, nn.Identity())
    return network.requires_grad_(False)


def _with_norms(network: nn.Module) -> list[tuple[nn.Module, nn.Conv2d, str]]:
    """Each convolution with its parent, and what the parent calls the norm behind it."""
    return [
        (parent, convolution, name)
        for parent in network.modules()
        for (_, convolution), (name, norm) in pairwise(parent.named_children())
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]


class Normalise(nn.Module):
    """Images in [0, 1] less a mean, over a deviation, by channel; both stay out of ``state_dict``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``b 3 h w`` as the network was trained on them."""
        return (images - self.mean) / self.std


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, beside a shortcut; the first 3x3 carries the stride."""

    def __init__(self, widths: Sequence[int], stride: int) -> None:
        """Layers for ``widths`` of the input and behind each convolution."""
        super().__init__()
        self.depth = len(widths) - 1
        shortcut = None
        if stride > 1 or widths[0] != widths[-1]:  # made first, as in timm: so it is drawn first
            convolution = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(widths[-1]))
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            kernel = 3 if self.depth == 2 or i == 1 else 1
            step = stride if i == self.depth - 2 else 1
            self.add_module(f"conv{i + 1}", nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(outputs))
        self.downsample = shortcut

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i in range(1, self.depth + 1):
            if i > 1:
                x = F.relu(x, inplace=True)
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
        x += images if self.downsample is None else self.downsample(images)
        return F.relu(x, inplace=True)


class _ResNet(nn.Module):
    """ResNet or WideResNet up to the last stage."""

    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        blocks, convolutions, width = RESNETS[name]
        self.stages = tuple(stages)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.channels = 64
        for layer, count in enumerate(blocks[: self.stages[-1]]):
            inner = [width << layer] * (convolutions - 1)
            outputs = (256 if convolutions == 3 else 64) << layer
            group = nn.Sequential()
            for i in range(count):
                group.append(_ResidualBlock([self.channels, *inner, outputs], 2 if layer and i == 0 else 1))
                self.channels = outputs
            self.add_module(f"layer{layer + 1}", group)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = [x] if 0 in self.stages else []
        if self.stages[-1]:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for layer in range(1, self.stages[-1] + 1):
            x = getattr(self, f"layer{layer}")(x)
            if layer in self.stages:
                maps.append(x)
        return maps


class _SameConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow does: an odd rest goes to the right and the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(images.shape[-2:], self.stride, self.kernel_size)
        )
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return F.conv2d(F.pad(images, padding), self.weight, self.bias, self.stride, 0, 1, self.groups)


class _LiteBlock(nn.Module):
    """Expand, filter by channel, project, without an activation at the end; the first group does not expand."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        depthwise = inner, inner, kernel, stride, inner
        layers = {"conv_dw": depthwise, "conv_pw": (inner, outputs)}
        if expansion > 1:
            layers = {"conv_pw": (inputs, inner), "conv_dw": depthwise, "conv_pwl": (inner, outputs)}
        self.names = tuple(layers)
        for i, (name, arguments) in enumerate(layers.items(), 1):
            convolution, norm = _lite_convolution(*arguments)
            self.add_module(name, convolution)
            self.add_module(f"bn{i}", norm)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i, name in enumerate(self.names, 1):
            if i > 1:
                x = F.relu6(x, inplace=True)
            x = getattr(self, f"bn{i}")(getattr(self, name)(x))
        return x + images if self.adds else x


class _Lite(nn.Module):
    """EfficientNet-Lite up to the last stage."""

    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        counts, widths = _LITES[name]
        self.stages = tuple(stages)
        self.conv_stem, self.bn1 = _lite_convolution(3, 32, 3, 2)
        for _ in range(2):
            nn.Conv2d(8, 8, 1)  # timm makes these too, and drops them: with them a seed means the same values
        self.blocks = nn.Sequential()
        channels = 32
        for group in range(_LITE_LAST_GROUPS[self.stages[-1]] + 1):
            kernel, stride, expansion = _LITE_KERNELS[group], _LITE_STRIDES[group], _LITE_EXPANSIONS[group]
            blocks = nn.Sequential()
            for i in range(counts[group]):
                blocks.append(_LiteBlock(channels, widths[group], kernel, stride if i == 0 else 1, expansion))
                channels = widths[group]
            self.blocks.append(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = F.relu6(self.bn1(self.conv_stem(images)), inplace=True)
        for group, blocks in enumerate(self.blocks):
            x = blocks(x)
            if group in _LITE_LAST_GROUPS and _LITE_LAST_GROUPS.index(group) in self.stages:
                maps.append(x)
        return maps


def _lite_convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution padded as TensorFlow does, and the norm behind it."""
    norm = nn.BatchNorm2d(outputs, eps=1e-3)
    if stride > 1:
        return _SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False), norm
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False), norm


def with_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published EfficientNet-Lite file's tensors under our names; all others as they are.

    Such a file lists the same tensors in the same order, and numbers blocks through.

    Raises:
        WeightsError: the number of blocks is that of no Lite0, Lite1 or Lite2, or the order is another.
    """
    if "_conv_stem.weight" not in tensors:
        return dict(tensors)
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("_blocks.")})
    name = next((name for name, (counts, _) in _LITES.items() if sum(counts) == blocks), None)
    if name is None:
        raise WeightsError(f"an EfficientNet-Lite file of {blocks} blocks: give Lite0's (16), Lite1's or Lite2's (21)")
    ours, theirs = (
        [key for key in keys if not key.endswith("num_batches_tracked")]
        for keys in (blank_network(name, [4]).state_dict(), tensors)
    )
    for own, other in zip(ours, theirs, strict=False):  # theirs has a classifier behind the last block
        if own.rsplit(".", 1)[1] != other.rsplit(".", 1)[1]:
            raise WeightsError(f"an EfficientNet-Lite file with {other} where {own} is due: give the published file")
    return {own: tensors[other] for own, other in zip(ours, theirs, strict=False)}
