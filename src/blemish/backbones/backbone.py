"""Frozen feature extractors through timm: built from a name, or from what a model file holds.

Features come out as float32 numbers that bf16 can hold, so that a cache of bf16 features changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE, IMAGENET_MEAN, IMAGENET_STD, Rgb
from blemish.backbones.plain import plain_network
from blemish.backbones.tensors import digest_of, select_tensors
from blemish.backbones.timm import (
    Feature,
    choose_features,
    filled,
    fold_batchnorm,
    has_depthwise,
    random_network,
    timm_name,
    unfilled_network,
)
from blemish.backbones.weights import find_weights
from blemish.contract import Backbone, Level, rounded
from blemish.errors import ModelFileError, WeightsError
from blemish.run import Precision, choose_precision


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is, beside its tensors.

    Attributes:
        name: of the catalogue, or timm's.
        levels: what ``forward`` returns, shallowest first.
        places: of the levels in timm's list of the architecture's features.
        digest: SHA-256 over the tensors of the used stages, before BatchNorm is folded.
        source: where the weights were found, for people.
        seed: of random weights; None for trained ones.
        mean: subtracted from images in [0, 1].
        std: then divided by.
        dense: False for backbones of depthwise convolutions.
        folded: whether the network is one of ``plain``, BatchNorm multiplied into the convolutions.
    """

    name: str
    levels: tuple[Level, ...]
    places: tuple[int, ...]
    digest: str
    source: str
    seed: int | None
    mean: Rgb
    std: Rgb
    dense: bool
    folded: bool


class TimmBackbone(Backbone):
    """A timm network cut after its last used stage: frozen, always in eval mode, normalising its input itself.

    ``state_dict`` holds the used stages' tensors and nothing else.

    Attributes:
        network: images, normalised, to feature maps.
        name, levels, digest, source, mean, std, dense: as in ``BackboneSpec``.
        stages: of ``levels``.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, network: nn.Module, spec: BackboneSpec, precision: Precision | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name, self.levels, self.digest, self.source = spec.name, spec.levels, spec.digest, spec.source
        self.mean, self.std, self.dense = spec.mean, spec.std, spec.dense
        self.stages = tuple(level.stage for level in spec.levels)
        self._spec = spec
        self._channels_come_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        self.register_buffer("_mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.training = False
        self.precision = precision or choose_precision(torch.device("cpu"), dense=spec.dense)

    @property
    def precision(self) -> Precision:
        """How the network computes; set it again after moving to another device."""
        return self._precision

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self._precision = precision
        self.network.to(memory_format=torch.channels_last if precision.channels_last else torch.contiguous_format)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The feature maps of ``b 3 h w`` images in [0, 1], shallowest first: float32 ``b c y x``, rounded to bf16.

        In memory the maps lie as the network left them (channels last, where that is faster).
        """
        normalised = (images - self._mean) / self._std
        if self.precision.channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast(images.device):
            maps: list[Tensor] = self.network(normalised)
        if self._channels_come_last:
            maps = [map_.permute(0, 3, 1, 2) for map_ in maps]
        return [rounded(map_) for map_ in maps]

    def train(self, mode: bool = True) -> TimmBackbone:
        """Nothing: a teacher whose BatchNorm followed the batch would be another teacher at every step."""
        return self

    def spec(self) -> dict[str, Any]:
        """What ``rebuild`` needs beside the tensors: JSON-able, without paths."""
        return {**asdict(self._spec), "stages": list(self.stages)}


def build_backbone(
    name: str = DEFAULT_BACKBONE,
    stages: Sequence[int] = (2, 3),
    weights: str | Path = "pretrained",
    seed: int = 0,
    precision: Precision | None = None,
) -> TimmBackbone:
    """A frozen backbone with trained weights; the first use of a name may download them.

    Args:
        name: of the catalogue, or any timm architecture that offers feature maps.
        stages: 1 for stride 4, 2 for stride 8 and so on; for architectures of one stride, the n-th block.
        weights: ``pretrained``, a ``.safetensors`` or ``.pth`` file, or ``random`` (from ``seed``; for tests only).
        seed: of random weights.
        precision: how to compute; by default what a CPU gains from.

    Raises:
        ConfigError: an unknown name or stage.
        WeightsError: the weights are not to be had, or belong to another architecture.
    """
    features = choose_features(name, stages)
    is_random = str(weights) == "random"
    network, source = _random(name, features, seed) if is_random else _trained(name, features, weights)
    mean, std, signed = _facts(name, network, features)
    spec = BackboneSpec(
        name=name,
        levels=tuple(Level(f.stage, f.channels, f.stride, sign) for f, sign in zip(features, signed)),
        places=tuple(feature.index for feature in features),
        digest=digest_of(network.state_dict()),
        source=source,
        seed=seed if is_random else None,
        mean=mean,
        std=std,
        dense=not has_depthwise(network),
        folded=name in BACKBONES,
    )
    if spec.folded:
        network = plain_network(name, [f.stage for f in features], fold_batchnorm(network).state_dict())
    return TimmBackbone(network, spec, precision)


def _random(name: str, features: Sequence[Feature], seed: int) -> tuple[nn.Module, str]:
    return random_network(name, features, seed), f"random, seed {seed}"


def _trained(name: str, features: Sequence[Feature], weights: str | Path) -> tuple[nn.Module, str]:
    """The cut network with its trained tensors, and where they were found."""
    network = unfilled_network(name, features)
    found = find_weights(name, weights)
    tensors = select_tensors(found, network.state_dict(), name)
    return filled(network, tensors, name, features), found.source


def rebuild(
    spec: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    weights: str | Path | None = None,
    precision: Precision | None = None,
) -> TimmBackbone:
    """The backbone that ``spec`` describes.

    Args:
        spec: from ``TimmBackbone.spec``, possibly by way of JSON.
        state: from ``TimmBackbone.state_dict``: then nothing is looked for and no network is needed. Its tensors are
            used as they are, not copied.
        weights: without ``state``: where to find the weights again; by default where they came from.
        precision: how to compute; by default what a CPU gains from.

    Raises:
        ModelFileError: ``spec`` or ``state`` is incomplete, or they do not belong together.
        WeightsError: the weights are not to be had, or are not those that ``spec`` names.
    """
    wanted = _parse(spec)
    stages = tuple(level.stage for level in wanted.levels)
    if state is not None:
        return TimmBackbone(_network_from(wanted, state), wanted, precision)
    if weights is None:
        weights = "pretrained" if wanted.seed is None else "random"
    built = build_backbone(wanted.name, stages, weights, wanted.seed or 0, precision)
    if built.digest != wanted.digest:
        raise WeightsError(
            f"the model was made with {wanted.name} weights from {wanted.source} (SHA-256 {wanted.digest[:12]}...), "
            f"but {built.source} gives {built.digest[:12]}...: give the same file with --weights FILE, "
            "or ask for a model file that holds its backbone"
        )
    return built


def _network_from(wanted: BackboneSpec, state: Mapping[str, Tensor]) -> nn.Module:
    tensors = {key.removeprefix("network."): tensor for key, tensor in state.items()}
    try:
        if wanted.folded:
            return plain_network(wanted.name, [level.stage for level in wanted.levels], tensors)
        features = [Feature(x.stage, x.channels, x.stride, place) for x, place in zip(wanted.levels, wanted.places)]
        return filled(unfilled_network(wanted.name, features), tensors, wanted.name, features)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"the model file's backbone tensors are not those of {wanted.name}: fit the model again, "
            "or load it with the version of Blemish that wrote it"
        ) from error


def _parse(spec: Mapping[str, Any]) -> BackboneSpec:
    fields = {key: value for key, value in spec.items() if key != "stages"}
    try:
        fields["levels"] = tuple(Level(**level) for level in fields["levels"])
        fields["places"] = tuple(fields["places"])
        fields["mean"], fields["std"] = _rgb(fields["mean"]), _rgb(fields["std"])
        return BackboneSpec(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"the model file does not describe its backbone as this version does ({error}): fit the model again, "
            "or load it with the version of Blemish that wrote it"
        ) from error


def _facts(name: str, network: nn.Module, features: Sequence[Feature]) -> tuple[Rgb, Rgb, list[bool]]:
    """Mean, deviation and, by level, whether values can be negative."""
    entry = BACKBONES.get(name)
    if entry is not None:
        return entry.mean, entry.std, [entry.signed] * len(features)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(timm_name(name))
    if config is None:  # an architecture that timm publishes no weights for
        return IMAGENET_MEAN, IMAGENET_STD, _probed(network, (224, 224))
    return _rgb(config.mean), _rgb(config.std), _probed(network, config.input_size[-2:])


def _rgb(values: Sequence[float]) -> Rgb:
    red, green, blue = values
    return red, green, blue


def _probed(network: nn.Module, size: Sequence[int]) -> list[bool]:
    noise = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [bool((map_ < 0).any()) for map_ in network(noise)]
