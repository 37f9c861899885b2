"""RD: a student that decodes the teacher's features from a narrow code; it has only learned to decode normal ones.

Idea: a frozen teacher sees the image. A bottleneck joins its features to one small code, and a decoder, the teacher in
mirror image, gives the features back, deepest first. Trained on good images, it gives back good features also where
the image holds something else, and there teacher and student differ.

Signal: 1 - cosine of teacher and student features, summed over the levels.

Score: the map is 1 - cosine at every location, brought to the size of the image (bilinear, ``align_corners=True``),
summed over the levels and smoothed; an image's score is its highest value.

Paper and released code (github.com/hq-deng/RD4AD):
- The paper's loss takes one cosine a location (``loss="vector"``), the code one a level and image, over the whole map
  as one vector (``loss="layer"``, the default: what the published figures come from).
- A convolution that the code declares and never uses is left out; the teacher's unused last stage is not computed.
- Backbones other than ResNets follow the same scheme, see ``blemish.ops.reverse`` (our reading).
- The published figures are of the last of 200 epochs; so are ours.

Deng, Li: Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.cosine import LOSSES, Loss, anomaly_map
from blemish.ops.residual import initialise
from blemish.ops.reverse import build_reverse_student
from blemish.run import Run


@dataclass(frozen=True)
class RDConfig:
    """The released defaults, for whatever backbone.

    Attributes:
        layers: stages that are distilled, without a gap.
        loss: ``layer`` as released, ``vector`` as written.
        epochs: passes over the good images.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: images a step.
        learning_rate: Adam's.
        betas: Adam's.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3)
    loss: Loss = "layer"
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class RD(Method):
    """Reverse distillation. See the top of this file.

    Attributes:
        student: the teacher's feature maps to its own.
        precision: how the student computes; None to choose by the device.
    """

    Config = RDConfig
    regimes = frozenset({"clean"})
    config: RDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: RDConfig) -> None:
        """Build the student, untaught.

        Raises:
            ConfigError: the levels leave a gap.
        """
        super().__init__(backbone, size, config)
        self.student = build_reverse_student(backbone, size)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Teach the student to give back the features of the normal images."""
        config, loss_of = self.config, LOSSES[self.config.loss]
        initialise(self.student, run.generator("student"))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
        length = run.length(epochs=config.epochs, steps=config.steps)
        keep = {"student": self.student, "optimiser": optimiser}
        count, size = len(training.normal), config.batch_size
        for epoch in run.epochs(length, images=count, batch_size=size, state=keep, title="rd"):
            self.student.train()
            for indices in epoch.batches():
                features = teacher(training.normal.batch(indices))
                with run.precision.autocast(run.device):
                    student = self.student(features)
                loss = loss_of(features, student)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                epoch.log(loss=loss.detach())
        self.student.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(features)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        map_ = anomaly_map(features, student, size, self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))
