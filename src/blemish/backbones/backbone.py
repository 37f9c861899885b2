"""Frozen backbones, built from a name or from what a model file holds; and students of a backbone's architecture.

Features come out as float32 numbers that bf16 can hold, so that a cache of bf16 features changes nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from blemish.backbones import networks, timm
from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE, Rgb
from blemish.backbones.networks import Normalise, blank_network, fold_batchnorm
from blemish.backbones.weights import digest_of, find_weights, select_tensors
from blemish.contract import Backbone, Level, check_cells
from blemish.errors import ConfigError, ModelFileError, WeightsError
from blemish.run import Precision, choose_precision, torch_seeded

# That pass through convolutions together on a CPU: a layer's output of more than 32 MB would be fetched from the system
# anew each time, page by page, and an image of 512 pixels in a batch of 8 takes twice as long as in a batch of 2.
PIXELS = 2 * 384 * 384
MOST_DRAWN = 30_000_000  # random weights are for tests: so many numbers, ResNet50's, a small model file may ask for


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is, beside its tensors."""

    name: str
    levels: tuple[Level, ...]
    digest: str  # SHA-256 over the tensors of the used stages, before BatchNorm is folded
    source: str  # where the weights were found, for people
    seed: int | None  # of random weights
    mean: Rgb
    std: Rgb
    dense: bool
    tokens: bool = False  # maps of one stride, each cell's vector normalised; earlier versions did not normalise


class FrozenBackbone(Backbone):
    """A network cut after its last used stage: frozen, always in eval mode, normalising its input itself.

    Of architectures of one stride, such as ViTs, each cell's vector is brought to mean 0 and variance 1 (a layer norm
    without learned scale): their numbers grow from block to block, and the deepest block would decide distances.
    ``state_dict`` holds the used stages' tensors and nothing else.
    """

    def __init__(self, network: nn.Module, spec: BackboneSpec, precision: Precision | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.normalise = Normalise(spec.mean, spec.std)
        self._spec, self.source = spec, spec.source
        self.name, self.levels, self.digest, self.dense = spec.name, spec.levels, spec.digest, spec.dense
        self.tokens = spec.tokens
        self.weights: str | Path = "local" if spec.seed is None else "random"  # where to find them again
        self.residual = networks.RESNETS.get(spec.name.partition(".")[0])  # timm's checkpoints stand behind a dot
        self.precision = precision or choose_precision(torch.device("cpu"), dense=spec.dense)
        self.eval()

    @property
    def precision(self) -> Precision:
        return self._precision

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self._precision = precision
        self.network.to(memory_format=torch.channels_last if precision.channels_last else torch.contiguous_format)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As in the contract. A ConfigError where patches do not fill the images: padding would shift the map."""
        patch, sides = self.levels[0].stride, tuple(images.shape[-2:])
        if self.tokens and any(side % patch for side in sides):
            near = (sorted({max(side // patch, 1) * patch, -(-side // patch) * patch}) for side in sides)
            height, width = (" or ".join(map(str, sizes)) for sizes in near)
            raise ConfigError(
                f"images of {sides[0]} x {sides[1]} pixels cannot be cut into the patches of {patch} x {patch} that "
                f"{self.name} sees: choose a --size whose height is {height} and whose width is {width}"
            )
        if self.tokens or images.device.type != "cpu" or torch.compiler.is_compiling():
            return self._maps(images)
        together = max(2, PIXELS // math.prod(sides))  # never one alone of several: it may be rounded otherwise
        portions = [self._maps(some) for some in images.tensor_split(max(1, len(images) // together))]
        return [torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*portions)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        normalised = self.normalise(images)
        if self.precision.channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast(images.device):
            try:
                maps = self.network(normalised)
            except AssertionError as error:  # timm's, of architectures made for one size
                raise ConfigError(f"backbone {self.name!r} takes no images of this --size: {error}") from error
        if self.tokens:
            maps = normalise_cells(maps)
        return [map_.bfloat16().float() for map_ in maps]

    def train(self, mode: bool = True) -> FrozenBackbone:
        return super().train(False)  # else BatchNorm would follow the batch: another teacher at every step

    def spec(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self._spec), "stages": [level.stage for level in self.levels]}


class NoBackbone(Backbone):
    """What methods that see pixels alone are given: no levels, no weights."""

    name, levels, dense, digest = "none", (), True, ""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.empty(0), persistent=False)  # is where the method is
        self.precision = choose_precision(torch.device("cpu"))

    def forward(self, images: Tensor) -> list[Tensor]:
        return []

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "stages": []}


def normalise_cells(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps ``b c y x`` whose every cell has mean 0 and variance 1 over its channels."""
    return [layer_norm(map_.float().movedim(1, -1), map_.shape[1:2]).movedim(-1, 1) for map_ in maps]


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
        stages: 1 for stride 4, 2 for stride 8 and so on; for architectures of one stride, the n-th block, from 1.
        weights: ``pretrained``, a ``.safetensors`` or ``.pth`` file, or ``random`` (from ``seed``; for tests only).
        seed: of random weights.
        precision: how to compute; by default what a CPU gains from.

    Raises:
        ConfigError: an unknown name or stage.
        WeightsError: the weights are not to be had, or belong to another architecture.
    """
    levels = networks.choose_levels(name, stages)
    network, source = build_network(name, [level.stage for level in levels], weights, seed)
    is_random = str(weights) == "random"
    digest = digest_of(network.state_dict())
    entry, tokens = BACKBONES.get(name), len({level.stride for level in networks.offered_levels(name).values()}) == 1
    if entry is not None:
        network, mean, std, dense = fold_batchnorm(network), entry.mean, entry.std, entry.dense
    else:
        mean, std, dense = timm.describe(name, network)
        signs = [True] * len(levels) if tokens else timm.find_signs(name, network)
        levels = tuple(dataclasses.replace(level, signed=signed) for level, signed in zip(levels, signs))
    spec = BackboneSpec(name, levels, digest, source, seed if is_random else None, mean, std, dense, tokens)
    backbone = FrozenBackbone(network, spec, precision)
    backbone.weights = weights
    return backbone


def build_network(name: str, stages: Sequence[int], weights: str | Path, seed: int) -> tuple[nn.Module, str]:
    """A network of ascending ``stages`` with its values, as they were trained, and where they come from."""
    if str(weights) == "random":
        return networks.random_network(name, stages, seed), f"random, seed {seed}"
    network = blank_network(name, stages)
    tensors, source = find_weights(name, weights)
    network.load_state_dict(select_tensors(tensors, network.state_dict(), name, source), assign=True)
    return network, source


def rebuild(
    spec: Mapping[str, Any], state: Mapping[str, Tensor] | None = None, weights: str | Path | None = None
) -> FrozenBackbone | NoBackbone:
    """The backbone whose ``spec`` came from ``FrozenBackbone.spec``, possibly by way of JSON or of an earlier version.

    With ``state``, from ``FrozenBackbone.state_dict``, nothing is looked for, and its tensors are used, not copied.
    Without, ``weights`` says where to find the weights again; by default where they came from, on this machine alone.

    Raises:
        ModelFileError: ``spec`` or ``state`` is incomplete, or they do not belong together.
        WeightsError: the weights are not to be had, or are not those that ``spec`` names.
    """
    if spec.get("name") == NoBackbone.name:
        return NoBackbone()
    try:
        saved = TypeAdapter(BackboneSpec).validate_python(dict(spec))
        stages = [level.stage for level in saved.levels]
        described, offered = (
            [(level.channels, level.stride) for level in levels]
            for levels in (saved.levels, networks.choose_levels(saved.name, stages))
        )
        if described != offered:
            raise ValueError(f"channels and strides are {described}, not {offered}")
        if state is not None:
            network = blank_network(saved.name, stages)
            network = fold_batchnorm(network) if saved.name in BACKBONES else network
            tensors = {key.removeprefix("network."): tensor for key, tensor in state.items()}
            network.load_state_dict(tensors, assign=True)
            return FrozenBackbone(network, saved)
        if weights is None and saved.seed is not None:
            blank = blank_network(saved.name, stages).state_dict()
            if (numbers := sum(tensor.numel() for tensor in blank.values())) > MOST_DRAWN:
                raise ValueError(f"it asks for {numbers:,} random numbers")
    except (ConfigError, LookupError, RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"the model file's backbone, {spec.get('name')}, is not what this version knows "
            f"({' '.join(str(error).split())[:200]}): fit the model again, or load it with the version that wrote it"
        ) from error
    weights = weights or ("local" if saved.seed is None else "random")
    built = build_backbone(saved.name, stages, weights, saved.seed or 0)
    if built.digest != saved.digest:
        raise WeightsError(
            f"the model was made with {saved.name} weights from {saved.source} (SHA-256 {saved.digest[:12]}...), "
            f"but {built.source} gives {built.digest[:12]}...: give the same file with --weights FILE, "
            "or ask for a model file that holds its backbone"
        )
    return built


class Student(nn.Module):
    """A teacher's own architecture once more, trainable and untaught: call ``reset``, or load values.

    It takes ``b 3 h w`` images in [0, 1] and gives maps ``b c y x`` of its teacher's shapes, shallowest first. A frozen
    backbone cannot serve: its BatchNorm is folded into its convolutions, and its features are rounded.
    """

    def __init__(self, teacher: Backbone) -> None:
        super().__init__()
        self._architecture: tuple[str, list[int]] | None = None
        self.normalise: nn.Module = nn.Identity()
        self.tokens = False
        if isinstance(teacher, FrozenBackbone):
            self._architecture = teacher.name, [level.stage for level in teacher.levels]
            self.normalise, self.tokens = copy.deepcopy(teacher.normalise), teacher.tokens
            network = blank_network(*self._architecture)
            values = {key: torch.zeros_like(like, device="cpu") for key, like in network.state_dict().items()}
            network.load_state_dict(values, assign=True)
        else:  # not ours: a copy, which takes images in [0, 1] itself
            network = copy.deepcopy(teacher)
        self.network = network.to(memory_format=torch.channels_last).requires_grad_(True)

    def reset(self, seed: int) -> None:
        """Random values fixed by ``seed``, by the architecture's own rule; BatchNorm starts at 1, as torch's."""
        with torch_seeded(seed):
            fresh = self.network if self._architecture is None else networks.random_network(*self._architecture, seed)
            drawn = (nn.BatchNorm2d,) if self._architecture else (nn.BatchNorm2d, nn.Conv2d, nn.Linear)
            for module in fresh.modules():
                if isinstance(module, drawn):
                    module.reset_parameters()
            self.network.load_state_dict(fresh.state_dict())

    def copy_values(self, teacher: Backbone) -> None:
        """Begin as the teacher is: its trained values, which are looked for again where BatchNorm was multiplied in."""
        values = getattr(teacher, "network", teacher).state_dict()
        if isinstance(teacher, FrozenBackbone) and values.keys() != self.network.state_dict().keys():
            name, seed = teacher.name, teacher.spec()["seed"]
            fresh = build_network(name, [level.stage for level in teacher.levels], teacher.weights, seed or 0)
            values = fresh[0].state_dict()
        self.network.load_state_dict(values)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network(self.normalise(images).contiguous(memory_format=torch.channels_last))
        return normalise_cells(maps) if self.tokens else maps


def build_student(teacher: Backbone, size: tuple[int, int]) -> Student:
    """A student for images of height and width ``size``, or a ConfigError where the deepest level has a single cell."""
    check_cells(size, teacher.levels[-1].stride, f"stage {teacher.levels[-1].stage}")  # BatchNorm would leave nothing
    return Student(teacher)
