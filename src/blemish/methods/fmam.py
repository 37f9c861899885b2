"""FMAM: a mapping on a student's features, in training and in judging, under which the anomaly maps get calmer.

Idea: a student trained to give a frozen teacher's features (reverse distillation, or NKD in the same direction) never
gets normal detail quite right, and what remains shows as noise in the map. A small module on each of the student's
levels maps its features once more towards the teacher's. It learns with the student, by the same loss, from good
images alone, and stays in place when images are judged; the teacher is untouched.

Signal: 1 - cosine of the teacher's features and the student's mapped ones, summed over the levels.

Score: as without it: 1 - cosine at every location, brought to the size of the image, summed over the levels and
smoothed; an image's score is its highest value.

Paper: only a supplement with results could be found, neither the paper's text nor code. It says that the module
attaches to both kinds of student and to ResNet18, 34, 50 and WideResNet50, works with both losses, and mostly moves
image scores. It does not say what the module is. Everything inside it here is OUR READING, with a choice of four:
- ``conv`` (the default): a residual bottleneck of convolutions, 1x1 to a quarter of the channels, 3x3, 1x1 back.
- ``attention``: the same, its branch weighted by channel and then by place.
- ``memory``: every feature vector asks a learned table of prototypes and is joined with their answer, which keeps the
  student to combinations of what good images hold.
- ``bottleneck``: ``conv`` on what the reverse student's bottleneck is given, in place of what it gives back.
All else is reverse distillation's, so that runs with and without compare; one seed starts the student alike in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.student import build_student
from blemish.contract import Backbone, Level, Method, Prediction, Teacher, TrainingImages
from blemish.errors import ConfigError
from blemish.ops.cosine import LOSSES, Loss, anomaly_map
from blemish.ops.norms import precise_batchnorm
from blemish.ops.residual import initialise
from blemish.ops.reverse import ReverseStudent, build_reverse_student
from blemish.run import Run, derive_seed

Internal = Literal["conv", "attention", "memory", "bottleneck"]
MIN_INNER = 16
"""Channels inside a mapping, at least: a quarter of EfficientNet-Lite0's 24 would be 6."""


@dataclass(frozen=True)
class FMAMConfig:
    """Reverse distillation's settings, with the loss that fits the supplement's main tables.

    Attributes:
        base: the student: ``rd`` decodes the teacher's features, ``nkd`` sees the image itself.
        internal: what the mapping is, see the top of this file.
        prototypes: in the table of ``memory``.
        temperature: of the softmax over the prototypes' cosines, for ``memory``.
        layers: stages that are distilled; without a gap for ``base="rd"``.
        loss: one cosine a location (``vector``) or a whole map (``layer``).
        epochs: passes over the good images.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: images a step.
        learning_rate: Adam's.
        betas: Adam's.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    base: Literal["rd", "nkd"] = "rd"
    internal: Internal = "conv"
    prototypes: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.1
    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3)
    loss: Loss = "vector"
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class FMAM(Method):
    """A student whose features are mapped once more. See the top of this file.

    Attributes:
        student: images (``nkd``) or the teacher's feature maps (``rd``) to feature maps like the teacher's.
        mappings: one for each level.
        precision: how both compute; None to choose by the device.
    """

    Config = FMAMConfig
    regimes = frozenset({"clean"})
    config: FMAMConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: FMAMConfig) -> None:
        """Build student and mappings, untaught.

        Raises:
            ConfigError: the levels leave a gap, or the internal needs a bottleneck and the base has none.
        """
        super().__init__(backbone, size, config)
        if config.base == "nkd" and config.internal == "bottleneck":
            raise ConfigError("internal=bottleneck maps what reverse distillation's bottleneck takes in: use base=rd")
        self.student = build_reverse_student(backbone, size) if config.base == "rd" else build_student(backbone, size)
        self.mappings = Mappings(_mapping(level, config) for level in backbone.levels)

    @classmethod
    def gains_from_bf16(cls, backbone: Backbone, config: FMAMConfig) -> bool:
        """Reverse distillation's student always; that of ``nkd`` as its teacher."""
        return config.base == "rd" or backbone.dense

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Teach student and mappings together to give the teacher's features of the normal images."""
        config, loss_of = self.config, LOSSES[self.config.loss]
        self._begin(run)
        learners = self._network()
        optimiser = torch.optim.Adam(learners.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
        length = run.length(epochs=config.epochs, steps=config.steps)
        keep = {"learners": learners, "optimiser": optimiser}
        count, size = len(training.normal), config.batch_size
        for epoch in run.epochs(length, images=count, batch_size=size, state=keep, title="fmam"):
            learners.train()
            for indices in epoch.batches():
                batch = training.normal.batch(indices)
                features = teacher(batch)
                with run.precision.autocast(run.device):
                    mapped = learners(batch.images.to(run.device) if config.base == "nkd" else features)
                loss = loss_of(features, mapped)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                epoch.log(loss=loss.detach())

    def finalize(self) -> None:
        """With ``base="nkd"``, take BatchNorm's statistics anew in one pass over the good images, as NKD does."""
        if self.config.base == "nkd" and self.learning is not None:
            training, run = self.learning
            precise_batchnorm(self._network(), training.normal, self.config.batch_size, run)
        self.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        features = self.backbone(images)
        with self.autocast(images):
            mapped = self._network()(images if self.config.base == "nkd" else features)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        map_ = anomaly_map(features, mapped, size, self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _begin(self, run: Run) -> None:
        """Fresh values, the student's the same as without mappings."""
        if isinstance(self.student, ReverseStudent):
            initialise(self.student, run.generator("student"))
        else:
            self.student.reset(derive_seed(run.seed, "student"))
        initialise(self.mappings, run.generator("mapping"))
        for mapping in self.mappings:
            if isinstance(mapping, MemoryMapping):
                mapping.reset_prototypes(run.generator("prototypes"))

    def _network(self) -> nn.Module:
        """Student and mappings in the order in which features pass through them."""
        order = [self.mappings, self.student] if self.config.internal == "bottleneck" else [self.student, self.mappings]
        return nn.Sequential(*order)


class Mappings(nn.ModuleList):
    """One mapping for each level: feature maps to feature maps of the same shapes."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The mapped features, level by level."""
        return [mapping(map_) for mapping, map_ in zip(self, maps, strict=True)]


def _mapping(level: Level, config: FMAMConfig) -> nn.Module:
    if config.internal == "memory":
        return MemoryMapping(level, config.prototypes, config.temperature)
    return ConvolutionMapping(level, config.internal == "attention").to(memory_format=torch.channels_last)


class ConvolutionMapping(nn.Module):
    """A residual bottleneck of convolutions: ``b c y x`` to the same shape."""

    def __init__(self, level: Level, attends: bool = False) -> None:
        """Build the mapping; with ``attends`` its branch is weighted by channel and then by place."""
        super().__init__()
        outer, inner = level.channels, max(level.channels // 4, MIN_INNER)
        self.branch = nn.Sequential(
            nn.Conv2d(outer, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.attention = Attention(outer) if attends else nn.Identity()
        self.last = nn.Identity() if level.signed else nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """The mapped features, rectified where the teacher's are."""
        return self.last(features + self.attention(self.branch(features)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Weights in [0, 1], first by channel (from what the whole map holds), then by place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, MIN_INNER)
        self.by_channel = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(True), nn.Conv2d(inner, channels, 1))
        self.by_place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        """``features``, weighted."""
        mean, peak = features.mean(dim=(2, 3), keepdim=True), features.amax(dim=(2, 3), keepdim=True)
        features = features * torch.sigmoid(self.by_channel(mean) + self.by_channel(peak))
        seen = torch.cat([features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)], dim=1)
        return features * torch.sigmoid(self.by_place(seen))


class MemoryMapping(nn.Module):
    """Features joined with what a table of learned prototypes answers them: ``b c y x`` to the same shape."""

    def __init__(self, level: Level, prototypes: int, temperature: float) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(prototypes, level.channels))
        self.temperature = temperature
        last = nn.Identity() if level.signed else nn.ReLU(inplace=True)
        joining = nn.Conv2d(2 * level.channels, level.channels, 1, bias=False)
        self.fuse = nn.Sequential(joining, nn.BatchNorm2d(level.channels), last)

    @torch.no_grad()
    def reset_prototypes(self, generator: torch.Generator) -> None:
        """Standard normal prototypes."""
        self.prototypes.copy_(torch.empty(self.prototypes.shape).normal_(generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        """The mapped features, rectified where the teacher's are."""
        with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need float32
            vectors = features.permute(0, 2, 3, 1).float()
            likeness = F.normalize(vectors, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
            answer = (likeness / self.temperature).softmax(dim=-1) @ self.prototypes
        joined = torch.cat([features, answer.permute(0, 3, 1, 2).to(features.dtype)], dim=1)
        return self.fuse(joined)  # type: ignore[no-any-return]
