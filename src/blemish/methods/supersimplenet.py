"""SuperSimpleNet: heads on frozen features learn to see noise in irregular spots, and known-bad images where there are.

Idea: frozen features of a good image get noise inside a Perlin mask: a defect, as far as features go. One head learns
to say where the noise is, another, which sees features and that map, whether the image has any. A known-bad image
teaches the second head without an outline: so one network serves good images alone and good with known-bad ones.
Loss: how far places lack half a unit of the right sign (``margin_loss``) and the focal loss of the map, and the focal
loss of the image's score. Of a known-bad image's map nothing is said, as nobody knows where it is bad.
Score: the second head's, as a probability; the map is the first head's, enlarged and smoothed.
As in the extended paper the second head sees features that the adapter has not changed. Ours: each level is divided by
one number first, its size on good images, so that noise of one strength serves every backbone. All differences:
docs/methods/supersimplenet.md.

Rolih, Fucka, Skocaj: SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast and Reliable Surface Defect
Detection, ICPR 2024; No Label Left Behind, Journal of Intelligent Manufacturing, 2025.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Width
from blemish.ops.draws import normals
from blemish.ops.focal import focal_loss
from blemish.ops.norms import Standardisation
from blemish.ops.perlin import perlin_mask
from blemish.ops.residual import initialise
from blemish.ops.smoothing import upscale
from blemish.run import Epoch, Run, epochs

GAMMA = 4.0  # of the focal losses
CLEAN_THRESHOLD, WEAK_THRESHOLD = 0.2, 0.6
CLASSIFIER = 128  # channels of the second head
CLIP = 1.0  # largest norm of the gradient, with known-bad images


@dataclass(frozen=True)
class SuperSimpleNetConfig:
    """The released training of MVTec AD and, with known-bad images, of the sets with labels."""

    layers: Annotated[Layers, Field(description="stages whose features are joined")] = (2, 3)
    enlarge: Annotated[
        int,
        Field(ge=1, le=4, description="how much finer than the first stage's the grid is; 1 takes a quarter as long"),
    ] = 2
    hidden: Annotated[Width, Field(description="channels inside the head that makes the map")] = 1024
    deviation: Annotated[Rate, Field(description="of the noise, where the features of a level are about 1")] = 0.2
    threshold: Annotated[
        float | None,
        Field(gt=-1, lt=1, description="of the noise that masks are cut from; null: .2, with known-bad images .6"),
    ] = None
    known_bad: Annotated[bool, Field(description="learn from known-bad images, where there are some")] = True
    epochs: Annotated[Count, Field(description="passes over the good images")] = 300
    steps: Steps = None
    batch_size: Annotated[
        int,
        Field(ge=2, description="images a step, half of them known-bad ones where there are; good ones count twice"),
    ] = 32
    heads_rate: Annotated[Rate, Field(description="AdamW's, of the heads; half of it of the adapter")] = 2e-4
    sigma: Sigma = 4.0
    score: Annotated[
        Literal["head", "map"], Field(description="an image's: what its own head says, or its map's highest value")
    ] = "head"


class SuperSimpleNet(Method):
    """``scale`` brings levels to one size, ``heads`` read them."""

    Config = SuperSimpleNetConfig
    regimes = frozenset({"clean", "weak"})
    has_schedule = True
    config: SuperSimpleNetConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: SuperSimpleNetConfig) -> None:
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        self.scale, self.heads = Standardisation(widths), Heads(sum(widths), config.hidden)

    @classmethod
    def without_anomalous(cls, config: SuperSimpleNetConfig) -> SuperSimpleNetConfig | None:
        return dataclasses.replace(config, known_bad=False) if config.known_bad else None

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, heads, normal = self.config, self.heads, training.normal
        is_weak = config.known_bad and len(training.anomalous) > 0
        initialise(heads, run.generator("heads"), xavier=True)
        self.scale.learn(teacher(batch) for batch in in_batches(normal, config.batch_size))
        self.scale.level()
        groups = [
            {"params": heads.adapter.parameters(), "share": 0.5, "weight_decay": 0.01},
            {"params": nn.ModuleList([heads.places, heads.image, heads.score]).parameters(), "share": 1.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=config.heads_rate, weight_decay=1e-5, fused=True)
        state = {"heads": heads, "optimiser": optimiser}
        size = config.batch_size // 2 if is_weak else config.batch_size
        for epoch in epochs(run, "supersimplenet", state, config, epoch_steps=math.ceil(len(normal) / size)):
            heads.train()
            drops = sum(epoch.number - 1 >= share * epoch.of for share in (0.8, 0.9))
            for group in optimiser.param_groups:
                group["lr"] = config.heads_rate * group["share"] * 0.4**drops
            good, noise = epoch.cycle(len(normal), size, "order of images"), epoch.generator("noise")
            bad = epoch.cycle(len(training.anomalous), size, "order of bad images") if is_weak else None
            for _ in epoch.steps():
                features = self._joined(teacher(normal.batch(next(good))))
                known = None if bad is None else self._joined(teacher(training.anomalous.batch(next(bad))))
                loss = self._loss(features, known, noise, run, epoch)
                epoch.descend(loss, optimiser, clip=CLIP if is_weak else math.inf)

    def predict(self, images: Tensor) -> Prediction:
        joined = self._joined(self.backbone(images))
        with self.autocast(images):
            map_, score = self.heads(joined)
        large = upscale(map_.float(), images.shape[-2:], self.config.sigma)
        return Prediction(large, large.amax(dim=(1, 2)) if self.config.score == "map" else score.float().sigmoid())

    def _joined(self, features: Sequence[Tensor]) -> Tensor:
        """``b c y x``: all levels on the finer grid, each place the mean of its neighbourhood of 3 x 3."""
        grid = [self.config.enlarge * length for length in features[0].shape[-2:]]
        levels = [F.interpolate(map_, size=grid, mode="bilinear") for map_ in self.scale(features)]
        return F.avg_pool2d(torch.cat(levels, dim=1), 3, stride=1, padding=1)

    def _loss(
        self, features: Tensor, known: Tensor | None, generator: torch.Generator, run: Run, epoch: Epoch
    ) -> Tensor:
        """Of good images, each of them twice, and of known-bad ones where there are."""
        usual = CLEAN_THRESHOLD if known is None else WEAK_THRESHOLD
        threshold = usual if self.config.threshold is None else self.config.threshold
        grid, count = (features.shape[-2], features.shape[-1]), 2 * len(features)
        masks = torch.stack([perlin_mask(grid, generator, threshold=threshold) for _ in range(count)])
        masks &= (torch.rand(count, generator=generator) < 0.5)[:, None, None]
        masks = masks.to(features.device)
        noise = normals((count, *features.shape[1:]), generator, features.device) * masks[:, None]
        noise *= self.config.deviation
        labels = masks.any(dim=2).any(dim=1)
        seen = torch.cat([features, features])
        if known is not None:
            seen, noise = torch.cat([seen, known]), torch.cat([noise, torch.zeros_like(known)])
            labels = torch.cat([labels, torch.ones_like(labels[:1]).expand(len(known))])
        with run.precision.autocast(run.device):
            map_, score = self.heads(seen, noise, stop=known is None)
        map_ = map_[:count].float()
        places = margin_loss(map_, masks) + focal_loss(map_, masks, GAMMA)
        images = focal_loss(score, labels, GAMMA)
        epoch.log(loss=places + images, places=places, images=images)
        return places + images


def margin_loss(map_: Tensor, masks: Tensor, margin: float = 0.5) -> Tensor:
    """By how much places ``b y x`` inside the masks stay below ``margin``, and others above ``-margin``: both means."""
    lacking = F.relu(margin - torch.where(masks, map_, -map_))
    return torch.stack([(lacking * side).sum() / side.sum().clamp_min(1) for side in (masks, ~masks)]).sum()


class Heads(nn.Module):
    """Features ``b c y x`` to a map ``b y x`` and a score ``b``; both may be negative."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(channels, channels, 1)
        self.places = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, 1, 1, bias=False),
        )
        self.image = nn.Sequential(
            nn.Conv2d(channels + 1, CLASSIFIER, 5, padding=2), nn.BatchNorm2d(CLASSIFIER), nn.ReLU()
        )
        self.score = nn.Linear(2 * CLASSIFIER + 2, 1)

    def forward(self, features: Tensor, noise: Tensor | float = 0.0, stop: bool = True) -> tuple[Tensor, Tensor]:
        """With ``stop`` what is learned of whole images does not change the map."""
        map_ = self.places(self.adapter(features) + noise)
        seen = map_.detach() if stop else map_
        found = self.image(torch.cat([features + noise, seen], dim=1))
        pooled = [values for maps in (found, seen) for values in (maps.amax(dim=(2, 3)), maps.mean(dim=(2, 3)))]
        with torch.autocast(features.device.type, enabled=False):  # as bf16 numbers many scores would be equal
            score = self.score(torch.cat(pooled, dim=1).float())
        return map_[:, 0], score[:, 0]
