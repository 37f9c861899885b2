"""FMAM: a mapping on a student's features, in training and in judging, under which the anomaly maps get calmer.

Idea: a student trained to give a frozen teacher's features (reverse distillation, or NKD in the same direction) never
gets normal detail quite right, and what remains shows as noise in the map. A small module on each of the student's
levels maps its features once more towards the teacher's. It learns with the student from good images alone.
Loss: 1 - cosine of the teacher's features and the student's mapped ones, one a location, summed over the levels.
Score: as without it: 1 - cosine at every location, brought to the size of the image, summed over the levels and
smoothed; an image's score is its highest value.

Known only from a supplement with results; neither the paper's text nor code could be found. What is inside the module
is OUR READING, with a choice of four (``internal``), explained in docs/methods/fmam.md.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Level, Method, Prediction, Teacher, TrainingImages
from blemish.errors import ConfigError
from blemish.ops.config import DistillationLoss, Rate, StudentConfig, Width
from blemish.ops.cosine import LOSSES, anomaly_map, map_score
from blemish.ops.norms import precise_batchnorm
from blemish.ops.residual import initialise
from blemish.ops.reverse import ReverseStudent, build_reverse_student
from blemish.run import Run, Step, derive_seed, epochs

MIN_INNER = 16  # channels inside a mapping, at least: a quarter of EfficientNet-Lite0's 24 would be 6


@dataclass(frozen=True)
class FMAMConfig(StudentConfig):
    """Reverse distillation's settings, with the loss that fits the supplement's main tables."""

    base: Annotated[
        Literal["rd", "nkd"],
        Field(description="the student: decodes the teacher's features (rd) or sees images (nkd)"),
    ] = "rd"
    internal: Annotated[
        Literal["conv", "attention", "memory", "bottleneck"],
        Field(
            description="the mapping: a residual bottleneck of convolutions (conv); its branch weighted by channel and "
            "place (attention); joined with a table of prototypes (memory); conv before the student (bottleneck)"
        ),
    ] = "conv"
    prototypes: Annotated[Width, Field(description="in the table of memory")] = 128
    temperature: Annotated[Rate, Field(description="of the softmax over the prototypes' cosines, for memory")] = 0.1
    loss: DistillationLoss = "vector"


class FMAM(Method):
    """A ``student`` as NKD's or RD's, whose features ``mappings`` map once more."""

    Config = FMAMConfig
    config: FMAMConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: FMAMConfig) -> None:
        super().__init__(backbone, size, config)
        if config.base == "nkd" and config.internal == "bottleneck":
            raise ConfigError("internal=bottleneck maps what reverse distillation's bottleneck takes in: use base=rd")
        self.student = build_reverse_student(backbone, size) if config.base == "rd" else build_student(backbone, size)
        self.mappings = Mappings(_mapping(level, config) for level in backbone.levels)

    @classmethod
    def gains_from_bf16(cls, backbone: Backbone, config: FMAMConfig) -> bool:
        return config.base == "rd" or backbone.dense

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, loss_of, images = self.config, LOSSES[self.config.loss], training.normal
        self._initialise(run)
        network = self._network()
        optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
        count = len(self.backbone.levels)

        def loss_at(*seen: Tensor) -> list[Tensor]:
            with run.precision.autocast(run.device):
                mapped = network(seen[count] if config.base == "nkd" else seen)
            return [loss_of(seen[:count], mapped)]

        step = Step(run, [optimiser], loss_at)
        for epoch in epochs(run, "fmam", {"learners": network, "optimiser": optimiser}, config, len(images)):
            network.train()
            for indices in epoch.batches():
                batch = images.batch(indices)
                seen = [batch.images.to(run.device)] if config.base == "nkd" else []
                ((loss,),) = step([*teacher(batch), *seen])
                epoch.log(loss=loss)

    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """With ``base="nkd"``, take BatchNorm's statistics anew in one pass over the good images, as NKD does."""
        if self.config.base == "nkd":
            precise_batchnorm(self._network(), training.normal, self.config.batch_size, run)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            mapped = self._network()(images if self.config.base == "nkd" else features)
        map_ = anomaly_map(features, mapped, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))

    def _initialise(self, run: Run) -> None:
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
        """Student and mappings, in the order in which features pass through them."""
        if self.config.internal == "bottleneck":
            return nn.Sequential(self.mappings, self.student)
        return nn.Sequential(self.student, self.mappings)


class Mappings(nn.ModuleList):
    """One mapping for each level: feature maps to feature maps of the same shapes."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [mapping(map_) for mapping, map_ in zip(self, maps, strict=True)]


def _mapping(level: Level, config: FMAMConfig) -> nn.Module:
    if config.internal == "memory":
        return MemoryMapping(level, config.prototypes, config.temperature)
    return ConvolutionMapping(level, config.internal == "attention").to(memory_format=torch.channels_last)


class ConvolutionMapping(nn.Module):
    """A residual bottleneck of convolutions: ``b c y x`` to the same shape."""

    def __init__(self, level: Level, attends: bool = False) -> None:
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
        return self.last(features + self.attention(self.branch(features)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Weights in [0, 1], first by channel (from what the whole map holds), then by place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, MIN_INNER)
        self.by_channel = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(True), nn.Conv2d(inner, channels, 1))
        self.by_place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
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
        self.prototypes.copy_(torch.empty(self.prototypes.shape).normal_(generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need float32
            vectors = features.permute(0, 2, 3, 1).float()
            likeness = F.normalize(vectors, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
            answer = (likeness / self.temperature).softmax(dim=-1) @ self.prototypes
        joined = torch.cat([features, answer.permute(0, 3, 1, 2).to(features.dtype)], dim=1)
        return self.fuse(joined)  # type: ignore[no-any-return]
