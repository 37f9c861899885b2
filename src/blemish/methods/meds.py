"""MeDS, its first step: what is rare in a pile is rarer still in a tenth of it, so tenths serve as memories.

Idea: a pile that nobody has looked at holds few bad images, and their patches are few among all. Each of some banks is
a tenth of all patches of the pile, drawn at random: most banks hold none that are like a given defect, while what is
usual is in all of them. Nothing is chosen, weighed or trained, and no place of the image counts.
Score: a patch's is its distance to the nearest patch of a bank, averaged over the banks; an image's is its highest
patch score, and the map is the patch scores, upsampled and smoothed (our reading, as PatchCore's).
The paper goes on: a small network learns these scores and is fitted anew to the cleanest part, again and again. That is
not built. It leaves out an image's own patches where it scores the pile itself; here audits and cross-fitting do, who
judge by models that never saw the part. Ten banks are our reading. More: docs/methods/meds.md.

MeDS, its first step: arXiv 2605.26676, ICML 2026.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.teacher import available_memory
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import PatchLayers, Sigma, Strangest
from blemish.ops.neighbours import Neighbours
from blemish.ops.passes import check_memory
from blemish.ops.patches import PatchVectors, describe_patches, top_mean
from blemish.ops.smoothing import upscale
from blemish.run import Run

WIDTH = 1024  # numbers of a patch vector at most
WAY_OUT = "give fewer images, deeper --set layers, fewer banks or a smaller --size"


@dataclass(frozen=True)
class MeDSConfig:
    """The paper's share; the rest is PatchCore's."""

    layers: PatchLayers = (2, 3)
    banks: Annotated[int, Field(ge=1, le=100, description="random memories, over which distances are averaged")] = 10
    share: Annotated[float, Field(gt=0, le=1, description="of all patches, how many each bank holds")] = 0.1
    top: Strangest = 0.0
    sigma: Sigma = 4.0


class MeDS(Method):
    """``banks`` of patches drawn at random. See the top of this file."""

    Config = MeDSConfig
    regimes = frozenset({"contaminated"})
    config: MeDSConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: MeDSConfig) -> None:
        super().__init__(backbone, size, config)
        self.patches = PatchVectors([level.channels for level in backbone.levels], 3, WIDTH, WIDTH, inflate=False)
        self.banks = nn.ModuleList(Neighbours(torch.empty(0, self.patches.width)) for _ in range(config.banks))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        images = training.normal
        y, x = teacher(images.batch([0]))[0].shape[-2:]
        numbers = len(images) * y * x * self.patches.width  # of four bytes, once for all patches and once for all banks
        needed = round(4 * numbers * (1 + self.config.banks * self.config.share))
        check_memory("meds", f"holds every patch of {len(images)} images", needed, available_memory(), WAY_OUT)
        vectors, *_ = describe_patches(images, teacher, self.patches, None, run)
        count, draws = max(1, int(len(vectors) * self.config.share)), run.generator("banks")
        for number in range(self.config.banks):
            drawn = torch.randperm(len(vectors), generator=draws)[:count]
            self.banks[number] = Neighbours(vectors[drawn]).to(run.device)

    def predict(self, images: Tensor) -> Prediction:
        vectors = self.patches(self.backbone(images))
        b, y, x, d = vectors.shape
        distances = [bank(vectors.view(-1, d))[0].squeeze(1).sqrt() for bank in self.banks]
        scores = torch.stack(distances).mean(dim=0).view(b, y, x)
        map_ = upscale(scores, images.shape[-2:], self.config.sigma)
        return Prediction(map_, top_mean(scores.flatten(1), self.config.top))
