"""PReNet: learns from pairs of images how many of the two are bad.

Idea: a few known-bad images make many pairs. A small network maps each of two images to some numbers and reads off both
how bad the pair is: 0 for two good ones, 4 for a bad and a good one, 8 for two bad ones.
Loss: the absolute error, over as many pairs of good images as of the other two kinds together.
Score: the mean of what the network says of the image behind known-bad ones and before good ones. There is no map.
The paper's network is for tables: one layer, then a linear reading of both its outputs side by side. With a linear
reading the images to compare with only move all scores alike, which is so in the released code
(github.com/mala-lab/PReNet), too. Ours reads the mean and the highest value of every channel of the frozen backbone's
features, standardised on good images (our reading). All differences: docs/methods/prenet.md.

Pang, Shen, Jin, van den Hengel: Deep Weakly-supervised Anomaly Detection, KDD 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Layers, Rate, Steps, Width
from blemish.ops.norms import Standardisation
from blemish.ops.passes import batches
from blemish.ops.residual import initialise_uniform
from blemish.run import Run, epochs

EPOCH_STEPS = 20  # that the released code calls an epoch
WEIGHT_DECAY, CLIP = 0.02, 1.0  # of the first layer's weights, and the largest norm of the gradient
STEP = 4.0  # by how much a pair's target grows with each bad image


@dataclass(frozen=True)
class PReNetConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages whose channels are read")] = (2, 3)
    hidden: Annotated[Width, Field(description="numbers that an image is mapped to")] = 20
    references: Annotated[Count, Field(description="good and known-bad images that an image is compared with")] = 30
    epochs: Annotated[Count, Field(description="of 20 steps each")] = 50
    steps: Steps = None
    batch_size: Annotated[int, Field(ge=4, description="pairs a step")] = 512
    learning_rate: Annotated[Rate, Field(description="RMSprop's")] = 1e-3


class PReNet(Method):
    """``embed`` maps an image's vector, ``read`` two such side by side; what images are compared with is kept."""

    Config = PReNetConfig
    regimes = frozenset({"weak"})
    bf16 = "never"
    config: PReNetConfig
    good: Tensor
    bad: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: PReNetConfig) -> None:
        super().__init__(backbone, size, config)
        width = 2 * sum(level.channels for level in backbone.levels)
        self.scale = Standardisation([width])
        self.embed, self.read = nn.Linear(width, config.hidden), nn.Linear(2 * config.hidden, 1)
        for name in ("good", "bad"):
            self.register_buffer(name, torch.empty(0, width))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, networks = self.config, nn.ModuleList([self.embed, self.read])
        initialise_uniform(networks, run.generator("networks"))
        good, bad = (
            torch.cat([pooled(teacher(batch)) for batch in batches(images, run, "describing images")])
            for images in (training.normal, training.anomalous)
        )
        self.scale.learn([[good[..., None, None]]])
        good, bad = self._scaled(good), self._scaled(bad)
        self.good, self.bad = (
            vectors[run.permutation(len(vectors), f"{name} images to compare with")[: config.references]]
            for vectors, name in ((good, "good"), (bad, "bad"))
        )
        groups = [{"params": [self.embed.weight], "weight_decay": WEIGHT_DECAY}]
        groups.append({"params": [self.embed.bias, *self.read.parameters()], "weight_decay": 0.0})
        optimiser = torch.optim.RMSprop(groups, lr=config.learning_rate, alpha=0.9, eps=1e-7)
        quarter = config.batch_size // 4
        state = {"networks": networks, "optimiser": optimiser}
        for epoch in epochs(run, "prenet", state, config, epoch_steps=EPOCH_STEPS):
            draws = epoch.generator("pairs")
            for _ in epoch.steps():
                first = torch.cat([_drawn(good, 2 * quarter, draws), _drawn(bad, 2 * quarter, draws)])
                second = torch.cat([_drawn(good, 3 * quarter, draws), _drawn(bad, quarter, draws)])
                targets = STEP * torch.arange(3.0).repeat_interleave(torch.tensor([2 * quarter, quarter, quarter]))
                loss = F.l1_loss(self._read(self._embedded(first), self._embedded(second)), targets.to(first.device))
                epoch.descend(loss, optimiser, clip=CLIP, loss=loss)

    def predict(self, images: Tensor) -> Prediction:
        seen = self._embedded(self._scaled(pooled(self.backbone(images))))
        # What is read off is linear, so that the mean over pairs is what is read off the mean.
        bad, good = (self._embedded(known).mean(dim=0).expand_as(seen) for known in (self.bad, self.good))
        return Prediction(None, (self._read(bad, seen) + self._read(seen, good)) / 2)

    def _scaled(self, vectors: Tensor) -> Tensor:
        scaled: Tensor = self.scale([vectors[..., None, None]])[0][..., 0, 0]
        return scaled

    def _embedded(self, vectors: Tensor) -> Tensor:
        return F.relu(self.embed(vectors))

    def _read(self, first: Tensor, second: Tensor) -> Tensor:
        """How bad pairs are, ``n``, of what was made of each image, ``n d``."""
        return self.read(torch.cat([first, second], dim=1))[:, 0]  # type: ignore[no-any-return]


def pooled(features: Sequence[Tensor]) -> Tensor:
    """``b d``: mean and highest value of every channel of maps ``b c y x``."""
    return torch.cat([values for map_ in features for values in (map_.mean(dim=(2, 3)), map_.amax(dim=(2, 3)))], dim=1)


def _drawn(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the rows, with replacement."""
    return vectors[torch.randint(len(vectors), (count,), generator=generator).to(vectors.device)]
