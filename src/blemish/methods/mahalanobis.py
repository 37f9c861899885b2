"""MahalanobisAD: how far an image's features lie from those of good images, whole image by whole image; no map.

Idea: averaged over the image, the features of every level of an ImageNet network follow a Gaussian over good images,
as far as one can tell. Mean and covariance are estimated for each level; few images give a poor covariance of hundreds
of channels, so it is drawn towards a multiple of the identity (Ledoit and Wolf's shrinkage). Nothing is trained.
Score: the sum over the levels of the Mahalanobis distances. There is no map.
The paper reads nine levels of EfficientNet-B4; here it is the four stages of whatever backbone (``layers``), read as
the backbone gives them. Differences: docs/methods/mahalanobis.md.

Rippel, Mertens, Merhof: Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection,
ICPR 2020.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Layers
from blemish.ops.gaussian import Gaussians, ledoit_wolf
from blemish.ops.passes import check_number, check_spread, image_vectors
from blemish.run import Run

FEWEST = 4  # images: two always lie in one direction, and nothing draws their covariance away from it
RIDGE = 1e-9  # of a level's mean variance, added to it: a shrinkage of 0 leaves what may be singular


@dataclass(frozen=True)
class MahalanobisConfig:
    """All levels that a backbone has."""

    layers: Annotated[Layers, Field(description="stages whose distances are summed")] = (1, 2, 3, 4)


class Mahalanobis(Method):
    """``gaussians``: one for each level, of the channels' means over the image."""

    Config = MahalanobisConfig
    config: MahalanobisConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: MahalanobisConfig) -> None:
        super().__init__(backbone, size, config)
        self.gaussians = nn.ModuleList(Gaussians(level.channels) for level in backbone.levels)

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        images = training.normal
        check_number("mahalanobis", images, FEWEST, "the covariance of an image's features")
        learned = []
        for vectors in (level.double() for level in image_vectors(images, teacher, run)):
            spread = float(vectors.var(dim=0).mean())
            check_spread("mahalanobis", spread, images)
            gaussian, (covariance, _) = Gaussians(vectors.shape[1]), ledoit_wolf(vectors)
            gaussian.learn([(vectors.mean(dim=0)[None], covariance[None])], RIDGE * spread)
            learned.append(gaussian)
        self.gaussians = nn.ModuleList(learned)

    def predict(self, images: Tensor) -> Prediction:
        pairs = zip(self.gaussians, self.backbone(images), strict=True)
        distances = [gaussian(map_.mean(dim=(2, 3))[None])[0].sqrt() for gaussian, map_ in pairs]
        return Prediction(None, torch.stack(distances).sum(dim=0))
