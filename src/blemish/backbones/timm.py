"""All other architectures, through timm: which feature maps they offer, and networks that give those and no more."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from blemish.backbones.catalogue import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Rgb
from blemish.contract import Level
from blemish.errors import ConfigError
from blemish.run import torch_seeded


def published_weights(name: str) -> tuple[str, str]:
    """The repository on the Hugging Face hub and the address of the weights that timm has for ``name``, or "".

    Raises:
        ConfigError: timm does not know the name.
    """
    config = _pretrained_config(name)
    return str(getattr(config, "hf_hub_id", None) or ""), str(getattr(config, "url", None) or "")


@lru_cache(maxsize=64)
def offered_levels(name: str) -> dict[int, Level]:
    """The feature maps of an architecture, shallowest first, by their place in timm's list.

    Whether they are signed is not known yet: all count as such.

    Stage s is the deepest map of stride 2^(s+1); where all maps share one stride (ViTs), stage n is the n-th.

    Raises:
        ConfigError: the name is unknown, or the architecture offers no feature maps.
    """
    info: list[dict[str, Any]] = _create(name, None, on_meta=True).feature_info.info
    uniform = len({entry["reduction"] for entry in info}) == 1
    deepest = {}
    for index, entry in enumerate(info):
        stage = index + 1 if uniform else int(math.log2(entry["reduction"])) - 1
        deepest[stage] = index, Level(stage, entry["num_chs"], entry["reduction"], signed=True)
    return dict(deepest[stage] for stage in sorted(deepest))


def blank_network(name: str, stages: Sequence[int]) -> nn.Module:
    """See ``networks.blank_network``. What a network computes and does not store (Swin's tables) is there already."""
    network: nn.Module = _create(name, stages, on_meta=True)
    if len(list(chain(network.parameters(), network.buffers()))) > len(network.state_dict()):
        with torch_seeded(0):
            network = _create(name, stages, on_meta=False)
    return network


def random_network(name: str, stages: Sequence[int], seed: int) -> nn.Module:
    """See ``networks.random_network``."""
    with torch_seeded(seed):
        network: nn.Module = _create(name, stages, on_meta=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not bool(module.weight.any()):
            nn.init.constant_(module.weight, 0.5)
    return network


def describe(name: str, network: nn.Module) -> tuple[Rgb, Rgb, bool, list[bool]]:
    """What ``network`` expects and is: mean and deviation of images in [0, 1], whether it is dense, signed levels.

    A level counts as signed where noise makes a value negative. A network is not dense where some convolution keeps its
    channels apart.
    """
    config = _pretrained_config(name)
    size = (224, 224) if config is None else config.input_size[-2:]
    noise = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        signed = [bool((map_ < 0).any()) for map_ in network(noise)]
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    dense = not any(conv.groups == conv.in_channels > 1 for conv in convolutions)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (tuple(config.mean), tuple(config.std))
    return mean, std, dense, signed


def _pretrained_config(name: str) -> Any:
    """What timm says of the weights; None for an architecture that it publishes none for."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKBONES)}"
        raise ConfigError(f"there is no backbone {name!r}, here or in timm: {hint}")
    return get_pretrained_cfg(name)


@lru_cache(maxsize=64)
def _size_options(name: str) -> dict[str, Any]:
    """The options, as far as the constructor has any, that let an architecture made for one image size take others."""
    import timm

    choices: list[dict[str, Any]] = [{"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}]
    for options in choices:
        with contextlib.suppress(TypeError), torch.device("meta"):
            timm.create_model(name, features_only=True, pretrained=False, **options)
            return options
    return {}


def _create(name: str, stages: Sequence[int] | None, on_meta: bool) -> Any:
    """The network that gives the maps of ``stages``, channels first, or all that there are; frozen, in eval mode."""
    _pretrained_config(name)  # refuses unknown names
    import timm

    options: dict[str, Any] = {}
    if stages is not None:
        index_of = {level.stage: index for index, level in offered_levels(name).items()}
        options["out_indices"] = tuple(index_of[stage] for stage in stages)
    try:
        with torch.device("meta") if on_meta else contextlib.nullcontext():
            options |= _size_options(name)
            network: Any = timm.create_model(name, features_only=True, pretrained=False, **options)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"backbone {name!r} offers no feature maps ({error}): choose one of {', '.join(BACKBONES)}"
        ) from error
    # timm's EfficientNet and MobileNet extractors keep blocks that they do not need; theirs is a plain list of them.
    blocks, info = getattr(network, "blocks", None), network.feature_info.info
    if stages is not None and isinstance(blocks, nn.Sequential) and all("stage" in entry for entry in info):
        network.blocks = blocks[: info[options["out_indices"][-1]]["stage"]]
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        network.register_forward_hook(_channels_first)
    return network.eval().requires_grad_(False)


def _channels_first(_: nn.Module, __: Any, maps: list[Tensor]) -> list[Tensor]:
    return [map_.permute(0, 3, 1, 2) for map_ in maps]
