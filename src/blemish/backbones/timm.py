"""A timm network as a feature extractor: cut after the last level that is used, BatchNorm folded into convolutions.

timm runs EfficientNets to the end even when only shallow features are asked for, and every BatchNorm of a frozen
network is a second pass over memory for what the convolution before it can do; both are removed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from blemish.backbones.catalogue import BACKBONES
from blemish.errors import ConfigError


@dataclass(frozen=True)
class Feature:
    """One feature map that an architecture offers: its stage, width, stride and place in timm's list."""

    stage: int
    channels: int
    stride: int
    index: int


def timm_name(name: str) -> str:
    """What timm calls the backbone ``name``, with the weights' tag where the catalogue pins one.

    Raises:
        ConfigError: neither the catalogue nor timm knows the name.
    """
    entry = BACKBONES.get(name)
    if entry is not None:
        return f"{entry.timm_name}.{entry.tag}"
    import timm

    if not timm.is_model(name):
        import difflib

        close = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKBONES)}"
        raise ConfigError(f"there is no backbone {name!r}, here or in timm: {hint}")
    return name


@lru_cache(maxsize=64)
def features_offered(name: str) -> tuple[Feature, ...]:
    """The feature maps of an architecture, shallowest first.

    Stage s is the deepest map of stride 2^(s+1); where all maps share one stride (ViTs), stage n is the n-th.

    Raises:
        ConfigError: the name is unknown, or the architecture offers no feature maps.
    """
    info: list[dict[str, Any]] = _create(name, None, on_meta=True).feature_info.info
    uniform = len({entry["reduction"] for entry in info}) == 1
    found = {}
    for index, entry in enumerate(info):
        stage = index + 1 if uniform else int(math.log2(entry["reduction"])) - 1
        found[stage] = Feature(stage, entry["num_chs"], entry["reduction"], index)
    return tuple(found[stage] for stage in sorted(found))


def choose_features(name: str, stages: Sequence[int]) -> tuple[Feature, ...]:
    """The features of ``stages``, shallowest first.

    Raises:
        ConfigError: no stage is given, or the architecture has no such stage.
    """
    offered = {feature.stage: feature for feature in features_offered(name)}
    wanted = sorted(set(stages))
    if not wanted or any(stage not in offered for stage in wanted):
        raise ConfigError(
            f"stages {tuple(stages)} of backbone {name!r}: choose one or more of {', '.join(map(str, offered))}"
        )
    return tuple(offered[stage] for stage in wanted)


def unfilled_network(name: str, features: Sequence[Feature]) -> nn.Module:
    """The cut network without values (on torch's meta device), to be filled by ``filled``."""
    return _cut(_create(name, features, on_meta=True), features)


def random_network(name: str, features: Sequence[Feature], seed: int) -> nn.Module:
    """The cut network with random values fixed by ``seed``; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _create(name, features, on_meta=False)
    for module in network.modules():
        # timm starts the last norm of a residual block at zero, which would leave the block out of the features.
        if isinstance(module, nn.BatchNorm2d) and not bool(module.weight.any()):
            nn.init.constant_(module.weight, 0.5)
    return _cut(network, features)


def filled(network: nn.Module, tensors: Mapping[str, Tensor], name: str, features: Sequence[Feature]) -> nn.Module:
    """``network`` holding ``tensors`` (without copying them), whose names and shapes must be its own.

    Raises:
        RuntimeError: from ``load_state_dict``, when names or shapes differ.
    """
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        # Some architectures compute tables that they do not store (Swin's relative positions): build those for real.
        network = _cut(_create(name, features, on_meta=False), features)
        network.load_state_dict(dict(tensors), strict=True)
    return network


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """``network`` with each BatchNorm multiplied into the convolution right before it; for frozen networks only.

    A convolution and the norm registered next to it are taken for a pair, which holds for the catalogue's
    architectures (their tests compare outputs), not for all. Activations that timm keeps inside norms stay.
    """
    for parent, conv_name, norm_name in list(_pairs(network)):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        conv.weight, conv.bias = _fused(conv, norm)
        setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    return network


def has_depthwise(network: nn.Module) -> bool:
    """Whether some convolution keeps its channels apart."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(conv.groups == conv.in_channels > 1 for conv in convolutions)


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    # In float64, so that the only rounding is the last one.
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        mean.double(),
        variance.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    dtype = conv.weight.dtype
    return nn.Parameter(weight.to(dtype), requires_grad=False), nn.Parameter(bias.to(dtype), requires_grad=False)


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    for parent in network.modules():
        before: tuple[str, nn.Module] | None = None
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
                yield parent, before[0], name
            if not isinstance(child, nn.Identity):
                before = (name, child)


def _cut(network: nn.Module, features: Sequence[Feature]) -> nn.Module:
    # Only timm's EfficientNet and MobileNet extractors keep what they do not need; theirs is a plain list of blocks.
    blocks = getattr(network, "blocks", None)
    info = network.feature_info
    if isinstance(blocks, nn.Sequential) and all("stage" in entry for entry in info.info):  # type: ignore[union-attr]
        last = info.info[features[-1].index]["stage"]  # type: ignore[union-attr, index]
        network.blocks = blocks[:last]
    return network.eval().requires_grad_(False)


# What lets architectures made for one image size take others; the first set that a constructor accepts is used.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


@lru_cache(maxsize=64)
def _size_options(name: str) -> int:
    """Which of ``_ANY_SIZE`` the architecture accepts."""
    import timm

    for position, options in enumerate(_ANY_SIZE[:-1]):
        try:
            with torch.device("meta"):
                timm.create_model(name, features_only=True, pretrained=False, **options)
        except TypeError:
            continue
        return position
    return len(_ANY_SIZE) - 1


def _create(name: str, features: Sequence[Feature] | None, on_meta: bool) -> Any:
    full = timm_name(name)
    import timm

    options = {} if name in BACKBONES else dict(_ANY_SIZE[_size_options(full)])
    if features is not None:
        options["out_indices"] = tuple(feature.index for feature in features)
    try:
        with torch.device("meta") if on_meta else nullcontext():
            return timm.create_model(full, features_only=True, pretrained=False, **options)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"backbone {name!r} offers no feature maps ({error}): choose one of {', '.join(BACKBONES)}"
        ) from error
