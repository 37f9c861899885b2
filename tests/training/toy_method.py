"""A method that learns little at once, for the tests of training. Not a test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.run import Run, epochs

BEST = 6
Step = tuple[str, int]


@dataclass(frozen=True)
class ToyConfig:
    layers: tuple[int, ...] = (2,)
    epochs: int = 2
    steps: int | None = None
    batch_size: int = 4


class Toy(Method):
    """Knows the good images' mean, seen clearly at the age of ``BEST`` epochs alone, and trains a 1x1 convolution."""

    Config = ToyConfig
    regimes = frozenset({"clean"})
    config: ToyConfig
    steps: ClassVar[list[Step]] = []  # each step taken: its part of the work and its epoch
    stop: ClassVar[Step | None] = None  # in this epoch's second step the user presses Ctrl-C

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: ToyConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = nn.Conv2d(backbone.levels[0].channels, backbone.levels[0].channels, 1)
        self.age = nn.Linear(1, 1, bias=False)
        self.normal = nn.Parameter(torch.zeros(3, *size), requires_grad=False)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        nn.init.zeros_(self.age.weight)
        self.normal.copy_(training.normal.batch(range(len(training.normal))).images.mean(dim=0))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=0.01)
        keep = {"student": self.student, "age": self.age, "optimiser": optimiser}
        for epoch in epochs(run, "toy", keep, self.config, len(training.normal)):
            for indices in epoch.batches():
                self.steps.append((run.scope, epoch.number))
                if self.steps[-2:] == [self.stop, self.stop]:
                    raise KeyboardInterrupt
                (features,) = teacher(training.normal.batch(indices))
                loss = (self.student(features + torch.randn(features.shape)) - features).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                epoch.log(loss=loss.detach())
            with torch.no_grad():
                self.age.weight.add_(1)

    def predict(self, images: Tensor) -> Prediction:
        (features,) = self.backbone(images)
        error = (self.student(features) - features).square().mean(dim=(1, 2, 3))
        clear = (images - self.normal).abs().mean(dim=1)
        haze = 0.5 * abs(math.log(float(self.age.weight) / BEST))
        drops = torch.Generator().manual_seed(int(1000 * images.sum()) % 2**31)
        map_ = clear + haze * torch.rand(clear.shape, generator=drops)
        score = clear.mean(dim=(1, 2)) + haze * torch.rand(len(images), generator=drops)
        return Prediction(map_, score + 1e-3 * error)
