"""NKD: a student that sees the image as its teacher does, and has only learned to agree on normal images.

Idea: "normal knowledge distillation", in the same direction. A frozen teacher trained on ImageNet and a student of the
same architecture, untaught, both look at the image. The student learns to give the teacher's features at several
levels, on good images only; where the image holds something else, the two differ.

Signal: 1 - cosine of teacher and student features, summed over the levels.

Score: the map is 1 - cosine at every location, brought to the size of the image (bilinear, ``align_corners=True``),
summed over the levels and smoothed; an image's score is its highest value.

Paper: NKD is a baseline of a supplement on FMAM that gives its results and not its settings, and no code was found.
Our reading: all but the student is reverse distillation's, so that the two compare: levels, optimiser, length, map,
score. The loss takes one cosine a location (``loss="vector"``), which fits the supplement's figures best;
``loss="layer"`` takes one a level and image. STFPM's squared distance of normalised features is twice this
``vector`` loss; its product of maps in place of the sum is not offered. After training, one more pass over the good
images takes the statistics of the student's BatchNorm anew: without it some epochs end far worse than their neighbours.

Compare Wang, Han, Ding, Xu: Student-Teacher Feature Pyramid Matching, BMVC 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blemish.backbones.student import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.cosine import LOSSES, Loss, anomaly_map
from blemish.ops.norms import precise_batchnorm
from blemish.run import Run, derive_seed


@dataclass(frozen=True)
class NKDConfig:
    """Reverse distillation's, but for the loss (our reading).

    Attributes:
        layers: stages that are distilled.
        loss: one cosine a location (``vector``) or a whole map (``layer``).
        epochs: passes over the good images.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: images a step.
        learning_rate: Adam's.
        betas: Adam's.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3)
    loss: Loss = "vector"
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class NKD(Method):
    """Same-direction distillation. See the top of this file.

    Attributes:
        student: images to feature maps like the teacher's.
        precision: how the student computes; None to choose by the device.
    """

    Config = NKDConfig
    regimes = frozenset({"clean"})
    config: NKDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: NKDConfig) -> None:
        """Build the student, untaught.

        Raises:
            ConfigError: the images leave the deepest level a single cell.
        """
        super().__init__(backbone, size, config)
        self.student = build_student(backbone, size)

    @classmethod
    def gains_from_bf16(cls, backbone: Backbone, config: NKDConfig) -> bool:
        """As its teacher, whose architecture the student has."""
        return backbone.dense

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Teach the student to see normal images as the teacher does."""
        config, loss_of = self.config, LOSSES[self.config.loss]
        self.student.reset(derive_seed(run.seed, "student"))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
        length = run.length(epochs=config.epochs, steps=config.steps)
        keep = {"student": self.student, "optimiser": optimiser}
        count, size = len(training.normal), config.batch_size
        for epoch in run.epochs(length, images=count, batch_size=size, state=keep, title="nkd"):
            self.student.train()
            for indices in epoch.batches():
                batch = training.normal.batch(indices)
                features = teacher(batch)
                with run.precision.autocast(run.device):
                    student = self.student(batch.images.to(run.device))
                loss = loss_of(features, student)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                epoch.log(loss=loss.detach())

    def finalize(self) -> None:
        """Take the statistics of the student's BatchNorm anew, in one pass over the images it learns from."""
        if self.learning is not None:
            training, run = self.learning
            precise_batchnorm(self.student, training.normal, self.config.batch_size, run)
        self.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(images)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        map_ = anomaly_map(features, student, size, self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))
