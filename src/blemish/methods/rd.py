"""RD: a student that decodes the teacher's features from a narrow code; it has only learned to decode normal ones.

Idea: a frozen teacher sees the image. A bottleneck joins its features to one small code, and a decoder, the teacher in
mirror image, gives the features back, deepest first. Trained on good images, it gives back good features also where
the image holds something else, and there teacher and student differ.
Loss: 1 - cosine of teacher and student features, summed over the levels: one cosine over the whole map, as the released
code (github.com/hq-deng/RD4AD) computes it (``loss="layer"``); the paper's takes one a location (``loss="vector"``).
Score: the map is 1 - cosine at every location, brought to the size of the image (bilinear, ``align_corners=True``),
summed over the levels and smoothed; an image's score is its highest value.
Other backbones than ResNets follow the same scheme (our reading). All differences: docs/methods/rd.md.

Deng, Li: Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import DistillationLoss, StudentConfig
from blemish.ops.cosine import LOSSES, anomaly_map, map_score
from blemish.ops.residual import initialise
from blemish.ops.reverse import build_reverse_student
from blemish.run import Run, Step, epochs


@dataclass(frozen=True)
class RDConfig(StudentConfig):
    """The released defaults, for whatever backbone."""

    loss: DistillationLoss = "layer"


class RD(Method):
    """Reverse distillation: ``student`` maps the teacher's feature maps to its own."""

    Config = RDConfig
    config: RDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: RDConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = build_reverse_student(backbone, size)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, loss_of, images = self.config, LOSSES[self.config.loss], training.normal
        initialise(self.student, run.generator("student"))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)

        def loss_at(*features: Tensor) -> list[Tensor]:
            with run.precision.autocast(run.device):
                student = self.student(features)
            return [loss_of(features, student)]

        step = Step(run, [optimiser], loss_at)
        for epoch in epochs(run, "rd", {"student": self.student, "optimiser": optimiser}, config, len(images)):
            self.student.train()
            for indices in epoch.batches():
                ((loss,),) = step(teacher(images.batch(indices)))
                epoch.log(loss=loss)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(features)
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))
