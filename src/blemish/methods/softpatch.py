"""SoftPatch: PatchCore for a pile that nobody has looked at; patches that stand off are kept out or count for more.

Idea: bad images are few, and a defect seldom lies twice at one place. So at each place of the grid a patch is compared
with the patches of all other images there, and gets a weight: its local outlier factor (or, by ``weighting``, its
distance to the nearest of them or to their Gaussian, plus 1, or to random others). The patches with the highest weights
are left out of the memory; the rest are thinned out as PatchCore does. Nothing is trained, so there is no loss.
Score: a patch's squared distance to the nearest remembered vector, times that vector's own weight: what is near only to
something doubtful is itself doubtful. An image's is its highest patch score; the map is the patch scores, upsampled
and smoothed.
The default is what the authors' code (github.com/TencentYoutuResearch/AnomalyDetection-SoftPatch) does, but that many
equal patches at a place cannot give factors of billions (``blemish.ops.lof``). More: docs/methods/softpatch.md.

Jiang et al.: SoftPatch: Unsupervised Anomaly Detection with Noisy Data, NeurIPS 2022.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, MemoryConfig
from blemish.ops.coreset import farthest_first, first_distances, random_projection, size_of_coreset
from blemish.ops.gaussian import Gaussians, Moments
from blemish.ops.lof import Watch, local_outlier_factors, nearest_others
from blemish.ops.neighbours import Neighbours
from blemish.ops.patches import PatchVectors, describe_patches, top_mean
from blemish.ops.smoothing import upscale
from blemish.run import Run

PLACES = 64  # of the grid, whose Gaussians are held at once
BANKS = 10
RIDGE = 0.01  # added to the variances of each place's Gaussian, as released, so that few images give one at all


@dataclass(frozen=True)
class SoftPatchConfig(MemoryConfig):
    """The released defaults, for whatever backbone."""

    fraction: Annotated[
        float | None, Field(gt=0, le=1, description="of all patch vectors, how much is kept; null: memory says")
    ] = 0.1
    threshold: Annotated[
        float, Field(ge=0, lt=1, description="share of all patches, those of the highest weights, that is left out")
    ] = 0.15
    weighting: Annotated[
        Literal["lof", "nearest", "gaussian", "banks"],
        Field(description="what a patch's weight is, among those at its place; banks: among some drawn from anywhere"),
    ] = "lof"
    lof_k: Annotated[Count, Field(description="neighbours that a local outlier factor looks at")] = 5
    soft: Annotated[bool, Field(description="multiply scores by the weight of the remembered vector")] = True


class SoftPatch(Method):
    """Remembers patches that do not stand off, and how far each does. See the top of this file."""

    Config = SoftPatchConfig
    regimes = frozenset({"contaminated"})
    config: SoftPatchConfig
    weights: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: SoftPatchConfig) -> None:
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        dims = config.patch_size, config.pretrain_dim, config.target_dim
        self.patches = PatchVectors(widths, *dims, inflate=config.dims == "paper")
        self.memory = Neighbours(torch.empty(0, self.patches.width))
        self.register_buffer("weights", torch.empty(0))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config = self.config
        projection = random_projection(self.patches.width, config.projection_dim, run.generator("projection"))
        vectors, shortened, *_ = describe_patches(training.normal, teacher, self.patches, projection, run)
        weights = self._weigh(shortened, len(training.normal), run)
        # NumPy's quantile: torch's own refuses more than 16 million values.
        limit = float(np.quantile(weights.cpu().numpy(), 1 - config.threshold))
        allowed = (weights <= limit).to(shortened.dtype)
        first = first_distances(shortened, "approximate", config.starting_points, run.generator("starting points"))
        count = size_of_coreset(len(vectors), config.fraction, config.memory)
        picks = farthest_first(shortened, count, first, allowed)
        kept = torch.tensor(list(run.progress.track(picks, "choosing patches to remember", total=count)))
        self.memory = Neighbours(vectors[kept]).to(run.device)
        self.weights = weights[kept.to(weights.device)].to(run.device)

    def _weigh(self, shortened: Tensor, images: int, run: Run) -> Tensor:
        """``n``: how far each patch of ``n m``, image by image, stands off from others at its place; 0 or more."""
        by_place = shortened.view(images, -1, shortened.shape[1]).transpose(0, 1)
        watch = partial(run.progress.track, title="weighing patches")
        if self.config.weighting == "banks":
            return bank_distances(shortened, images, run.generator("banks"), watch)
        if self.config.weighting == "lof":
            weights = local_outlier_factors(by_place, self.config.lof_k, watch=watch)
        elif self.config.weighting == "nearest":
            weights = 1 + nearest_distances(by_place, watch)
        else:
            weights = 1 + gaussian_distances(by_place, watch)
        return weights.T.reshape(-1).clamp(min=0)

    def predict(self, images: Tensor) -> Prediction:
        vectors = self.patches(self.backbone(images))
        b, y, x, d = vectors.shape
        distances, nearest = self.memory(vectors.view(-1, d))
        scores = distances.squeeze(1)
        if self.config.soft:
            scores = scores * self.weights[nearest.squeeze(1)]
        scores = scores.view(b, y, x)
        score = top_mean(scores.flatten(1), self.config.top)
        return Prediction(upscale(scores, images.shape[-2:], self.config.sigma), score)


def nearest_distances(points: Tensor, watch: Watch = iter) -> Tensor:
    """``p n``: the distance of each point of ``p n m`` to the nearest other of its set; 0 where there is none."""
    if points.shape[1] < 2:
        return points.new_zeros(points.shape[:2])
    return nearest_others(points, 1, watch)[0].squeeze(2)


def bank_distances(vectors: Tensor, images: int, generator: torch.Generator, watch: Watch = iter) -> Tensor:
    """``n``: the mean distance of each patch of ``n m``, image by image, to ten random tenths of those of other images.

    Over their median. What is rare is rarer still in a tenth (MeDS, arXiv 2605.26676, its first step): no place counts.
    """
    patches, cells = torch.arange(len(vectors)), len(vectors) // images
    drawn = [torch.randperm(len(vectors), generator=generator)[: max(1, len(vectors) // 10)] for _ in range(BANKS)]
    distances = []
    for own in watch(torch.split(patches, cells)):
        others = [bank[torch.div(bank, cells, rounding_mode="floor") != own[0] // cells] for bank in drawn]
        found = [Neighbours(vectors[bank])(vectors[own])[0][:, 0].sqrt() for bank in others if len(bank)]
        distances.append(torch.stack(found).mean(dim=0) if found else vectors.new_zeros(cells))
    weights = torch.cat(distances)
    return weights / weights.median().clamp(min=1e-12)


def gaussian_distances(points: Tensor, watch: Watch = iter) -> Tensor:
    """``p n``: the Mahalanobis distance of each point of ``p n m`` to its own set; 0 where that has one point."""
    _, n, m = points.shape
    if n < 2:
        return points.new_zeros(points.shape[:2])
    distances = []
    for places in watch(torch.split(points, PLACES)):
        moments, gaussians = Moments(), Gaussians(m)
        moments.add(places)
        gaussians.learn(moments.portions(), RIDGE)
        distances.append(gaussians(places).sqrt())
    return torch.cat(distances)
