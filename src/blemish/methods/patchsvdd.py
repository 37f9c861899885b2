"""PatchSVDD: an encoder of patches learns where they lie to each other; a patch unlike all remembered ones is bad.

Idea: patches of 64 and of 32 pixels are encoded, the large ones from the codes of their quarters. From two codes a
classifier tells in which of eight directions one patch lies from the other, and patches that almost coincide are to
have almost one code: without the first all codes would be one, without the second they would not be compact.
Loss: cross-entropy of the directions, and the distance of the codes of patches a step apart, at both sizes.
Score: the distance of each patch's code from the nearest one remembered; a pixel has the mean over the patches that
cover it, and the map is the product of the two sizes'. An image's score is its highest value.
The paper remembers every patch of every good image; here a random share (``memory``). Layers as far as known; the
colours of patches are not shifted. All differences: docs/methods/patchsvdd.md.

Yi and Yoon: Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV 2020.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.errors import ConfigError
from blemish.ops.config import Count, Rate, Steps, Weight
from blemish.ops.neighbours import Neighbours
from blemish.ops.passes import batches
from blemish.ops.residual import initialise, initialise_uniform, untrained
from blemish.run import Run, epochs

SCALES = ((32, 4), (64, 16))  # sides of patches in pixels, and the strides at which an image is cut into them
DIMENSIONS, PAIRS = 64, 8  # numbers in a code; pairs of patches of each image of a step, so that fewer are decoded
DIRECTIONS = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])


@dataclass(frozen=True)
class PatchSVDDConfig:
    """The released training, whose weight of the distance is chosen for each category in the paper."""

    first_width: Annotated[int, Field(ge=1, le=128, description="channels of the encoder; four times at most")] = 32
    svdd_weight: Annotated[Weight, Field(description="lambda, of the distance beside the directions")] = 1.0
    memory: Annotated[Count | None, Field(description="patches remembered of each size, at random; null: all")] = 20_000
    repeats: Annotated[Count, Field(description="pairs of patches of each image and epoch")] = 100
    epochs: Annotated[Count, Field(description="passes over the images, with as many pairs as repeats says")] = 300
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="pairs of patches a step")] = 64
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 1e-4


class PatchSVDD(Method):
    """``mean`` of the good images, ``encoder``, and what of it is remembered, for the small patches and the large."""

    Config = PatchSVDDConfig
    bf16 = "never"  # codes are compared
    on_pixels = True
    config: PatchSVDDConfig
    mean: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: PatchSVDDConfig) -> None:
        super().__init__(backbone, size, config)
        if min(size) < 64:
            given = f"{size[0]} x {size[1]}"
            raise ConfigError(f"patchsvdd cuts patches of 64 pixels and images are {given}: give a larger --size")
        self.register_buffer("mean", torch.zeros(3, *size))
        self.encoder = untrained(lambda: Encoder(config.first_width))
        self.memories = nn.ModuleList(Neighbours(torch.empty(0, DIMENSIONS)) for _ in SCALES)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        heads = [_classifier().to(run.device) for _ in SCALES]
        classifiers = nn.ModuleList(heads)
        network, draws = nn.ModuleList([self.encoder, classifiers]), run.generator("network")
        initialise_uniform(classifiers, draws)
        for weight in (head[-1].get_parameter("weight") for head in heads):  # released: of length 1, never learned
            weight.requires_grad_(False).copy_(F.normalize(weight, dim=0))
        initialise(self.encoder, draws)
        sums = torch.stack([batch.images.double().sum(dim=0) for batch in batches(images, run, "averaging images")])
        self.mean.copy_(sums.sum(dim=0) / len(images))
        optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
        steps = math.ceil(len(images) * config.repeats / config.batch_size)
        for epoch in epochs(run, "patchsvdd", {"network": network, "optimiser": optimiser}, config, epoch_steps=steps):
            chosen = epoch.cycle(len(images), math.ceil(config.batch_size / PAIRS), "order of images")
            draws = epoch.generator("patches")
            for _ in epoch.steps():
                seen, losses = images.batch(next(chosen)).images.to(run.device) - self.mean, []
                for (side, _), classifier in zip(SCALES, classifiers):
                    *patches, kinds = self._pairs(seen, side, draws)
                    first, second, near, nearer = self.encoder(torch.cat(patches)).chunk(4)
                    told = F.cross_entropy(classifier(first - second), kinds.to(run.device))
                    losses += [told, config.svdd_weight * torch.linalg.vector_norm(near - nearer, dim=1).mean()]
                loss = torch.stack(losses).sum()
                epoch.descend(loss, optimiser, loss=loss)

    @torch.no_grad()
    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """Remember patches of good images."""
        images, most, draws = training.normal, self.config.memory, run.generator("memory")
        kept: list[list[Tensor]] = [[] for _ in SCALES]
        for batch in batches(images, run, "remembering patches"):
            for codes, own in zip(self.encoder.dense(batch.images.to(run.device) - self.mean), kept):
                vectors = codes.flatten(2).movedim(1, 2)
                count = vectors.shape[1] if most is None else math.ceil(most / len(images))
                own += [one[torch.randperm(len(one), generator=draws)[:count].to(one.device)] for one in vectors]
        self.memories = nn.ModuleList(Neighbours(torch.cat(own)[:most]) for own in kept).to(run.device)

    def predict(self, images: Tensor) -> Prediction:
        map_ = torch.ones_like(images[:, 0])
        for (side, stride), codes, memory in zip(SCALES, self.encoder.dense(images - self.mean), self.memories):
            distances, _ = memory(codes.movedim(1, -1).flatten(0, 2))
            map_ = map_ * covered(distances.sqrt().view_as(codes[:, 0]), side, stride, images.shape[-2:])
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _pairs(self, images: Tensor, side: int, draws: torch.Generator) -> Iterator[Tensor]:
        """Patches ``n 3 side side``: two of one image apart, two that almost coincide; the directions of the former."""
        count, room = self.config.batch_size, torch.tensor(images.shape[-2:]) - side
        kinds = torch.randint(8, (count,), generator=draws)
        apart = DIRECTIONS[kinds] * (3 * side // 4 + torch.randint(side // 4, (count, 2), generator=draws))
        near = torch.randint(-side // 32, side // 32 + 1, (count, 2), generator=draws)
        for offset in (apart, near):
            corner = (torch.rand(count, 2, generator=draws, dtype=torch.float64) * (room + 1)).long()
            for corners in (corner, (corner + offset).clamp_min(0).minimum(room)):
                cut = zip(cycle(images), corners.tolist())
                yield torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in cut])
        yield kinds


class Encoder(nn.Module):
    """Patches to codes of 64 numbers in [-1, 1]; whole images to the codes of their patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.small = nn.Sequential()
        widths = [3, width, 2 * width, 4 * width, 4 * width, 2 * width, width, width, DIMENSIONS]
        for i, (ins, outs) in enumerate(pairwise(widths)):
            self.small.extend([nn.Conv2d(ins, outs, 3, 1 if i else 2), nn.LeakyReLU(0.1) if i < 7 else nn.Tanh()])
        self.join = nn.Conv2d(DIMENSIONS, 2 * DIMENSIONS, 2)
        self.last = nn.Conv2d(2 * DIMENSIONS, DIMENSIONS, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """``b 64``, of ``b 3 side side``."""
        if patches.shape[-1] == 32:
            codes: Tensor = self.small(patches).flatten(1)
            return codes
        quarters = patches.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5)
        small = self(quarters.flatten(0, 2)).unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 2)
        return self._joined(small, 1).flatten(1)

    def dense(self, images: Tensor) -> list[Tensor]:
        """``b 64 y x`` for each of ``SCALES``: as if each patch were cut out."""
        small = self.small(images)  # one for every second pixel
        large = self._joined(small, 16)
        return [codes[:, :, :: stride // 2, :: stride // 2] for codes, (_, stride) in zip((small, large), SCALES)]

    def _joined(self, small: Tensor, apart: int) -> Tensor:
        joined = F.conv2d(small, self.join.weight, self.join.bias, dilation=apart)
        codes: Tensor = self.last(F.leaky_relu(joined, 0.1)).tanh()
        return codes


def _classifier() -> nn.Sequential:
    slope = nn.LeakyReLU(0.1)
    return nn.Sequential(nn.Linear(DIMENSIONS, 128), slope, nn.Linear(128, 128), slope, nn.Linear(128, 8))


def covered(scores: Tensor, side: int, stride: int, size: torch.Size) -> Tensor:
    """``b h w``: for each pixel the mean score of the patches that cover it, or the nearest such pixel's; ``b y x``."""
    kernel = torch.ones(1, 1, side, side, device=scores.device)
    summed, counted = (
        F.conv_transpose2d(maps, kernel, stride=stride) for maps in (scores[:, None], torch.ones_like(scores[:1, None]))
    )
    rest = [given - found for given, found in zip(size, summed.shape[-2:])]
    return F.pad(summed / counted, (0, rest[1], 0, rest[0]), mode="replicate")[:, 0]
