"""DevNet: scores of good images stay near zero, those of known-bad ones stand several deviations above.

Idea: every place of an image gets a score, and an image the mean of its highest ones. A few known-bad images, without
outlines, are enough to learn which directions of the features count: the scores of good images are to look like draws
from a standard normal distribution, those of bad ones to lie at least five deviations above its mean.

Signal: |deviation| for good images, how far the deviation stays below the margin for known-bad ones.

Score: the mean of the top tenth of the absolute scores of all places, averaged over the levels; the map is the absolute
scores themselves, brought to the size of the image and smoothed.

Paper and released code (github.com/Choubo/deviation-network-image):
- Released is a ResNet18 that learns with its score map. For the comparison on equal features (our reading) the backbone
  stays frozen: one 1x1 convolution a level reads its features, standardised on the good images.
- Released are two sizes of each image, 448 and 224 pixels. The levels stand in for them; ``scales=2`` adds the image at
  half its size, at the cost of one more pass through the backbone each step.
- Half of a released batch are known-bad images, drawn again and again. Here each step takes as many good images as half
  a batch has and as many bad ones or all there are, and weighs both halves alike: the same in the mean, for less work.
- The released maps are gradients with respect to the image; ours are the scores.
- The released learning rate, .0002 with a tenth after every ten epochs, lets no weight travel further than about .05.
  That suits a backbone that learns along; one 1x1 convolution over 40 frozen channels could not reach the margin so.
  Here it is .002 (our reading).
- 5,000 reference draws a step, margin, weight decay, clipping and length are as released.

Pang, Ding, Shen, van den Hengel: Explainable Deep Few-shot Anomaly Detection with Deviation Networks, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Batch, Method, Prediction, Teacher, TrainingImages
from blemish.ops.cycling import passes
from blemish.ops.smoothing import upscale
from blemish.ops.standardisation import Standardisation
from blemish.run import Run

EPOCH_STEPS = 20
"""Steps that the released code calls an epoch."""

REFERENCES = 5000
"""Draws from a standard normal distribution that a step's deviations are measured by."""

DROP_EVERY = 10
"""Epochs after which the learning rate is a tenth of what it was."""


@dataclass(frozen=True)
class DevNetConfig:
    """The released training, on frozen features.

    Attributes:
        layers: stages whose places are scored.
        margin: deviations that known-bad images are to stand above the mean.
        top: share of the places, those of the highest scores, whose mean is the image's score.
        scales: 2 to look at the image at half its size, too.
        epochs: of 20 steps each.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: images a step, half of them known-bad ones or all of those.
        learning_rate: Adam's, a tenth of it after every ten epochs.
        weight_decay: Adam's.
        clip: largest norm of the gradient.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (2, 3)
    margin: Annotated[float, Field(gt=0)] = 5.0
    top: Annotated[float, Field(gt=0, le=1)] = 0.1
    scales: Literal[1, 2] = 1
    epochs: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 48
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    clip: Annotated[float, Field(gt=0)] = 1.0
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class DevNet(Method):
    """A score for every place. See the top of this file.

    Attributes:
        scale: standardises the features.
        scorers: one a level.
    """

    Config = DevNetConfig
    regimes = frozenset({"weak"})
    config: DevNetConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DevNetConfig) -> None:
        """Build the scorers, untaught."""
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        self.scale = Standardisation(widths)
        self.scorers = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)

    @classmethod
    def learns_from_anomalous(cls, config: DevNetConfig) -> bool:
        """Always."""
        return True

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Keep the good images' scores near zero and lift the known-bad ones'."""
        config, half = self.config, self.config.batch_size // 2
        self._begin(training, teacher, run)
        optimiser = torch.optim.Adam(
            self.scorers.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        keep = {"scorers": self.scorers, "optimiser": optimiser}
        length = run.length(epochs=config.epochs, steps=config.steps)
        for epoch in run.epochs(length, epoch_steps=EPOCH_STEPS, state=keep, title="devnet"):
            self.scorers.train()
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.1 ** ((epoch.number - 1) // DROP_EVERY)
            good = passes(len(training.normal), half, epoch.generator("order of images"))
            bad = passes(len(training.anomalous), half, epoch.generator("order of bad images"))
            draws = epoch.generator("references")
            for _ in epoch.steps():
                normal = self._image_scores(self._seen(training.normal.batch(next(good)), teacher))
                anomalous = self._image_scores(self._seen(training.anomalous.batch(next(bad)), teacher))
                loss = deviation_loss(normal, anomalous, torch.randn(REFERENCES, generator=draws), config.margin)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.scorers.parameters(), config.clip)
                optimiser.step()
                epoch.log(loss=loss.detach(), normal=normal.mean().detach(), anomalous=anomalous.mean().detach())
        self.scorers.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        sizes = [images, halved(images)][: self.config.scales]
        maps = [map_ for seen in sizes for map_ in self._score_maps(self.backbone(seen))]
        size = (int(images.shape[-2]), int(images.shape[-1]))
        map_ = torch.stack([upscale(one, size, self.config.sigma) for one in maps]).mean(dim=0)
        return Prediction(map_, top_mean(maps, self.config.top))

    @torch.no_grad()
    def _begin(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """First values by torch's default rule, and the features' scale."""
        generator = run.generator("scorers")
        for level, scorer in zip(self.backbone.levels, self.scorers, strict=True):
            drawn = torch.empty(1, level.channels, 1, 1).uniform_(-1, 1, generator=generator)
            scorer.load_state_dict({"weight": drawn / math.sqrt(level.channels), "bias": torch.zeros(1)})
        size, count = self.config.batch_size, len(training.normal)
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        self.scale.learn(teacher(training.normal.batch(list(chunk))) for chunk in chunks)

    def _seen(self, batch: Batch, teacher: Teacher) -> list[list[Tensor]]:
        """Features at each size of the image."""
        found = [teacher(batch)]
        if self.config.scales == 2:
            found.append(teacher(halved(batch.images)))
        return found

    def _image_scores(self, seen: Sequence[list[Tensor]]) -> Tensor:
        return top_mean([map_ for features in seen for map_ in self._score_maps(features)], self.config.top)

    def _score_maps(self, features: list[Tensor]) -> list[Tensor]:
        """Absolute scores ``b y x``, a level each."""
        scaled = self.scale(features)
        return [scorer(map_).squeeze(1).abs() for scorer, map_ in zip(self.scorers, scaled, strict=True)]


def halved(images: Tensor) -> Tensor:
    """``b 3 h w`` at half the height and width."""
    return F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)


def top_mean(maps: Sequence[Tensor], share: float) -> Tensor:
    """``b``: the mean of the highest ``share`` of each map ``b y x``, one value at least, averaged over the maps."""
    found = []
    for map_ in maps:
        values = map_.flatten(1)
        found.append(values.topk(max(1, int(share * values.shape[1])), dim=1).values.mean(dim=1))
    return torch.stack(found).mean(dim=0)


def deviation_loss(normal: Tensor, anomalous: Tensor, references: Tensor, margin: float = 5.0) -> Tensor:
    """Half the mean |deviation| of the good images, half the mean of what the bad ones lack to ``margin``.

    Args:
        normal: scores of good images, ``b``.
        anomalous: scores of known-bad ones, of any number.
        references: draws from a standard normal distribution: their mean and deviation are the measure.
        margin: in deviations.
    """
    mean, deviation = references.mean(), references.std()
    lacking = F.relu(margin - (anomalous - mean) / deviation)
    return (((normal - mean) / deviation).abs().mean() + lacking.mean()) / 2
