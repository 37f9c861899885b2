"""DRA: four heads that each learn another notion of bad: known, pretended, unlike reference images, not like good ones.

Idea: one head on the known-bad images alone finds their like and misses the rest. So a second one learns from good
images into which a piece of another was pasted, a third sees how features differ from those of a few reference images,
and a fourth learns what whole good images have in common.
Loss: DevNet's, the sum over the heads: good scores near zero, bad ones five deviations above; the fourth head's the
other way round.
Score: the sum of the first three, each the mean of its map's highest tenth, less the fourth; averaged over the levels.
The map is the sum of the first three's.
Released (github.com/Choubo/DRA) is a ResNet18 that learns along; these are its heads on the frozen backbone's
features, standardised on good images, for a comparison on equal features (our reading, from the paper). All
differences: docs/methods/dra.md.

Ding, Pang, Shen: Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection, CVPR 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Width
from blemish.ops.deviation import REFERENCES, deviation_loss, top_mean_of_maps
from blemish.ops.norms import Standardisation
from blemish.ops.residual import initialise_uniform
from blemish.ops.smoothing import upscale
from blemish.run import Epoch, Run, epochs

EPOCH_STEPS = 20  # that the released code calls an epoch
DROP_EVERY = 10  # epochs, after which the learning rate is a tenth of what it was
WEIGHT_DECAY, CLIP = 1e-5, 1.0  # Adam's, and the largest norm of the gradient
TOP = 0.1  # share of the places, of the highest scores, whose mean is the score
PIECES = (1 / 8, 1 / 2)  # of the image's sides: how long those of a piece are that is pasted


@dataclass(frozen=True)
class DRAConfig:
    """The released training, on frozen features."""

    layers: Annotated[Layers, Field(description="stages whose places are scored")] = (2, 3)
    references: Annotated[Count, Field(description="good images whose mean features others are compared with")] = 5
    hidden: Annotated[Width, Field(description="numbers inside the head that sees whole images")] = 256
    epochs: Annotated[Count, Field(description="of 20 steps each")] = 30
    steps: Steps = None
    batch_size: Annotated[
        int, Field(ge=4, description="images a step: half good, a quarter of them with a piece pasted, a quarter bad")
    ] = 48
    learning_rate: Annotated[Rate, Field(description="Adam's, a tenth of it after every ten epochs")] = 2e-3
    sigma: Sigma = 4.0


class DRA(Method):
    """``heads``, one set a level, read features that ``scale`` standardises; ``reference_N``: ``cells channels``."""

    Config = DRAConfig
    regimes = frozenset({"weak"})
    config: DRAConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DRAConfig) -> None:
        super().__init__(backbone, size, config)
        widths = [level.channels for level in backbone.levels]
        self.scale = Standardisation(widths)
        self.heads = nn.ModuleList(Heads(width, config.hidden) for width in widths)
        for level, width in enumerate(widths):
            self.register_buffer(f"reference_{level}", torch.empty(0, width))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, normal, quarter = self.config, training.normal, self.config.batch_size // 4
        initialise_uniform(self.heads, run.generator("heads"))
        self.scale.learn(teacher(batch) for batch in in_batches(normal, config.batch_size))
        chosen = normal.batch(run.permutation(len(normal), "references")[: config.references])
        for level, map_ in enumerate(self.scale(teacher(chosen))):
            setattr(self, f"reference_{level}", map_.mean(dim=0).flatten(1).T.contiguous())
        rate, parameters = config.learning_rate, self.heads.parameters()
        optimiser = torch.optim.Adam(parameters, lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
        for epoch in epochs(run, "dra", {"heads": self.heads, "optimiser": optimiser}, config, epoch_steps=EPOCH_STEPS):
            self.heads.train()
            optimiser.param_groups[0]["lr"] = rate * 0.1 ** ((epoch.number - 1) // DROP_EVERY)
            good = epoch.cycle(len(normal), 2 * quarter, "order of images")
            patched = epoch.cycle(len(normal), quarter, "order of images with a piece pasted")
            bad = epoch.cycle(len(training.anomalous), quarter, "order of bad images")
            pieces, draws = epoch.generator("pieces"), epoch.generator("deviations")
            for _ in epoch.steps():
                pasted = with_pieces(normal.batch(next(patched)).images, pieces)
                batches = normal.batch(next(good)), training.anomalous.batch(next(bad)), pasted
                given = [teacher(batch) for batch in batches]
                features, counts = [torch.cat(level) for level in zip(*given)], [len(part[0]) for part in given]
                loss = self._loss(features, counts, torch.randn(REFERENCES, generator=draws), epoch)
                epoch.descend(loss, optimiser, clip=CLIP)

    def predict(self, images: Tensor) -> Prediction:
        scores, maps = self._seen(self.backbone(images))
        large = torch.stack([upscale(map_, images.shape[-2:], self.config.sigma) for head in maps for map_ in head])
        return Prediction(large.sum(dim=0) / len(self.heads), scores[0] + scores[1] + scores[2] - scores[3])

    def _seen(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Each head's score ``b``, and of the first three the maps ``b y x``, a level each."""
        found = []
        for level, (heads, map_) in enumerate(zip(self.heads, self.scale(features), strict=True)):
            found.append(heads(map_, getattr(self, f"reference_{level}").T.reshape(1, *map_.shape[1:])))
        *maps, whole = ([*levels] for levels in zip(*found))
        return [*(top_mean_of_maps(head, TOP) for head in maps), torch.stack(whole).mean(dim=0)], maps

    def _loss(self, features: Sequence[Tensor], counts: Sequence[int], draws: Tensor, epoch: Epoch) -> Tensor:
        """Of as many good images, bad ones and good ones with a piece pasted as ``counts`` says, in that order."""
        scores, _ = self._seen(features)
        good, bad, pasted = zip(*(torch.split(score, list(counts)) for score in scores))
        draws = draws.to(scores[0].device)
        terms = {
            "known": deviation_loss(good[0], bad[0], draws),
            "pasted": deviation_loss(good[1], pasted[1], draws),
            "unlike": deviation_loss(good[2], torch.cat([bad[2], pasted[2]]), draws),
            "whole": deviation_loss(torch.cat([bad[3], pasted[3]]), good[3], draws),
        }
        loss = torch.stack(list(terms.values())).sum()
        epoch.log(loss=loss, **terms)
        return loss


class Heads(nn.Module):
    """Of one level: features ``b c y x`` and the references' ``1 c y x`` to three maps ``b y x`` and a number ``b``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.known, self.pasted = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.unlike = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 1, 1)
        )
        self.whole = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor, reference: Tensor) -> list[Tensor]:
        maps = [self.known(features), self.pasted(features), self.unlike(reference - features)]
        return [*(map_[:, 0].abs() for map_ in maps), self.whole(features.mean(dim=(2, 3)))[:, 0].abs()]


def with_pieces(images: Tensor, generator: torch.Generator) -> Tensor:
    """Copies of ``b 3 h w`` images, each with a rectangle cut from the next image, the last's from the first.

    Its sides are drawn between ``PIECES`` of the image's, and where it is cut and where it goes apart from each other.
    """

    def piece(length: int) -> list[slice]:
        share, *places = torch.rand(3, generator=generator).tolist()
        side = max(1, round(length * (PIECES[0] + (PIECES[1] - PIECES[0]) * share)))
        starts = [int(place * (length - side + 1)) for place in places]
        return [slice(start, start + side) for start in starts]

    pasted = images.clone()
    for image, other in zip(pasted, images.roll(-1, dims=0)):
        (cut_rows, rows), (cut_columns, columns) = (piece(length) for length in image.shape[1:])
        image[:, rows, columns] = other[:, cut_rows, cut_columns]
    return pasted
