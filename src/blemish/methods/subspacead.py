"""SubspaceAD: good patches lie close to a subspace; a patch is as bad as what that leaves unexplained.

Idea: the feature vectors of all patches of all good images vary along few directions. Principal components that
explain 99 % of their variance span a subspace, and that with the mean is the whole model: a matrix. Nothing is
trained.
Score: a patch's is the squared length of what remains of it once its projection onto the subspace is taken away; the
map is these, upsampled and smoothed, and an image's score is the mean of the map's highest hundredth (``top``).
The paper averages seven middle blocks of a large vision transformer. Levels of one shape are averaged here too; those
of other networks are joined on the finest one's grid (our reading). Its thirty random rotations of each of few images
are left to ``fit --poses``. Differences: docs/methods/subspacead.md.

Lendering, Akdag, Bondarev: SubspaceAD, CVPR 2026 (github.com/CLendering/SubspaceAD).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Layers, Sigma
from blemish.ops.gaussian import Moments, principal_components
from blemish.ops.passes import batches, check_spread
from blemish.ops.patches import PatchVectors, top_mean
from blemish.ops.smoothing import upscale
from blemish.run import Run


@dataclass(frozen=True)
class SubspaceADConfig:
    """The released defaults, for whatever backbone."""

    layers: Annotated[
        Layers, Field(description="stages that describe a patch: averaged where all have one shape, else joined")
    ] = (2, 3)
    variance: Annotated[float, Field(gt=0, lt=1, description="share of all variance that the subspace explains")] = 0.99
    top: Annotated[
        float, Field(ge=0, le=1, description="share of the map, its highest values, whose mean is an image's score")
    ] = 0.01
    sigma: Sigma = 4.0


class SubspaceAD(Method):
    """``mean`` ``1 d`` and ``components`` ``k d``, orthonormal, of good patches."""

    Config = SubspaceADConfig
    config: SubspaceADConfig
    mean: Tensor
    components: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: SubspaceADConfig) -> None:
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        self.is_averaged = len({(level.channels, level.stride) for level in backbone.levels}) == 1
        self.patches = PatchVectors(widths, 1, 1, sum(widths) + 1, inflate=False)  # joined as they are, not pooled
        width = widths[0] if self.is_averaged else sum(widths)
        self.register_buffer("mean", torch.zeros(1, width))
        self.register_buffer("components", torch.empty(0, width))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        moments = Moments()
        for batch in batches(training.normal, run, "describing patches"):
            moments.add(self._vectors(teacher(batch)).flatten(0, 2)[None])
        ((mean, covariance),) = moments.portions()
        check_spread("subspacead", float(covariance[0].trace()), training.normal)
        _, directions = principal_components(covariance[0], self.config.variance)
        self.mean.copy_(mean)
        # Of all directions one at least is left out, or nothing would ever remain of a patch.
        self.components = directions[:, : len(directions) - 1].T.float().contiguous()

    def predict(self, images: Tensor) -> Prediction:
        centred = self._vectors(self.backbone(images)) - self.mean
        scores = (centred - centred @ self.components.T @ self.components).square().sum(dim=3)
        map_ = upscale(scores, images.shape[-2:], self.config.sigma)
        return Prediction(map_, top_mean(map_.flatten(1), self.config.top))

    def _vectors(self, features: Sequence[Tensor]) -> Tensor:
        """``b y x d``: what describes each patch."""
        if self.is_averaged:
            return torch.stack(list(features)).mean(dim=0).permute(0, 2, 3, 1)
        return self.patches(list(features))  # type: ignore[no-any-return]
