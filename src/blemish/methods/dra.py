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
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Weight, Width
from blemish.ops.deviation import REFERENCES, deviation_loss, top_mean
from blemish.ops.norms import Standardisation
from blemish.ops.residual import initialise_uniform
from blemish.ops.smoothing import upscale
from blemish.run import Epoch, Run, epochs

EPOCH_STEPS = 20  # that the released code calls an epoch
DROP_EVERY = 10  # epochs, after which the learning rate is a tenth of what it was
PIECES = (1 / 8, 1 / 2)  # of the image's sides: how long those of a piece are that is pasted


@dataclass(frozen=True)
class DRAConfig:
    """The released training, on frozen features."""

    layers: Annotated[Layers, Field(description="stages whose places are scored")] = (2, 3)
    references: Annotated[Count, Field(description="good images whose mean features others are compared with")] = 5
    hidden: Annotated[Width, Field(description="numbers inside the head that sees whole images")] = 256
    margin: Annotated[Rate, Field(description="deviations that bad images are to stand above the mean")] = 5.0
    top: Annotated[
        float, Field(gt=0, le=1, description="share of the places, of the highest scores, whose mean is the score")
    ] = 0.1
    epochs: Annotated[Count, Field(description="of 20 steps each")] = 30
    steps: Steps = None
    batch_size: Annotated[
        int, Field(ge=4, description="images a step: half good, a quarter of them with a piece pasted, a quarter bad")
    ] = 48
    learning_rate: Annotated[Rate, Field(description="Adam's, a tenth of it after every ten epochs")] = 2e-3
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5
    clip: Annotated[Rate, Field(description="largest norm of the gradient")] = 1.0
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

    @classmethod
    def learns_from_anomalous(cls, config: DRAConfig) -> bool:
        return True

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, normal, quarter = self.config, training.normal, self.config.batch_size // 4
        initialise_uniform(self.heads, run.generator("heads"))
        self.scale.learn(teacher(batch) for batch in in_batches(normal, config.batch_size))
        chosen = normal.batch(run.permutation(len(normal), "references")[: config.references])
        for level, map_ in enumerate(self.scale(teacher(chosen))):
            setattr(self, f"reference_{level}", map_.mean(dim=0).flatten(1).T.contiguous())
        optimiser = torch.optim.Adam(
            self.heads.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        state = {"heads": self.heads, "optimiser": optimiser}
        for epoch in epochs(run, "dra", state, config, epoch_steps=EPOCH_STEPS):
            self.heads.train()
            optimiser.param_groups[0]["lr"] = config.learning_rate * 0.1 ** ((epoch.number - 1) // DROP_EVERY)
            good = epoch.cycle(len(normal), 2 * quarter, "order of images")
            patched = epoch.cycle(len(normal), quarter, "order of images with a piece pasted")
            bad = epoch.cycle(len(training.anomalous), quarter, "order of bad images")
            pieces, draws = epoch.generator("pieces"), epoch.generator("deviations")
            for _ in epoch.steps():
                pasted = with_pieces(normal.batch(next(patched)).images, pieces)
                given = [
                    teacher(normal.batch(next(good))),
                    teacher(training.anomalous.batch(next(bad))),
                    teacher(pasted),
                ]
                features = [torch.cat(level) for level in zip(*given, strict=True)]
                counts = [len(part[0]) for part in given]
                loss = self._loss(features, counts, torch.randn(REFERENCES, generator=draws), epoch)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.heads.parameters(), config.clip)
                optimiser.step()

    def predict(self, images: Tensor) -> Prediction:
        scores, maps = self._seen(self.backbone(images))
        large = [upscale(map_, images.shape[-2:], self.config.sigma) for head in maps for map_ in head]
        return Prediction(
            torch.stack(large).sum(dim=0) / len(self.heads), torch.stack(scores[:3]).sum(dim=0) - scores[3]
        )

    def _seen(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Each head's score ``b``, and of the first three the maps ``b y x``, a level each."""
        maps: list[list[Tensor]] = [[], [], []]
        whole = []
        for level, (heads, map_) in enumerate(zip(self.heads, self.scale(features), strict=True)):
            reference = getattr(self, f"reference_{level}").T.reshape(1, *map_.shape[1:])
            *places, image = heads(map_, reference)
            whole.append(image)
            for head, found in zip(maps, places, strict=True):
                head.append(found)
        return [*(top_mean(head, self.config.top) for head in maps), torch.stack(whole).mean(dim=0)], maps

    def _loss(self, features: Sequence[Tensor], counts: Sequence[int], draws: Tensor, epoch: Epoch) -> Tensor:
        """Of as many good images, bad ones and good ones with a piece pasted as ``counts`` says, in that order."""
        scores, _ = self._seen(features)
        (good, bad, pasted), margin = zip(*(score.split(list(counts)) for score in scores)), self.config.margin
        draws = draws.to(scores[0].device)
        terms = {
            "known": deviation_loss(good[0], bad[0], draws, margin),
            "pasted": deviation_loss(good[1], pasted[1], draws, margin),
            "unlike": deviation_loss(good[2], torch.cat([bad[2], pasted[2]]), draws, margin),
            "whole": deviation_loss(torch.cat([bad[3], pasted[3]]), good[3], draws, margin),
        }
        loss = torch.stack(list(terms.values())).sum()
        epoch.log(loss=loss.detach(), **{name: term.detach() for name, term in terms.items()})
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
    pasted = images.clone()
    for index, image in enumerate(pasted):
        places = []
        for length in image.shape[1:]:
            share, cut, put = torch.rand(3, generator=generator).tolist()
            side = max(1, round(length * (PIECES[0] + (PIECES[1] - PIECES[0]) * share)))
            places.append(
                [
                    slice(start, start + side)
                    for start in (int(cut * (length - side + 1)), int(put * (length - side + 1)))
                ]
            )
        (from_rows, to_rows), (from_columns, to_columns) = places
        image[:, to_rows, to_columns] = images[(index + 1) % len(images)][:, from_rows, from_columns]
    return pasted
