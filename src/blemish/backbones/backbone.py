"""Frozen backbones: built from a name, or from what a model file holds.

Features come out as float32 numbers that bf16 can hold, so that a cache of bf16 features changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from blemish.backbones import timm
from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE, Rgb
from blemish.backbones.networks import RESNETS, Normalise, blank_network, choose_levels, fold_batchnorm, random_network
from blemish.backbones.weights import digest_of, find_weights, select_tensors
from blemish.contract import Backbone, Level, rounded
from blemish.errors import ModelFileError, WeightsError
from blemish.run import Precision, choose_precision


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is, beside its tensors.

    Attributes:
        name: of the catalogue, or timm's.
        levels: what ``forward`` returns, shallowest first.
        digest: SHA-256 over the tensors of the used stages, before BatchNorm is folded.
        source: where the weights were found, for people.
        seed: of random weights; None for trained ones.
        mean: subtracted from images in [0, 1].
        std: then divided by.
        dense: False for backbones of depthwise convolutions.
    """

    name: str
    levels: tuple[Level, ...]
    digest: str
    source: str
    seed: int | None
    mean: Rgb
    std: Rgb
    dense: bool


class FrozenBackbone(Backbone):
    """A network cut after its last used stage: frozen, always in eval mode, normalising its input itself.

    ``state_dict`` holds the used stages' tensors and nothing else.

    Attributes:
        network: normalised images to feature maps.
        normalise: images in [0, 1] to normalised ones.
        source: where its weights were found, for people.
    """

    def __init__(self, network: nn.Module, spec: BackboneSpec, precision: Precision | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.normalise = Normalise(spec.mean, spec.std)
        self.name, self.levels, self.dense = spec.name, spec.levels, spec.dense
        self.digest, self.source = spec.digest, spec.source
        self.residual = RESNETS.get(spec.name.partition(".")[0])  # timm's checkpoints stand behind a dot
        self._spec = spec
        self.precision = precision or choose_precision(torch.device("cpu"), dense=spec.dense)
        self.eval()

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
        normalised = self.normalise(images)
        if self.precision.channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast(images.device):
            maps = self.network(normalised)
        return [rounded(map_) for map_ in maps]

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Nothing: a teacher whose BatchNorm followed the batch would be another teacher at every step."""
        return super().train(False)

    def spec(self) -> dict[str, Any]:
        """What ``rebuild`` needs beside the tensors: JSON-able, without paths."""
        return {**dataclasses.asdict(self._spec), "stages": [level.stage for level in self.levels]}


def build_backbone(
    name: str = DEFAULT_BACKBONE,
    stages: Sequence[int] = (2, 3),
    weights: str | Path = "pretrained",
    seed: int = 0,
    precision: Precision | None = None,
) -> FrozenBackbone:
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
    levels = choose_levels(name, stages)
    stages = [level.stage for level in levels]
    is_random = str(weights) == "random"
    if is_random:
        network, source = random_network(name, stages, seed), f"random, seed {seed}"
    else:
        network = blank_network(name, stages)
        tensors, source = find_weights(name, weights)
        network.load_state_dict(select_tensors(tensors, network.state_dict(), name, source), assign=True)
    digest = digest_of(network.state_dict())
    entry = BACKBONES.get(name)
    if entry is not None:
        network, mean, std, dense = fold_batchnorm(network), entry.mean, entry.std, entry.dense
    else:
        mean, std, dense, signs = timm.describe(name, network)
        levels = tuple(dataclasses.replace(level, signed=signed) for level, signed in zip(levels, signs))
    spec = BackboneSpec(name, levels, digest, source, seed if is_random else None, mean, std, dense)
    return FrozenBackbone(network, spec, precision)


def rebuild(
    spec: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    weights: str | Path | None = None,
    precision: Precision | None = None,
) -> FrozenBackbone:
    """The backbone that ``spec`` describes.

    Args:
        spec: from ``FrozenBackbone.spec``, possibly by way of JSON; what earlier versions added is passed over.
        state: from ``FrozenBackbone.state_dict``: then nothing is looked for and no network is needed. Its tensors are
            used as they are, not copied.
        weights: without ``state``: where to find the weights again; by default where they came from.
        precision: how to compute; by default what a CPU gains from.

    Raises:
        ModelFileError: ``spec`` or ``state`` is incomplete, or they do not belong together.
        WeightsError: the weights are not to be had, or are not those that ``spec`` names.
    """
    advice = "fit the model again, or load it with the version of Blemish that wrote it"
    try:
        saved = TypeAdapter(BackboneSpec).validate_python(dict(spec))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ModelFileError(
            f"the model file does not describe its backbone as this version does ({reason}): {advice}"
        ) from error
    stages = [level.stage for level in saved.levels]
    if state is not None:
        tensors = {key.removeprefix("network."): tensor for key, tensor in state.items()}
        try:
            network = blank_network(saved.name, stages, folded=saved.name in BACKBONES)
            network.load_state_dict(tensors, assign=True)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            reason = f"the model file's backbone tensors are not those of {saved.name}"
            raise ModelFileError(f"{reason}: {advice}") from error
        return FrozenBackbone(network, saved, precision)
    if weights is None:
        weights = "pretrained" if saved.seed is None else "random"
    built = build_backbone(saved.name, stages, weights, saved.seed or 0, precision)
    if built.digest != saved.digest:
        raise WeightsError(
            f"the model was made with {saved.name} weights from {saved.source} (SHA-256 {saved.digest[:12]}...), "
            f"but {built.source} gives {built.digest[:12]}...: give the same file with --weights FILE, "
            "or ask for a model file that holds its backbone"
        )
    return built
