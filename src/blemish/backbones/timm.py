"""All other architectures, through timm: which feature maps they offer, and networks that give those and no more."""

import contextlib
import difflib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from blemish.backbones.catalogue import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Rgb
from blemish.contract import Level
from blemish.errors import ConfigError
from blemish.run import torch_seeded

LARGEST = 200_000_000
"""Parameters of a network that is made with values, not filled with those of a file: 0.8 GB."""


def published_weights(name: str) -> tuple[str, str]:
    """The repository on the Hugging Face hub and the address of the weights that timm has for ``name``, or ""."""
    config = _pretrained_config(name)
    return str(getattr(config, "hf_hub_id", None) or ""), str(getattr(config, "url", None) or "")


@lru_cache(maxsize=64)
def offered_levels(name: str) -> dict[int, Level]:
    """The feature maps of an architecture, shallowest first, by their place in timm's list; all count as signed yet.

    Stage s is the deepest map of stride 2^(s+1); where all maps share one stride (ViTs), stage n is the n-th.
    """
    info: list[dict[str, Any]] = _create(name, None, on_meta=True).feature_info.info
    uniform = len({entry["reduction"] for entry in info}) == 1
    deepest = {}
    for index, entry in enumerate(info):
        stage = index + 1 if uniform else int(math.log2(entry["reduction"])) - 1
        deepest[stage] = index, Level(stage, entry["num_chs"], entry["reduction"], signed=True)
    return dict(deepest[stage] for stage in sorted(deepest))


def blank_network(name: str, stages: Sequence[int]) -> nn.Module:
    network: nn.Module = _create(name, stages, on_meta=True)
    if len([*network.parameters(), *network.buffers()]) > len(network.state_dict()):
        with torch_seeded(0):  # it holds what it computes and does not store (Swin's tables)
            network = _create(name, stages, on_meta=False)
    return network


def random_network(name: str, stages: Sequence[int], seed: int) -> nn.Module:
    with torch_seeded(seed):
        network: nn.Module = _create(name, stages, on_meta=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not bool(module.weight.any()):
            nn.init.constant_(module.weight, 0.5)
    return network


def describe(name: str, network: nn.Module) -> tuple[Rgb, Rgb, bool]:
    """Mean and deviation of images in [0, 1], and whether no convolution keeps its channels apart."""
    config = _pretrained_config(name)
    dense = not any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in network.modules())
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (tuple(config.mean), tuple(config.std))
    return mean, std, dense


def find_signs(name: str, network: nn.Module) -> list[bool]:
    """Whether noise makes a value negative, for each level."""
    config = _pretrained_config(name)
    size = (224, 224) if config is None else config.input_size[-2:]
    noise = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [bool((map_ < 0).any()) for map_ in network(noise)]


def _pretrained_config(name: str) -> Any:
    """What timm says of the weights; None for an architecture that it publishes none for."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKBONES)}"
        raise ConfigError(f"there is no backbone {name!r}, here or in timm: {hint}")
    try:
        return get_pretrained_cfg(name)
    except RuntimeError as error:
        prefix = name.partition(".")[0] + "."
        known = [*(own for own in BACKBONES if own.startswith(prefix)), *timm.list_pretrained(f"{prefix}*")]
        raise ConfigError(f"there are no weights {name!r}: choose one of {', '.join(known)}") from error


def _create(name: str, stages: Sequence[int] | None, on_meta: bool) -> Any:
    """The network that gives the maps of ``stages``, channels first, or all that there are; frozen, in eval mode."""
    _pretrained_config(name)  # refuses unknown names
    import timm

    if not on_meta and sum(t.numel() for t in _create(name, stages, on_meta=True).parameters()) > LARGEST:
        raise ConfigError(f"backbone {name!r} has more than {LARGEST:,} numbers to draw: take a smaller one")
    options: dict[str, Any] = {}
    if stages is not None:
        index_of = {level.stage: index for index, level in offered_levels(name).items()}
        options["out_indices"] = tuple(index_of[stage] for stage in stages)
    # As far as the constructor has any, options that let an architecture made for one image size take others.
    sizes: list[dict[str, Any]] = [{"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}, {}]
    for size_options in sizes:
        try:
            with torch.device("meta") if on_meta else contextlib.nullcontext():
                network: Any = timm.create_model(name, features_only=True, pretrained=False, **options, **size_options)
            break
        except (TypeError, RuntimeError, AttributeError, AssertionError) as error:
            if isinstance(error, TypeError) and size_options:
                continue
            raise ConfigError(
                f"backbone {name!r} offers no feature maps ({error}): choose one of {', '.join(BACKBONES)}"
            ) from error
    # timm's EfficientNet and MobileNet extractors keep blocks that they do not need; theirs is a plain list of them.
    blocks, info = getattr(network, "blocks", None), network.feature_info.info
    if stages is not None and isinstance(blocks, nn.Sequential) and all("stage" in entry for entry in info):
        network.blocks = blocks[: info[options["out_indices"][-1]]["stage"]]
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        network.register_forward_hook(lambda _, __, maps: [map_.permute(0, 3, 1, 2) for map_ in maps])
    return network.eval().requires_grad_(False)
