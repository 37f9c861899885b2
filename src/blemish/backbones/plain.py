"""The catalogue's networks in the form that inspects: convolutions and activations, BatchNorm already folded in.

Built from the tensors' names and shapes alone, so that loading a model imports neither timm nor torchvision (three
seconds, more than everything else together) and does not depend on their versions. Names and outputs are those of
timm's networks after ``fold_batchnorm``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.backbones.catalogue import BACKBONES

# EfficientNet's seven stages by stride; the last one at each stride is the level that methods see.
_LITE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_LITE_LEVEL_OF_STAGE = {0: 0, 1: 1, 2: 2, 4: 3, 6: 4}

Shapes = dict[str, torch.Size]


def plain_network(name: str, stages: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
    """The catalogue's network ``name`` holding ``state``, giving the feature maps of ``stages``, shallowest first.

    Args:
        name: of the catalogue.
        stages: 0 for stride 2, 1 for stride 4 and so on, ascending.
        state: the folded network's tensors up to the last stage; used as they are, not copied.

    Raises:
        KeyError, RuntimeError: ``state`` is not that of such a network.
    """
    shapes = {key: tensor.shape for key, tensor in state.items()}
    lite = BACKBONES[name].timm_name.startswith("tf_efficientnet_lite")
    with torch.device("meta"):
        network = _Lite(shapes, stages) if lite else _ResNet(shapes, stages)
    network.load_state_dict(dict(state), strict=True, assign=True)
    return network.eval().requires_grad_(False)


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
    """Expand, filter by channel, project, without an activation at the end; the first stage does not expand."""

    def __init__(self, shapes: Shapes, stride: int) -> None:
        super().__init__()
        self.order = [key for key in ("conv_pw", "conv_dw", "conv_pwl") if f"{key}.weight" in shapes]
        if "conv_pwl" not in self.order:
            self.order.reverse()
        for key in self.order:
            shape = shapes[f"{key}.weight"]
            depthwise = key == "conv_dw"
            setattr(self, key, _convolution(shape, stride if depthwise else 1, shape[0] if depthwise else 1, same=True))
        first, last = getattr(self, self.order[0]), getattr(self, self.order[-1])
        self.adds = stride == 1 and first.in_channels == last.out_channels

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = images
        for key in self.order[:-1]:
            x = F.relu6(getattr(self, key)(x), inplace=True)
        x = getattr(self, self.order[-1])(x)
        if self.adds:
            x = x + images
        return x


class _Lite(nn.Module):
    """EfficientNet-Lite up to the last stage for which there are tensors."""

    def __init__(self, shapes: Shapes, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.conv_stem = _convolution(shapes["conv_stem.weight"], 2, 1, same=True)
        self.blocks = nn.Sequential()
        for stage in range(_count(shapes, "blocks")):
            inner = _within(shapes, f"blocks.{stage}")
            repeats = range(_count(shapes, f"blocks.{stage}"))
            self.blocks.append(
                nn.Sequential(
                    *(_LiteBlock(_within(inner, str(r)), _LITE_STRIDES[stage] if r == 0 else 1) for r in repeats)
                )
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = F.relu6(self.conv_stem(images), inplace=True)
        for stage, block in enumerate(self.blocks):
            x = block(x)
            if _LITE_LEVEL_OF_STAGE.get(stage) in self.stages:
                maps.append(x)
        return maps


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, beside a shortcut; the first 3x3 carries the stride."""

    def __init__(self, shapes: Shapes, stride: int) -> None:
        super().__init__()
        self.depth = 3 if "conv3.weight" in shapes else 2
        carrier = 2 if self.depth == 3 else 1
        for number in range(1, self.depth + 1):
            shape = shapes[f"conv{number}.weight"]
            setattr(self, f"conv{number}", _convolution(shape, stride if number == carrier else 1))
        shortcut = shapes.get("downsample.0.weight")
        self.downsample = None if shortcut is None else nn.Sequential(_convolution(shortcut, stride))

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for number in range(1, self.depth):
            x = F.relu(getattr(self, f"conv{number}")(x), inplace=True)
        x = getattr(self, f"conv{self.depth}")(x)
        x += images if self.downsample is None else self.downsample(images)
        return F.relu(x, inplace=True)


class _ResNet(nn.Module):
    """ResNet or WideResNet up to the last layer for which there are tensors."""

    def __init__(self, shapes: Shapes, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.conv1 = _convolution(shapes["conv1.weight"], 2)
        self.depth = sum(f"layer{layer}.0.conv1.weight" in shapes for layer in (1, 2, 3, 4))
        for layer in range(1, self.depth + 1):
            inner = _within(shapes, f"layer{layer}")
            repeats = range(_count(shapes, f"layer{layer}"))
            blocks = (_ResidualBlock(_within(inner, str(r)), 2 if layer > 1 and r == 0 else 1) for r in repeats)
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.conv1(images), inplace=True)
        maps = [x] if 0 in self.stages else []
        if self.depth:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for layer in range(1, self.depth + 1):
            x = getattr(self, f"layer{layer}")(x)
            if layer in self.stages:
                maps.append(x)
        return maps


def _convolution(shape: torch.Size, stride: int, groups: int = 1, same: bool = False) -> nn.Conv2d:
    out_channels, in_channels, kernel, _ = shape
    kind, padding = (_SameConv2d, 0) if same and stride > 1 else (nn.Conv2d, kernel // 2)
    return kind(in_channels * groups, out_channels, kernel, stride, padding, groups=groups)


def _within(shapes: Shapes, prefix: str) -> Shapes:
    start = f"{prefix}."
    return {key.removeprefix(start): shape for key, shape in shapes.items() if key.startswith(start)}


def _count(shapes: Shapes, prefix: str) -> int:
    return len({key.split(".")[0] for key in _within(shapes, prefix)})
