"""DMAD: reverse distillation of an image pulled straight first; how far it had to be pulled counts, too.

Idea: good parts differ in pose and shape, and a student that gives all of that back gives defects back as well. Here a
small network displaces the image's pixels, by a coarse and then by a fine field, before the teacher sees it: the student
need know one shape alone. Two further fields lead back. The student's code is narrow: of the shallow levels a few
channels pass, of the deepest one only the nearest of some learned vectors (``Memory``).
Loss: reverse distillation's, of which both student and fields learn; that of the memory; the fields' length and
roughness, and the squared error of an image displaced there and back.
Score: 1 - cosine of teacher and student at every place, upsampled, summed over levels, displaced back, plus a share of
the length of the fields that lead back, and smoothed; an image's is the highest value, of both apart.
The released code scales both by the test set and reports the better of with and without the length; ours scales by the
training images and always counts it. Differences: docs/methods/dmad.md.

Liu, Chang, Ma, Shan, Chen: Diversity-Measurable Anomaly Detection, CVPR 2023.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.catalogue import IMAGENET_MEAN, IMAGENET_STD
from blemish.backbones.networks import Normalise
from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages, check_cells, in_batches
from blemish.ops.config import Count, Rate, StudentConfig, Weight
from blemish.ops.cosine import anomaly_map, layer_loss, map_score
from blemish.ops.residual import (
    Step,
    convolutions,
    initialise,
    initialise_uniform,
    join_levels,
    residual_stage,
    untrained,
)
from blemish.ops.reverse import Bottleneck, Decoder, DecoderSpec, decoder_spec
from blemish.ops.smoothing import upscale
from blemish.run import Run, epochs

WIDTH = 64  # channels of the network that displaces
PERIOD = 4  # pixels; where a pixel lies is told as the cell of so many a side, and where in that
COARSE, FINE = (3, 2 * 8 / 256), (1, 2 * 3 / 256)  # how often a field's grid is halved; its reach, a side being 2
NARROW = 16  # channels that a shallow level keeps, in multiples of what a block gives for each of its own
COMMITMENT = 0.25  # weight of what draws features to the memory, beside what draws it to them


@dataclass(frozen=True)
class DMADConfig(StudentConfig):
    """The released training, for image scores."""

    epochs: Annotated[Count, Field(description="passes over the images, where steps does not say")] = 400
    batch_size: Annotated[Count, Field(description="images a step")] = 8
    learning_rate: Annotated[Rate, Field(description="AdamW's, at first; half a cosine takes it to 0")] = 0.005
    betas: Annotated[tuple[float, float], Field(description="AdamW's")] = (0.5, 0.999)
    memory: Annotated[
        int,
        Field(ge=0, le=10_000, description="vectors that stand for the deepest features; 0: none, as for pixel figures"),
    ] = 200
    gamma: Annotated[Weight, Field(description="of the error of images displaced there and back")] = 1.0
    displaced: Annotated[
        Weight, Field(description="of displacements in the score; released: .2 for parts that vary in shape")
    ] = 0.05
    normalise: Annotated[
        Literal["training", "test"],
        Field(description="images that bring both to one scale; test: as released, which only blemish bench has"),
    ] = "training"


class Displacements(nn.Module):
    """Four fields ``b 2 h w`` of normalised images ``b 3 h w``: coarse and fine there, coarse and fine back.

    They say how far to the right and down to look for a pixel's new value, half a side being 1.
    """

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU(True)
        self.seen = nn.ModuleList(convolutions([ins + 4, WIDTH], ["same"], "batch", relu) for ins in (3, WIDTH))
        self.branch = convolutions([WIDTH, WIDTH], ["same"], "batch", relu).append(nn.Conv2d(WIDTH, WIDTH, 1))
        self.norm, self.heads = nn.BatchNorm2d(WIDTH), nn.ModuleList()
        for halvings, _ in (COARSE, FINE, COARSE, FINE):
            steps: list[Step] = ["down"] * halvings
            path = convolutions([2 * WIDTH, *[WIDTH] * halvings], steps, "batch", relu)
            self.heads.append(path.append(nn.Conv2d(WIDTH, 2, 3, padding=1)))

    def forward(self, images: Tensor) -> list[Tensor]:
        size, seen = (images.shape[-2], images.shape[-1]), images
        places = coordinates(size).to(images).expand(images.shape[0], -1, -1, -1)
        for layer in self.seen:
            seen = layer(torch.cat([seen, places], dim=1))
        seen = torch.cat([self.norm(seen + self.branch(seen)), seen], dim=1)
        found = [head(seen) for head in self.heads]
        with torch.autocast(images.device.type, enabled=False):
            reached = [reach * field.float().tanh() for field, (_, reach) in zip(found, (COARSE, FINE, COARSE, FINE))]
            return [upscale(f.flatten(0, 1), size, 0.0, align_corners=True).unflatten(0, (-1, 2)) for f in reached]


class Memory(nn.Module):
    """``count`` vectors of as many numbers as a feature has: each feature becomes the nearest of them."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(count, channels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``b c y x`` by the memory, with the features' own gradient, and the loss."""
        with torch.autocast(features.device.type, enabled=False):
            cells = features.float().movedim(1, -1)
            nearest = (self.vectors.square().sum(dim=1) - 2 * cells @ self.vectors.T).argmin(dim=-1)
            chosen = F.embedding(nearest, self.vectors)
            loss = COMMITMENT * F.mse_loss(chosen.detach(), cells) + F.mse_loss(chosen, cells.detach())
            return (cells + (chosen - cells).detach()).movedim(-1, 1), loss


class RecallingBottleneck(nn.Module):
    """Reverse distillation's, but every level keeps few channels, and the deepest one is there by the memory, too."""

    def __init__(self, spec: DecoderSpec, count: int) -> None:
        super().__init__()
        deepest, narrow = spec.levels[-1].channels, NARROW * (spec.kind.squeeze if spec.kind.bottleneck else 1)
        self.memory, self.paths = Memory(count, deepest), nn.ModuleList()
        for start, level in enumerate(spec.levels):
            steps: list[Step] = ["same", *spec.steps[start + 1 :]]
            self.paths.append(convolutions([level.channels, *[narrow] * len(steps)], steps, "batch", nn.ReLU(True)))
        joined = narrow * len(spec.levels) + deepest
        self.stage = residual_stage(joined, 2 * spec.widths[-1], spec.deep_blocks, spec.kind, "down")

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        recalled, loss = self.memory(features[-1])
        return self.stage(torch.cat([join_levels(self.paths, features), recalled], dim=1)), loss


class RecallingStudent(nn.Module):
    """Reverse distillation's student with a memory of ``count`` vectors, or none."""

    def __init__(self, spec: DecoderSpec, count: int) -> None:
        super().__init__()
        self.bottleneck = RecallingBottleneck(spec, count) if count else Bottleneck(spec)
        self.decoder = Decoder(spec)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Feature maps, shallowest first, to as many of the same shapes, and the memory's loss."""
        found = self.bottleneck(features)
        code, loss = found if isinstance(found, tuple) else (found, features[0].new_zeros(()))
        return self.decoder(code, [(map_.shape[-2], map_.shape[-1]) for map_ in features]), loss


class DMAD(Method):
    """``fields`` displaces, ``student`` gives back; ``ratios``, of maps and of scores, bring both to one scale."""

    Config = DMADConfig
    has_schedule = True
    config: DMADConfig
    ratios: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DMADConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
        self.normalised = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.fields = untrained(Displacements)
        self.student = untrained(lambda: RecallingStudent(decoder_spec(backbone), config.memory))
        self.register_buffer("ratios", torch.zeros(2))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        initialise(self.student, run.generator("student"))
        initialise_uniform(self.fields, run.generator("fields"))
        if config.memory:
            vectors, within = self.student.bottleneck.memory.vectors, 1 / config.memory  # type: ignore[union-attr]
            vectors.data.copy_(torch.empty(vectors.shape).uniform_(-within, within, generator=run.generator("memory")))
        networks = nn.ModuleList([self.fields, self.student])
        optimiser = torch.optim.AdamW(networks.parameters(), config.learning_rate, config.betas, fused=True)
        for epoch in epochs(run, "dmad", {"networks": networks, "optimiser": optimiser}, config, len(images)):
            networks.train()
            done = (epoch.number - 1) / epoch.of
            optimiser.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * done)) / 2
            for indices in epoch.batches():
                batch = images.batch(indices).images.to(run.device)
                *there, coarse, fine = self._fields(batch)
                features = self.backbone(straight := displaced(batch, there))
                with run.precision.autocast(run.device):
                    student, recalled = self.student(features)
                given, back = (self.normalised(x) for x in (batch, displaced(straight, [fine, coarse])))
                moved = torch.stack([field.norm(dim=1).mean() for field in there]).sum()
                rough = torch.stack([roughness(field) for field in (*there, coarse, fine)]).sum()
                moved = moved + rough + config.gamma * F.mse_loss(back, given)
                rebuilt = layer_loss(features, student)
                loss = rebuilt + moved + recalled
                epoch.descend(loss, optimiser, loss=loss, rebuilt=rebuilt, displaced=moved, memory=recalled)

    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        if self.config.normalise == "training":
            self.see_test(training.normal)

    @torch.no_grad()
    def see_test(self, images: Images) -> None:
        """Take the ratios of ranges: of all places of the images, and of their scores."""
        extremes = []
        for batch in in_batches(images, self.config.batch_size):
            maps = torch.stack(self._maps(batch.images.to(self.ratios.device)))
            scores = torch.stack([map_score(map_, self.config.score) for map_ in maps])
            extremes.append(torch.stack([maps.flatten(1).aminmax(dim=1), scores.aminmax(dim=1)]))
        ...

    def predict(self, images: Tensor) -> Prediction:
        ...
