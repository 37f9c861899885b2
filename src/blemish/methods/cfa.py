"""CFA: a layer that draws good features to the centres of hyperspheres; a place is bad when no centre is near.

Idea: features of several stages, averaged over 3 x 3 places and joined on the finest grid, go through a 1x1 convolution
that also sees each place's coordinates. It learns, and so does one radius for all spheres; their centres are the means
over good images of what it gave at each place before.
Loss: 1000 times attraction plus repulsion: the means of max(0, d - r^2) over the nearest centres and max(0, r^2 - d -
.1) over those after them, d the squared distance.
Score: a place's distance from the nearest centre, times its part in the softmin over the nearest ones; the map is
these, upsampled and smoothed, and an image's score is its highest value. Differences: docs/methods/cfa.md.

Lee, Lee, Song: CFA: Coupled-Hypersphere-Based Feature Adaptation for Target-Oriented Anomaly Localization, IEEE Access
2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Weight
from blemish.ops.neighbours import PRODUCT_BYTES, smallest
from blemish.ops.passes import batches
from blemish.ops.residual import initialise_uniform, untrained
from blemish.ops.smoothing import upscale
from blemish.run import Run, epochs

SCALE = 1000.0  # of the loss
FIRST_RADIUS = 1e-5


@dataclass(frozen=True)
class CFAConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages that are joined on the first one's grid")] = (1, 2, 3)
    epochs: Annotated[Count, Field(description="passes over the images")] = 30
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 4
    learning_rate: Annotated[Rate, Field(description="AdamW's")] = 0.001
    weight_decay: Annotated[Weight, Field(description="AdamW's")] = 5e-4
    neighbours: Annotated[Count, Field(description="nearest centres that attract a place and judge it")] = 3
    repelled: Annotated[int, Field(ge=0, description="centres after those that push it away")] = 3
    margin: Annotated[Weight, Field(description="squared distance inside the sphere from which they do")] = 0.1
    sigma: Sigma = 4.0


class Descriptor(nn.Module):
    """Feature maps ``b c y x``, a level each, to ``b d y x`` on the first one's grid; holds the spheres' radius."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer, self.radius = nn.Conv2d(channels + 2, channels, 1), nn.Parameter(torch.zeros(()))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        first, *others = (F.avg_pool2d(map_, 3, stride=1, padding=1) for map_ in features)
        (b, _, y, x), device = first.shape, first.device
        places = torch.meshgrid(*(torch.linspace(-1, 1, n, device=device) for n in (y, x)), indexing="ij")
        finer = (F.interpolate(map_, size=(y, x), mode="bilinear", align_corners=False) for map_ in others)
        described: Tensor = self.layer(torch.cat([first, *finer, torch.stack(places).expand(b, -1, -1, -1)], dim=1))
        return described


class CFA(Method):
    """``descriptor`` learns; ``centres``, ``n d``, are its means at each place before it does."""

    Config = CFAConfig
    bf16 = "never"  # distances between close points are what counts
    config: CFAConfig
    centres: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CFAConfig) -> None:
        super().__init__(backbone, size, config)
        channels = sum(level.channels for level in backbone.levels)
        self.descriptor = untrained(lambda: Descriptor(channels))
        self.register_buffer("centres", torch.empty(0, channels))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images, descriptor = self.config, training.normal, self.descriptor
        initialise_uniform(descriptor, run.generator("descriptor"))
        with torch.no_grad():
            descriptor.radius.fill_(FIRST_RADIUS)
            means: list[Tensor] = []
            for batch in batches(images, run, "finding centres"):
                parts = [map_.double().sum(dim=0, keepdim=True) / len(images) for map_ in teacher(batch)]
                means = [mean + part for mean, part in zip(means, parts)] if means else parts
            # Averaging, joining and a convolution are linear: so this is the mean of what they give of each image.
            self.centres = descriptor([mean.float() for mean in means])[0].flatten(1).T.contiguous()
        optimiser = torch.optim.AdamW(
            descriptor.parameters(), config.learning_rate, weight_decay=config.weight_decay, amsgrad=True, fused=True
        )
        for epoch in epochs(run, "cfa", {"descriptor": descriptor, "optimiser": optimiser}, config, len(images)):
            for indices in epoch.batches():
                features = teacher(images.batch(indices))
                with run.precision.autocast(run.device):
                    described = descriptor(features)
                distances = self._distances(described, config.neighbours + config.repelled)
                loss = sphere_loss(distances, descriptor.radius, config.neighbours, config.margin)
                epoch.descend(loss, optimiser, loss=loss, radius=descriptor.radius)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            described = self.descriptor(features)
        roots = self._distances(described, self.config.neighbours).sqrt()
        scores = (roots[:, 0] * F.softmin(roots, dim=1)[:, 0]).view(-1, *described.shape[2:])
        map_ = upscale(scores, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _distances(self, described: Tensor, count: int) -> Tensor:
        """``n count``, ascending: squared distances of all places of ``b d y x`` from their nearest centres."""
        points, count = described.float().permute(0, 2, 3, 1).flatten(0, 2), min(count, len(self.centres))
        with torch.no_grad():  # a product proposes, less the centres' mean, so that it rounds little
            middle = self.centres.mean(dim=0)
            centres, queries = self.centres - middle, points - middle
            norms, each = centres.square().sum(dim=1), max(1, PRODUCT_BYTES // (4 * len(centres)))
            portions = [queries] if torch.compiler.is_compiling() else torch.split(queries, each)
            products = (torch.addmm(norms, portion, centres.T, alpha=-2) for portion in portions)
            nearest = torch.cat([smallest(product, count)[1] for product in products])
        distances = (points[:, None] - self.centres[nearest]).square().sum(dim=2)
        return distances.sort(dim=1).values


def sphere_loss(distances: Tensor, radius: Tensor, attracting: int, margin: float) -> Tensor:
    """Of squared distances ``n k``, ascending: the first draw a place in, those after them, if any, push it out."""
    square = radius.square()
    attraction = F.relu(distances[:, :attracting] - square).mean()
    beyond = F.relu(square - distances[:, attracting:] - margin)
    return SCALE * (attraction + beyond.sum() / max(beyond.numel(), 1))
