"""DMAD: reverse distillation of an image that is pulled straight first; how far it had to be pulled counts, too.

Idea: good parts differ in shape, and a student that gives all of it back gives defects back as well. Here a network
displaces the image's pixels, by a coarse and then a fine field, before the teacher sees it, so that the student need
know one shape alone; two more fields lead back. The student's code is narrow: a few channels of each level and, for
the deepest features, the nearest of some learned vectors.
Loss: reverse distillation's, of which student and fields learn; the memory's; the fields' length and roughness; the
squared error of an image displaced there and back.
Score: 1 - cosine of teacher and student, upsampled, summed over levels, displaced back, plus a share of the length of
the fields that lead back, both smoothed; an image's is the highest value of each. The released code scales by the test
set and reports the better of with and without the length; ours scales by the training images and always counts it.
Other backbones than ResNets are our reading. All differences: docs/methods/dmad.md.

Liu, Chang, Ma, Shan, Chen: Diversity-Measurable Anomaly Detection, CVPR 2023.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.linalg import vector_norm  # without gradient where it is 0

from blemish.backbones.catalogue import IMAGENET_MEAN, IMAGENET_STD
from blemish.backbones.networks import Normalise
from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages, check_cells, in_batches
from blemish.ops.config import Count, Rate, StudentConfig, Weight
from blemish.ops.cosine import anomaly_map, layer_loss, map_score
from blemish.ops.residual import convolutions, initialise, initialise_uniform, join_levels, residual_stage, untrained
from blemish.ops.reverse import Bottleneck, Decoder, DecoderSpec, decoder_spec
from blemish.ops.smoothing import upscale
from blemish.run import Run, epochs

WIDTH = 64  # channels of the network that displaces
PERIOD = 4  # pixels a side of the cells by which it is told where a pixel lies
COARSE, FINE = (3, 2 * 8 / 256), (1, 2 * 3 / 256)  # how often a field's grid is halved, and its reach; a side is 2
NARROW = 16  # channels of a level in the code; of ResNets with bottleneck blocks four times as many
COMMITMENT = 0.25  # weight of what draws features to the memory, beside what draws the memory to features


@dataclass(frozen=True)
class DMADConfig(StudentConfig):
    """The released training of the models that give image scores."""

    epochs: Annotated[Count, Field(description="passes over the images, where steps does not say")] = 400
    batch_size: Annotated[Count, Field(description="images a step")] = 8
    learning_rate: Annotated[Rate, Field(description="AdamW's, at first: half a cosine takes it to 0")] = 0.005
    memory: Annotated[int, Field(ge=0, le=10_000, description="vectors for the deepest features, or 0 for none")] = 200
    gamma: Annotated[Weight, Field(description="of the error of images displaced there and back")] = 1.0
    displaced: Annotated[Weight, Field(description="of the displacements, scaled, in map and score")] = 0.05
    normalise: Annotated[
        Literal["training", "test"], Field(description="what scales displacements; test: as released, for the bench")
    ] = "training"


class Displacements(nn.Module):
    """Four fields ``b 2 h w`` of normalised images, coarse and fine there and back: right, down; half a side is 1."""

    def __init__(self) -> None:
        super().__init__()
        relu, self.reaches = nn.ReLU(True), (COARSE, FINE, COARSE, FINE)
        self.seen = nn.ModuleList(convolutions([ins + 4, WIDTH], ["same"], "batch", relu) for ins in (3, WIDTH))
        self.branch = convolutions([WIDTH, WIDTH], ["same"], "batch", relu).append(nn.Conv2d(WIDTH, WIDTH, 1))
        self.norm, self.heads = nn.BatchNorm2d(WIDTH), nn.ModuleList()
        for halvings, _ in self.reaches:
            widths = [2 * WIDTH, *[WIDTH] * halvings]
            path = convolutions(widths, ["down" for _ in range(halvings)], "batch", relu)
            self.heads.append(path.append(nn.Conv2d(WIDTH, 2, 3, padding=1)))

    def forward(self, images: Tensor) -> list[Tensor]:
        size, seen = (images.shape[-2], images.shape[-1]), images
        places = coordinates(size).to(images).expand(images.shape[0], -1, -1, -1)
        for layer in self.seen:
            seen = layer(torch.cat([seen, places], dim=1))
        seen = torch.cat([self.norm(seen + self.branch(seen)), seen], dim=1)
        found = [head(seen) for head in self.heads]
        with torch.autocast(images.device.type, enabled=False):
            fields = [reach * field.float().tanh() for field, (_, reach) in zip(found, self.reaches)]
            return [torch.stack([upscale(way, size, 0, True) for way in field.unbind(1)], 1) for field in fields]


class RecallingStudent(nn.Module):
    """Reverse distillation's student, whose code is narrow and has a memory of ``count`` vectors, unless that is 0."""

    def __init__(self, spec: DecoderSpec, count: int) -> None:
        super().__init__()
        plain, deepest, narrow = Bottleneck(spec), spec.levels[-1].channels, NARROW * (4 if spec.kind.bottleneck else 1)
        self.paths, self.stage, self.decoder = plain.paths, plain.stage, Decoder(spec)
        self.memory = nn.Parameter(torch.empty(count, deepest)) if count else None
        if count:
            self.paths = nn.ModuleList()
            for start, level in enumerate(spec.levels, start=1):
                widths = [level.channels, narrow, *[narrow] * len(spec.steps[start:])]
                self.paths.append(convolutions(widths, ["same", *spec.steps[start:]], "batch", nn.ReLU(True)))
            joined = deepest + narrow * len(spec.levels)
            self.stage = residual_stage(joined, 2 * spec.widths[-1], spec.deep_blocks, spec.kind, "down")

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Feature maps, shallowest first, to as many of the same shapes, and the memory's loss."""
        joined, loss = join_levels(self.paths, features), features[0].new_zeros(())
        if self.memory is not None:
            recalled, loss = recall(features[-1], self.memory)
            joined = torch.cat([joined, recalled], dim=1)
        return self.decoder(self.stage(joined), [(map_.shape[-2], map_.shape[-1]) for map_ in features]), loss


class DMAD(Method):
    """``fields`` displaces, ``student`` gives back; ``ratios``, of maps and of scores, scale displacements."""

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
        if (vectors := self.student.memory) is not None:
            drawn = torch.empty(vectors.shape).uniform_(-1, 1, generator=run.generator("memory"))
            vectors.data.copy_(drawn / len(vectors))
        networks = nn.ModuleList([self.fields, self.student])
        optimiser = torch.optim.AdamW(networks.parameters(), config.learning_rate, config.betas, fused=True)
        for epoch in epochs(run, "dmad", {"networks": networks, "optimiser": optimiser}, config, len(images)):
            networks.train()
            done = math.pi * (epoch.number - 1) / epoch.of
            optimiser.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(done)) / 2
            for indices in epoch.batches():
                batch = images.batch(indices).images.to(run.device)
                *there, coarse, fine = self._fields(batch)
                straight = displaced(batch, there)
                features = self.backbone(straight)  # with a gradient, unlike the teacher's
                with run.precision.autocast(run.device):
                    student, recalled = self.student(features)
                back, given = self.normalised(displaced(straight, [fine, coarse])), self.normalised(batch)
                far = [vector_norm(f, dim=1).mean() for f in there] + [roughness(f) for f in (*there, coarse, fine)]
                moved = torch.stack(far).sum() + config.gamma * F.mse_loss(back, given)
                rebuilt = layer_loss(features, student)
                loss = rebuilt + moved + recalled
                epoch.descend(loss, optimiser, loss=loss, rebuilt=rebuilt, moved=moved, recalled=recalled)

    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        if self.config.normalise == "training":
            self.ratios.copy_(self._ratios(training.normal)[0])  # of few images, scores may have hardly a range

    def see_test(self, images: Images) -> None:
        """The released scales: the ranges of all places of the test images, and of their scores."""
        self.ratios.copy_(self._ratios(images))

    def predict(self, images: Tensor) -> Prediction:
        apart, moved = self._maps(images)
        highest, farthest = (map_score(map_, self.config.score) for map_ in (apart, moved))
        of_map, of_score = self.config.displaced * self.ratios
        return Prediction(apart + of_map * moved, highest + of_score * farthest)

    def _fields(self, images: Tensor) -> list[Tensor]:
        with self.autocast(images):
            return self.fields(self.normalised(images))  # type: ignore[no-any-return]

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``b h w`` each: how far teacher and student are apart, and how long the fields are that lead back."""
        *there, coarse, fine = self._fields(images)
        features = self.backbone(displaced(images, there))
        with self.autocast(images):
            student, _ = self.student(features)
        size = images.shape[-2:]
        apart = displaced(anomaly_map(features, student, size, 0.0)[:, None], [fine, coarse])[:, 0]
        moved = displaced(vector_norm(fine, dim=1)[:, None], [coarse])[:, 0] + vector_norm(coarse, dim=1)
        return upscale(apart, size, self.config.sigma, True), upscale(moved, size, self.config.sigma, True)

    @torch.no_grad()
    def _ratios(self, images: Images) -> Tensor:
        """The range of how far teacher and student are apart over displacements': of all places, and of scores."""
        seen = []
        for batch in in_batches(images, self.config.batch_size):
            maps = self._maps(batch.images.to(self.ratios.device))
            kinds = [maps, [map_score(map_, self.config.score) for map_ in maps]]
            seen.append(torch.stack([torch.stack([*kind[0].aminmax(), *kind[1].aminmax()]) for kind in kinds]))
        lowest, highest = torch.stack(seen).amin(dim=0), torch.stack(seen).amax(dim=0)
        apart, moved = highest[:, 1] - lowest[:, 0], highest[:, 3] - lowest[:, 2]
        return torch.where(moved > 1e-6, apart / moved, 0.0)  # displacements all alike do not count


def recall(features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """``b c y x``, each feature the nearest vector of ``memory`` ``n c`` but with the feature's gradient; its loss."""
    with torch.autocast(features.device.type, enabled=False):
        cells = features.float().movedim(1, -1)
        nearest = (memory.square().sum(dim=1) - 2 * cells @ memory.T).argmin(dim=-1)
        chosen = F.embedding(nearest, memory)
        loss = COMMITMENT * F.mse_loss(cells, chosen.detach()) + F.mse_loss(chosen, cells.detach())
        return (cells + (chosen - cells).detach()).movedim(-1, 1), loss


def coordinates(size: tuple[int, int]) -> Tensor:
    """``4 h w``: along rows, then columns, where a pixel is in its cell and where that is; what is first is -1."""
    lines = list[Tensor]()
    for side, shape in zip(size, ((-1, 1), (1, -1))):
        pixels = torch.arange(side)
        cells = (pixels // PERIOD) / max((side - 1) // PERIOD, 1)
        lines += [(2 * line - 1).view(shape).expand(size) for line in (pixels / max(side - 1, 1) - cells, cells)]
    return torch.stack(lines)


def displaced(maps: Tensor, fields: Sequence[Tensor]) -> Tensor:
    """``b c h w``: what lies in ``maps`` where the fields ``b 2 h w`` say to look, one after the other; not beyond."""
    rows, columns = (torch.linspace(-1, 1, side, device=maps.device) for side in maps.shape[-2:])
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
    for field in fields:
        maps = F.grid_sample(maps, (places + field).clamp(-1, 1).movedim(1, -1), align_corners=True)
    return maps


def roughness(field: Tensor) -> Tensor:
    """How far right plus down, summed as released, is from its eight neighbours' mean; beyond the border lie zeros."""
    summed = field.sum(dim=1, keepdim=True)
    return 9 / 8 * (summed - F.avg_pool2d(summed, 3, 1, 1)).abs().mean()
