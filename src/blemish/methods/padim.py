"""PaDiM: at every place of the image a Gaussian of what good parts look like there.

Idea: features of several stages of an ImageNet network, all on the grid of the finest and reduced to some channels
drawn at random, are described place by place by mean and covariance over the good images. So parts must lie alike in
all. Nothing is trained, so there is no loss.
Score: a place's is the Mahalanobis distance of its features from its Gaussian; the map is these, upsampled and
smoothed, and an image's score is the map's highest value.
As released: .01 is added to every variance, which lets fewer images than channels do. The paper's 100 channels are
ResNet18's; it takes 550 of WideResNet50's (``channels=550``). ``covariance=diagonal`` keeps variances alone
(PaDiM-Lite, arXiv 2603.20288): a hundredth of the numbers. Differences: docs/methods/padim.md.

Defard, Setkov, Loesch, Audigier: PaDiM: a Patch Distribution Modeling Framework, ICPR workshops 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from blemish.backbones.teacher import available_memory
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Layers, Sigma, Width
from blemish.ops.gaussian import Gaussians, Moments
from blemish.ops.passes import batches, check_memory, check_number, check_spread
from blemish.ops.smoothing import upscale
from blemish.run import Run

FEWEST = 4  # images: of three, a place's covariance has two directions
RIDGE = 0.01  # added to every variance, as released
BYTES = 20  # of memory a number of a covariance takes while it is learned
WAY_OUT = "--set covariance=diagonal, fewer --set channels, deeper --set layers or a smaller --size"


@dataclass(frozen=True)
class PaDiMConfig:
    """The paper's, for ResNet18."""

    layers: Annotated[Layers, Field(description="stages whose features are joined on the first one's grid")] = (1, 2, 3)
    channels: Annotated[Width, Field(description="how many of all channels are drawn; all, where fewer")] = 100
    covariance: Annotated[
        Literal["full", "diagonal"], Field(description="of each place's Gaussian; diagonal: channels' variances alone")
    ] = "full"
    sigma: Sigma = 4.0


class PaDiM(Method):
    """A Gaussian a place. ``drawn``: which channels of all take part."""

    Config = PaDiMConfig
    config: PaDiMConfig
    drawn: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: PaDiMConfig) -> None:
        super().__init__(backbone, size, config)
        self.total = sum(level.channels for level in backbone.levels)
        self.register_buffer("drawn", torch.arange(min(config.channels, self.total)))
        self.gaussians = Gaussians(1 if config.covariance == "diagonal" else len(self.drawn))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        images, count = training.normal, len(self.drawn)
        check_number("padim", images, FEWEST, "a Gaussian at every place of the image")
        order = torch.randperm(self.total, generator=run.generator("channels"))
        self.drawn.copy_(order[:count].sort().values)
        moments = Moments()
        for batch in batches(images, run, "describing places"):
            features = teacher(batch)
            if moments.count == 0:
                places, width = features[0].shape[2:].numel(), self.gaussians.mean.shape[1]
                does = f"learns a covariance of {count} channels at each of {places} places"
                check_memory("padim", does, BYTES * places * count * width, available_memory(), WAY_OUT)
            moments.add(self._points(features))
        check_spread("padim", self.gaussians.learn(moments.portions(), RIDGE), images)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        (b, _, y, x), distances = features[0].shape, self.gaussians(self._points(features))
        scores = distances.view(y, x, -1, b).sum(dim=2).sqrt().permute(2, 0, 1)
        map_ = upscale(scores, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _points(self, features: Sequence[Tensor]) -> Tensor:
        """``p b d``, the drawn channels of each place in each image; with variances alone, each a set of its own."""
        grid = (features[0].shape[-2], features[0].shape[-1])
        joined = torch.cat([features[0], *(F.interpolate(m, size=grid, mode="nearest") for m in features[1:])], dim=1)
        points = joined[:, self.drawn].flatten(2)
        if self.config.covariance == "full":
            return points.permute(2, 0, 1)
        return points.permute(2, 1, 0).flatten(0, 1)[:, :, None]
