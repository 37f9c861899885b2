"""DevNet: scores of good images stay near zero, those of known-bad ones stand several deviations above.

Idea: every place of an image gets a score, and an image the mean of its highest ones. A few known-bad images, without
outlines, are enough to learn which directions of the features count: the scores of good images are to look like draws
from a standard normal distribution, those of bad ones to lie at least five deviations above its mean.
Loss: |deviation| for good images, how far the deviation stays below the margin for known-bad ones
(``deviation_loss``).
Score: the mean of the top tenth of the absolute scores of all places, averaged over the levels; the map is the absolute
scores themselves, brought to the size of the image and smoothed.
Released (github.com/Choubo/deviation-network-image) is a ResNet18 that learns with its score map at a tenth of this
learning rate; ours, for a comparison on equal features, is one 1x1 convolution a level of the frozen backbone (our
reading). All differences: docs/methods/devnet.md.

Pang, Ding, Shen, van den Hengel: Explainable Deep Few-shot Anomaly Detection with Deviation Networks, 2021.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Batch, Images, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Several, Sigma, Steps, Weight
from blemish.ops.deviation import REFERENCES, deviation_loss, top_mean_of_maps
from blemish.ops.norms import Standardisation
from blemish.ops.smoothing import upscale
from blemish.run import Run, epochs

EPOCH_STEPS = 20  # that the released code calls an epoch
DROP_EVERY = 10  # epochs, after which the learning rate is a tenth of what it was


@dataclass(frozen=True)
class DevNetConfig:
    """The released training, on frozen features."""

    layers: Annotated[Layers, Field(description="stages whose places are scored")] = (2, 3)
    margin: Annotated[Rate, Field(description="deviations that known-bad images are to stand above the mean")] = 5.0
    top: Annotated[
        float,
        Field(gt=0, le=1, description="share of the places, of the highest scores, whose mean is the score"),
    ] = 0.1
    scales: Annotated[Literal[1, 2], Field(description="2: look at the image at half its size, too")] = 1
    epochs: Annotated[Count, Field(description="of 20 steps each")] = 50
    steps: Steps = None
    batch_size: Annotated[Several, Field(description="images a step, half of them known-bad ones or all of those")] = 48
    learning_rate: Annotated[Rate, Field(description="Adam's, a tenth of it after every ten epochs")] = 2e-3
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5
    clip: Annotated[Rate, Field(description="largest norm of the gradient")] = 1.0
    sigma: Sigma = 4.0


class DevNet(Method):
    """A score for every place: ``scale`` standardises the features, ``scorers`` read them, one a level."""

    Config = DevNetConfig
    regimes = frozenset({"weak"})
    config: DevNetConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DevNetConfig) -> None:
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        self.scale = Standardisation(widths)
        self.scorers = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, half = self.config, self.config.batch_size // 2
        self._initialise(training.normal, teacher, run)
        parameters, decay = self.scorers.parameters(), config.weight_decay
        optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=decay, fused=True)
        state = {"scorers": self.scorers, "optimiser": optimiser}
        for epoch in epochs(run, "devnet", state, config, epoch_steps=EPOCH_STEPS):
            self.scorers.train()
            optimiser.param_groups[0]["lr"] = config.learning_rate * 0.1 ** ((epoch.number - 1) // DROP_EVERY)
            good = epoch.cycle(len(training.normal), half, "order of images")
            bad = epoch.cycle(len(training.anomalous), half, "order of bad images")
            draws = epoch.generator("references")
            for _ in epoch.steps():
                normal = self._image_scores(training.normal.batch(next(good)), teacher)
                anomalous = self._image_scores(training.anomalous.batch(next(bad)), teacher)
                loss = deviation_loss(normal, anomalous, torch.randn(REFERENCES, generator=draws), config.margin)
                means = {"normal": normal.mean(), "anomalous": anomalous.mean()}
                epoch.descend(loss, optimiser, clip=config.clip, loss=loss, **means)

    def predict(self, images: Tensor) -> Prediction:
        sizes = [images, halved(images)][: self.config.scales]
        maps = [map_ for sized in sizes for map_ in self._score_maps(self.backbone(sized))]
        smoothed = [upscale(map_, images.shape[-2:], self.config.sigma) for map_ in maps]
        return Prediction(torch.stack(smoothed).mean(dim=0), top_mean_of_maps(maps, self.config.top))

    @torch.no_grad()
    def _initialise(self, normal: Images, teacher: Teacher, run: Run) -> None:
        """First values by torch's default rule, and the features' scale."""
        generator = run.generator("scorers")
        for level, scorer in zip(self.backbone.levels, self.scorers, strict=True):
            drawn = torch.empty(1, level.channels, 1, 1).uniform_(-1, 1, generator=generator)
            scorer.load_state_dict({"weight": drawn / math.sqrt(level.channels), "bias": torch.zeros(1)})
        self.scale.learn(teacher(batch) for batch in in_batches(normal, self.config.batch_size))

    def _image_scores(self, batch: Batch, teacher: Teacher) -> Tensor:
        """``b``, over all levels and sizes of the images."""
        maps = self._score_maps(teacher(batch))
        if self.config.scales == 2:
            maps += self._score_maps(teacher(halved(batch.images)))
        return top_mean_of_maps(maps, self.config.top)

    def _score_maps(self, features: list[Tensor]) -> list[Tensor]:
        """Absolute scores ``b y x``, a level each."""
        scaled = self.scale(features)
        return [scorer(map_).squeeze(1).abs() for scorer, map_ in zip(self.scorers, scaled, strict=True)]


def halved(images: Tensor) -> Tensor:
    """``b 3 h w`` at half the height and width."""
    if torch.compiler.is_compiling():  # an exported graph has convolutions in every engine, and antialiasing in few
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = (taps[:, None] * taps).expand(3, 1, 4, 4)
        sums, weights = (F.conv2d(x, kernel, None, 2, 1, 1, 3) for x in (images, torch.ones_like(images[:1])))
        return sums / weights
    return F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
