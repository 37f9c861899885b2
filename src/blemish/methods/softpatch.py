"""SoftPatch: PatchCore for a pile that nobody has looked at; patches that stand off are kept out or count for more.

Idea: bad images are few, and a defect seldom lies twice at one place. So at each place of the grid a patch is compared
with the patches of all other images there: where it stands off from its neighbourhood, it is likely to be noise.

Signal: none. Each patch vector, projected to 128 numbers if it has more than 256, gets a weight: its local outlier
factor among the images at its place (or, by ``weighting``, its distance to the nearest of them or to their Gaussian,
plus 1). The patches with the highest weights are left out of the memory; the rest are thinned out as PatchCore does.

Score: a patch's squared distance to the nearest remembered vector, times that vector's own weight: what is near only to
something doubtful is itself doubtful. An image's is its highest patch score; the map is the patch scores, upsampled
and smoothed.

Differences from the authors' code (github.com/TencentYoutuResearch/AnomalyDetection-SoftPatch; its behaviour is the
default, and what PatchCore's file says of patch vectors and coreset holds here too):
- ``lof_k`` is 5. The released command line's 6 never reaches the method.
- All places are weighed at once, by our own local outlier factors; scikit-learn's do it place by place.
- More than five equal patches at a place (blank background) give their neighbours factors of billions there; here
  densities are bounded (``blemish.ops.lof``).
- One projection serves weights and coreset; the released code draws two.
- As there, the very first patch of the memory is the farthest from a few random ones, left out or not.

Jiang et al.: SoftPatch: Unsupervised Anomaly Detection with Noisy Data, NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.coreset import farthest_first, first_distances, random_projection, size_of_coreset
from blemish.ops.lof import Watch, local_outlier_factors, nearest_others
from blemish.ops.neighbours import Neighbours
from blemish.ops.patches import PatchVectors, describe_patches
from blemish.ops.smoothing import upscale
from blemish.run import Run

BATCH = 8
"""Images described at once while fitting; the vectors do not depend on it."""

PLACES = 64
"""Places of the grid whose Gaussians are held at once."""

RIDGE = 0.01
"""Added to the variances of each place's Gaussian, as in the released code, so that few images give one at all."""


@dataclass(frozen=True)
class SoftPatchConfig:
    """The released defaults, for whatever backbone.

    Attributes:
        layers: stages to describe patches by, shallowest first; the first one's grid is the patches'.
        fraction: of all patch vectors, how much the memory keeps.
        threshold: share of all patches, those with the highest weights, that is left out of the memory.
        weighting: ``lof``, ``nearest`` or ``gaussian``.
        lof_k: neighbours that a local outlier factor looks at.
        soft: whether scores are multiplied by the weight of the remembered vector.
        patch_size: cells a side of the neighbourhood that a vector averages over.
        dims: ``paper`` pools adaptively to ``target_dim`` always, ``auto`` only where there are channels enough.
        pretrain_dim: numbers that each stage is pooled to.
        target_dim: numbers in a patch vector.
        starting_points: random points that the greedy choice measures its first distances to.
        projection_dim: numbers that vectors are projected to while they are weighed and chosen.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (2, 3)
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.15
    weighting: Literal["lof", "nearest", "gaussian"] = "lof"
    lof_k: Annotated[int, Field(ge=1)] = 5
    soft: bool = True
    patch_size: Literal[1, 3, 5] = 3
    dims: Literal["auto", "paper"] = "auto"
    pretrain_dim: Annotated[int, Field(ge=1)] = 1024
    target_dim: Annotated[int, Field(ge=1)] = 1024
    starting_points: Annotated[int, Field(ge=1)] = 10
    projection_dim: Annotated[int, Field(ge=1)] = 128
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class SoftPatch(Method):
    """Remembers patches that do not stand off, and how far each does. See the top of this file."""

    Config = SoftPatchConfig
    regimes = frozenset({"contaminated"})
    config: SoftPatchConfig
    weights: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: SoftPatchConfig) -> None:
        """Build the pooling; the memory is empty."""
        super().__init__(backbone, size, config)
        self.patches = PatchVectors(
            [level.channels for level in backbone.levels],
            config.patch_size,
            config.pretrain_dim,
            config.target_dim,
            inflate=config.dims == "paper",
        )
        self.memory = Neighbours(torch.empty(0, self.patches.width))
        self.register_buffer("weights", torch.empty(0))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Weigh the patches of the pile, and remember a coreset of those that do not stand off."""
        config = self.config
        projection = random_projection(self.patches.width, config.projection_dim, run.generator("projection"))
        vectors, shortened = describe_patches(training.normal, teacher, self.patches, projection, run, BATCH)
        weights = self._weigh(shortened, len(training.normal), run)
        allowed = (weights <= _quantile(weights, 1 - config.threshold)).to(shortened.dtype)
        first = first_distances(shortened, "approximate", config.starting_points, run.generator("starting points"))
        count = size_of_coreset(len(vectors), config.fraction)
        picks = farthest_first(shortened, count, first, allowed)
        kept = torch.tensor(list(run.progress.track(picks, "choosing patches to remember", total=count)))
        self.memory = Neighbours(vectors[kept]).to(run.device)
        self.weights = weights[kept.to(weights.device)].to(run.device)

    def _weigh(self, shortened: Tensor, images: int, run: Run) -> Tensor:
        """``n``: how far each patch stands off from those of other images at its place; 0 or more.

        Args:
            shortened: ``n m``, image by image.
            images: how many there are.
            run: owns progress.
        """
        by_place = shortened.view(images, -1, shortened.shape[1]).transpose(0, 1)
        watch = partial(run.progress.track, title="weighing patches")
        if self.config.weighting == "lof":
            weights = local_outlier_factors(by_place, self.config.lof_k, watch=watch)
        elif self.config.weighting == "nearest":
            weights = 1 + nearest_distances(by_place, watch)
        else:
            weights = 1 + gaussian_distances(by_place, watch)
        return weights.T.reshape(-1).clamp(min=0)

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        vectors = self.patches(self.backbone(images))
        b, y, x, d = vectors.shape
        distances, nearest = self.memory(vectors.view(-1, d))
        scores = distances.squeeze(1)
        if self.config.soft:
            scores = scores * self.weights[nearest.squeeze(1)]
        scores = scores.view(b, y, x)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return Prediction(upscale(scores, size, self.config.sigma), scores.amax(dim=(1, 2)))


def nearest_distances(points: Tensor, watch: Watch = iter) -> Tensor:
    """``p n``: the distance of each point of ``p n m`` to the nearest other of its set; 0 where there is none."""
    if points.shape[1] < 2:
        return points.new_zeros(points.shape[:2])
    return nearest_others(points, 1, watch)[0].squeeze(2)


def gaussian_distances(points: Tensor, watch: Watch = iter) -> Tensor:
    """``p n``: the Mahalanobis distance of each point of ``p n m`` to its own set; 0 where that has one point."""
    _, n, m = points.shape
    if n < 2:
        return points.new_zeros(points.shape[:2])
    found = []
    for part in watch(torch.split(points, PLACES)):
        centred = (part - part.mean(dim=1, keepdim=True)).double()
        covariance = centred.transpose(1, 2) @ centred / (n - 1)
        covariance += RIDGE * torch.eye(m, dtype=covariance.dtype, device=covariance.device)
        factor = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(factor, centred.transpose(1, 2), upper=False)
        found.append(whitened.square().sum(dim=1).sqrt().to(points.dtype))
    return torch.cat(found)


def _quantile(values: Tensor, share: float) -> float:
    """Interpolated between the two values next to it; torch's own refuses more than 16 million values."""
    return float(np.quantile(values.cpu().numpy(), share))
