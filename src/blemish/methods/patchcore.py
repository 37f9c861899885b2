"""PatchCore: a memory of normal patches; an image is as bad as its strangest patch.

Idea: a network trained on ImageNet already describes local structure. Describe every neighbourhood of every good
image by its features, keep a coreset of those vectors (few, yet every vector has one close by), and compare.

Signal: none. Nothing is trained; "fitting" collects patch vectors and thins them out (greedy k-centre).

Score: a patch's is its squared distance to the nearest remembered vector (or the mean over some nearest). An image's
is its highest patch score, before any smoothing; the map is the patch scores, upsampled and smoothed.

Differences from the authors' code (github.com/amazon-science/patchcore-inspection, its behaviour is the default):
- Pooling comes before interpolation, and the coreset is picked in blocks: the same results up to rounding, faster.
- Backbones with fewer channels than the target (ResNet18, EfficientNet-Lite) keep their channels, averaged over the
  neighbourhood, where the released adaptive pooling would only repeat entries; ``dims="paper"`` brings that back.
- Vectors of up to twice ``projection_dim`` numbers are not projected before selection; the released code projects
  always. For EfficientNet-Lite0's 152 numbers that cost .02 of image AUROC on screws (docs/methods/patchcore.md).
- ``coreset_start="exact"`` needs no memory for all pairs: the norm of a row of distances has a closed form.
- The paper's re-weighting of the image score (Eq. 7) is in no released run; ``reweight=9`` gives anomalib's reading.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.errors import ConfigError, RegimeError
from blemish.ops.coreset import Start, farthest_first, first_distances, random_projection, size_of_coreset
from blemish.ops.neighbours import Neighbours
from blemish.ops.patches import PatchVectors, describe_patches
from blemish.ops.smoothing import upscale
from blemish.run import Run

BATCH = 8
"""Images described at once while fitting; the vectors do not depend on it."""


@dataclass(frozen=True)
class PatchCoreConfig:
    """The released defaults, for whatever backbone.

    Attributes:
        layers: stages to describe patches by, shallowest first; the first one's grid is the patches'.
        fraction: of all patch vectors, how much the memory keeps.
        patch_size: cells a side of the neighbourhood that a vector averages over.
        neighbours: how many nearest vectors a patch score averages over.
        reweight: 0 for the plain maximum; otherwise the image score is the root of the highest patch score, weighted
            by how it compares with that many memory neighbours (9 in the paper).
        dims: ``paper`` pools adaptively to ``target_dim`` always, ``auto`` only where there are channels enough.
        pretrain_dim: numbers that each stage is pooled to.
        target_dim: numbers in a patch vector.
        coreset_start: what the greedy choice begins from, see ``blemish.ops.coreset.first_distances``.
        starting_points: random points that the approximate start measures distances to.
        projection_dim: numbers that vectors are projected to while the coreset is chosen, where they have more than
            twice as many.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (2, 3)
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    patch_size: Literal[1, 3, 5] = 3
    neighbours: Annotated[int, Field(ge=1)] = 1
    reweight: Annotated[int, Field(ge=0)] = 0
    dims: Literal["auto", "paper"] = "auto"
    pretrain_dim: Annotated[int, Field(ge=1)] = 1024
    target_dim: Annotated[int, Field(ge=1)] = 1024
    coreset_start: Start = "approximate"
    starting_points: Annotated[int, Field(ge=1)] = 10
    projection_dim: Annotated[int, Field(ge=1)] = 128
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class PatchCore(Method):
    """Remembers normal patches. See the top of this file."""

    Config = PatchCoreConfig
    regimes = frozenset({"clean", "contaminated", "weak"})
    config: PatchCoreConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: PatchCoreConfig) -> None:
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

    @torch.no_grad()
    def fit(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Collect the patch vectors of the normal images and remember a coreset of them.

        Raises:
            RegimeError: there is no normal image.
        """
        if len(training.normal) == 0:
            raise RegimeError("patchcore learns from good images and was given none: add some to the training set")
        projection = random_projection(self.patches.width, self.config.projection_dim, run.generator("projection"))
        vectors, shortened = describe_patches(training.normal, teacher, self.patches, projection, run, BATCH)
        first = first_distances(
            shortened, self.config.coreset_start, self.config.starting_points, run.generator("starting points")
        )
        count = size_of_coreset(len(vectors), self.config.fraction)
        picks = farthest_first(shortened, count, first)
        kept = torch.tensor(list(run.progress.track(picks, "choosing patches to remember", total=count)))
        self.memory = Neighbours(vectors[kept]).to(run.device)

    def forward(self, images: Tensor) -> Prediction:
        """Judge images ``b 3 h w``.

        Raises:
            ConfigError: nothing was fitted or restored before.
        """
        if len(self.memory) == 0:
            raise ConfigError("this PatchCore remembers nothing yet: call fit or load_fitted first")
        vectors = self.patches(self.backbone(images))
        b, y, x, d = vectors.shape
        distances, nearest = self.memory(vectors.view(-1, d), self.config.neighbours)
        scores = distances.mean(dim=1).view(b, y * x)
        score, worst = scores.max(dim=1)
        if self.config.reweight > 0:
            chosen = vectors.view(b, y * x, d)[torch.arange(b, device=worst.device), worst]
            matched = nearest[:, 0].view(b, y * x).gather(1, worst[:, None]).squeeze(1)
            score = score.sqrt() * self._weight(chosen, matched)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return Prediction(upscale(scores.view(b, y, x), size, self.config.sigma), score)

    def _weight(self, worst: Tensor, matched: Tensor) -> Tensor:
        """``b``: 1 less the softmax, at the matched vector, of the distances to it and its memory neighbours (Eq. 7).

        Args:
            worst: ``b d``, the patch vectors that scored highest.
            matched: ``b``, the remembered vectors nearest to them.
        """
        if len(self.memory) == 1:
            return torch.ones_like(worst[:, 0])  # nothing to compare with: the softmax would only ever give 0
        remembered = self.memory.points + self.memory.centre
        _, around = self.memory(remembered[matched], self.config.reweight)
        rooted = (worst[:, None] - remembered[around]).square().sum(dim=2).sqrt()
        return 1 - rooted.softmax(dim=1)[:, 0]

    def load_fitted(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave: its memory decides how much is remembered."""
        device = self.memory.centre.device
        self.memory = Neighbours(state["memory.points"].new_empty(state["memory.points"].shape)).to(device)
        super().load_fitted(state)
