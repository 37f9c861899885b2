"""Deep SAD: good images are drawn to one point, known-bad ones are pushed away from it.

Idea: a small network maps every image to a vector. The centre is fixed before learning; good images are to lie close to
it, and the few known-bad ones far away. Nothing in the network can learn a constant (it has no bias), or it could map
everything onto the centre.

Signal: squared distance from the centre for good images, eta over the squared distance for known-bad ones.

Score: the squared distance. There is no map.

Paper and released code (github.com/lukasruff/Deep-SAD-PyTorch):
- The released networks are small ones for images of 32 pixels, learned from the pixels. The paper on CKAAD compares
  with a Deep SAD for larger images and does not say of which network. Here (our reading) the network reads the frozen
  backbone's features, standardised on the good images: a 1x1 convolution, a residual block, the mean over all places, a
  last 1x1 convolution.
- The released training starts with an auto-encoder whose encoder sets the centre. Pre-trained features stand in for
  that: the centre is the mean of the good images under the network's first values, in batches as while learning.
- Entries of the centre closer to 0 than .1 are set to +-.1, learning rate and its drop by ten after a third of the
  training (epoch 50 of 150), weight decay and eta are as released.

Ruff et al.: Deep Semi-Supervised Anomaly Detection, ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages
from blemish.ops.residual import initialise
from blemish.ops.standardisation import Standardisation
from blemish.run import Run

NUDGE = 0.1
"""Entries of the centre are at least this far from 0, else a network of zeros would be close to it."""

EPSILON = 1e-6
"""Keeps the push finite where a known-bad image lies on the centre."""


@dataclass(frozen=True)
class DeepSADConfig:
    """The released training, on a network of ours.

    Attributes:
        layers: stages whose features are read.
        eta: weight of the known-bad images.
        width: channels inside the network.
        dimensions: of the vector that an image is mapped to.
        epochs: passes over good and known-bad images together.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: images a step.
        learning_rate: Adam's, a tenth of it after a third of the training.
        weight_decay: Adam's.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (2, 3)
    eta: Annotated[float, Field(gt=0)] = 1.0
    width: Annotated[int, Field(ge=1)] = 128
    dimensions: Annotated[int, Field(ge=1)] = 128
    epochs: Annotated[int, Field(ge=1)] = 150
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6


class DeepSAD(Method):
    """Distance from the centre of the good. See the top of this file.

    Attributes:
        head: feature maps to vectors.
        centre: where good images are drawn to.
    """

    Config = DeepSADConfig
    regimes = frozenset({"weak"})
    has_schedule = True
    config: DeepSADConfig
    centre: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DeepSADConfig) -> None:
        """Build the network, untaught."""
        super().__init__(backbone, size, config)
        self.head = Head([level.channels for level in backbone.levels], config.width, config.dimensions)
        self.register_buffer("centre", torch.zeros(config.dimensions))

    @classmethod
    def learns_from_anomalous(cls, config: DeepSADConfig) -> bool:
        """Always."""
        return True

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Draw the good images to the centre and push the known-bad ones away."""
        config = self.config
        self._begin(training.normal, teacher, run)
        optimiser = torch.optim.Adam(
            self.head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        keep = {"head": self.head, "optimiser": optimiser}
        length = run.length(epochs=config.epochs, steps=config.steps)
        count = len(training.normal) + len(training.anomalous)
        for epoch in run.epochs(length, images=count, batch_size=config.batch_size, state=keep, title="deepsad"):
            self.head.train()
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * (1.0 if 3 * (epoch.number - 1) < epoch.of else 0.1)
            for indices in epoch.batches():
                features, is_bad = _mixed(training, teacher, indices)
                distances = self._distances(features)
                loss = deep_sad_loss(distances, is_bad.to(distances.device), config.eta)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                epoch.log(loss=loss.detach())
        self.head.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        return Prediction(None, self._distances(self.backbone(images)))

    @torch.no_grad()
    def _begin(self, normal: Images, teacher: Teacher, run: Run) -> None:
        """First values, the features' scale, and the centre."""
        initialise(self.head, run.generator("head"))
        size = self.config.batch_size
        self.head.scale.learn(teacher(normal.batch(some)) for some in _chunks(len(normal), size))
        self.head.train()
        found = torch.cat([self.head(teacher(normal.batch(some))) for some in _chunks(len(normal), size)])
        centre = found.mean(dim=0)
        away = torch.where(centre < 0, -NUDGE, NUDGE)
        self.centre.copy_(torch.where(centre.abs() < NUDGE, away, centre))

    def _distances(self, features: list[Tensor]) -> Tensor:
        found: Tensor = (self.head(features) - self.centre).square().sum(dim=1)
        return found


def deep_sad_loss(distances: Tensor, is_bad: Tensor, eta: float = 1.0) -> Tensor:
    """The mean over a batch of the squared distance, or of ``eta`` over it.

    Args:
        distances: squared, ``b``.
        is_bad: bool ``b``: which images are known to be bad.
        eta: weight of those.
    """
    return torch.where(is_bad, eta / (distances + EPSILON), distances).mean()


class Head(nn.Module):
    """Feature maps to one vector an image; nothing in it has a bias that could be learned."""

    def __init__(self, channels: Sequence[int], width: int, dimensions: int) -> None:
        super().__init__()
        self.scale = Standardisation(channels)
        self.reduce = nn.Conv2d(sum(channels), width, 1, bias=False)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(3))
        self.embed = nn.Conv2d(width, dimensions, 1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """``b d``, of maps ``b c y x`` whose finer levels are averaged down to the coarsest grid."""
        grid = (features[-1].shape[-2], features[-1].shape[-1])
        joined = torch.cat([F.adaptive_avg_pool2d(map_, grid) for map_ in self.scale(features)], dim=1)
        found = F.leaky_relu(self.norms[0](self.reduce(joined)))
        branch = F.leaky_relu(self.norms[1](self.first(found)))
        found = F.leaky_relu(found + self.norms[2](self.second(branch)))
        vectors: Tensor = self.embed(found.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return vectors


def _mixed(training: TrainingImages, teacher: Teacher, indices: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Features of images counted through, the good ones first, and which of them are bad; the good come first again."""
    count = len(training.normal)
    good, bad = [i for i in indices if i < count], [i - count for i in indices if i >= count]
    sides = ((training.normal, good), (training.anomalous, bad))
    parts = [teacher(images.batch(some)) for images, some in sides if some]
    is_bad = torch.tensor([False] * len(good) + [True] * len(bad))
    return [torch.cat(maps) for maps in zip(*parts, strict=True)], is_bad


def _chunks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))
