"""SPADE: looks up the good images most like this one, and in them the place most like each of its places.

Idea: an image's pooled features find its nearest good images; only their feature maps, every place of every stage, are
compared with its own. So a place must look like some place of a good image that is alike as a whole. All is
remembered, nothing is trained.
Score: an image's is its mean distance to the nearest images, in the pooled deepest stage. The map is the distance of
each place to the nearest place of those images, stage by stage, upsampled, averaged over the stages and smoothed;
scores do not follow from maps.
As the paper: 50 nearest images (all of fewer); the known code (github.com/byungjae89/SPADE-pytorch, unofficial) looks
at 5, ten times as quickly. Features fit 16 bits, and are kept in those. Differences: docs/methods/spade.md.

Cohen, Hoshen: Sub-Image Anomaly Detection with Deep Pyramid Correspondences, 2020 (arXiv 2005.02357).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blemish.backbones.teacher import available_memory
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Layers, Sigma
from blemish.ops.neighbours import Neighbours
from blemish.ops.passes import batches, check_memory
from blemish.ops.smoothing import upscale
from blemish.run import Run

WAY_OUT = "give fewer images, deeper --set layers or a smaller --size, or use patchcore"
PRODUCT = 2**24  # numbers of the products between places that are held at once


@dataclass(frozen=True)
class SPADEConfig:
    """The paper's, for whatever backbone."""

    layers: Annotated[
        Layers, Field(description="stages: the last one's mean finds images, the others give the map (one: both)")
    ] = (1, 2, 3, 4)
    neighbours: Annotated[Count, Field(description="nearest good images, which score and map look at")] = 50
    sigma: Sigma = 4.0


class SPADE(Method):
    """``images``: pooled features of all good images; ``bank_0`` and on, ``n c``: all their places, level by level."""

    Config = SPADEConfig
    config: SPADEConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: SPADEConfig) -> None:
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        self.images = Neighbours(torch.empty(0, widths[-1]))
        self.levels = max(1, len(widths) - 1)
        for level, width in enumerate(widths[: self.levels]):
            self.register_buffer(f"bank_{level}", torch.empty(0, width, dtype=torch.bfloat16))
            self.register_buffer(f"centre_{level}", torch.zeros(width))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        pooled, kept, count = list[Tensor](), list[list[Tensor]](), len(training.normal)
        for batch in batches(training.normal, run, "remembering images"):
            features = teacher(batch)
            if not kept:
                needed = count * sum(4 * m[0].numel() for m in features[: self.levels])  # two bytes each, held twice
                does = f"remembers every place of {count} images"
                check_memory("spade", does, needed, available_memory(), WAY_OUT)
            pooled.append(features[-1].mean(dim=(2, 3)))
            kept.append([m.permute(0, 2, 3, 1).flatten(0, 2).bfloat16() for m in features[: self.levels]])
        self.images = Neighbours(torch.cat(pooled)).to(run.device)
        for level, parts in enumerate(zip(*kept)):
            setattr(self, f"bank_{level}", torch.cat(parts))
            getattr(self, f"centre_{level}").copy_(torch.stack([p.float().mean(dim=0) for p in parts]).mean(dim=0))

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        distances, nearest = self.images(features[-1].mean(dim=(2, 3)), self.config.neighbours)
        maps = []
        for level, map_ in enumerate(features[: self.levels]):
            b, c, y, x = map_.shape
            bank, centre = getattr(self, f"bank_{level}").view(-1, y * x, c), getattr(self, f"centre_{level}")
            places = map_.flatten(2).mT - centre
            # One by one, for memory's sake, but in an exported graph, which takes any number of images.
            parts = [slice(None)] if torch.compiler.is_compiling() else [slice(i, i + 1) for i in range(b)]
            found = torch.cat([_nearest(places[part], bank, nearest[part], centre) for part in parts])
            maps.append(upscale(found.sqrt().view(b, y, x), images.shape[-2:], self.config.sigma))
        return Prediction(torch.stack(maps).mean(dim=0), distances.sqrt().mean(dim=1))


def _nearest(places: Tensor, bank: Tensor, chosen: Tensor, centre: Tensor) -> Tensor:
    """``b p``: squared distances of centred places ``b p c`` to the nearest in the chosen ``b k`` images of ``n p c``.

    By products, so exact to the rounding of squares of centred features; less than that is 0.
    """
    rows = max(1, PRODUCT // bank.shape[1])
    lowest = []
    for own in torch.split(places, rows, dim=1):
        best = own.new_full((1,), torch.inf)
        for neighbour in range(chosen.shape[1]):
            keys = bank[chosen[:, neighbour]].float() - centre
            product = torch.baddbmm(keys.square().sum(dim=2)[:, None], own, keys.mT, alpha=-2)
            best = torch.minimum(best, product.amin(dim=2))
        lowest.append((best + own.square().sum(dim=2)).clamp_min(0))
    return torch.cat(lowest, dim=1)
