"""NKD: a student that sees the image as its teacher does, and has only learned to agree on normal images.

Idea: distillation in the same direction. A frozen teacher trained on ImageNet and a student of the same architecture,
untaught, both look at the image. The student learns to give the teacher's features at several levels, on good images
only; where the image holds something else, the two differ.
Loss: 1 - cosine of teacher and student features, one a location, summed over the levels (``loss="vector"``).
Score: the map is 1 - cosine at every location, brought to the size of the image, summed over the levels and smoothed;
an image's score is its highest value.
The baseline of a supplement on FMAM that gives results, no settings and no code: all but the loss is reverse
distillation's (our reading). After training, BatchNorm's statistics are taken anew, without which some epochs end far
worse than their neighbours. More: docs/methods/nkd.md.

Compare Wang, Han, Ding, Xu: Student-Teacher Feature Pyramid Matching, BMVC 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import DistillationLoss, StudentConfig
from blemish.ops.cosine import LOSSES, anomaly_map, map_score
from blemish.ops.norms import precise_batchnorm
from blemish.run import Run, Step, derive_seed, epochs


@dataclass(frozen=True)
class NKDConfig(StudentConfig):
    """Reverse distillation's, but for the loss (our reading)."""

    loss: DistillationLoss = "vector"


class NKD(Method):
    """Same-direction distillation: ``student`` maps images to feature maps like the teacher's."""

    Config = NKDConfig
    bf16 = "dense"
    config: NKDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: NKDConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = build_student(backbone, size)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, loss_of, images = self.config, LOSSES[self.config.loss], training.normal
        self.student.reset(derive_seed(run.seed, "student"))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)

        def loss_at(seen: Tensor, *features: Tensor) -> list[Tensor]:
            with run.precision.autocast(run.device):
                student = self.student(seen)
            return [loss_of(features, student)]

        step = Step(run, [optimiser], loss_at)
        for epoch in epochs(run, "nkd", {"student": self.student, "optimiser": optimiser}, config, len(images)):
            self.student.train()
            for indices in epoch.batches():
                batch = images.batch(indices)
                ((loss,),) = step([batch.images.to(run.device), *teacher(batch)])
                epoch.log(loss=loss)

    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """Take the statistics of the student's BatchNorm anew, in one pass over the images it learns from."""
        precise_batchnorm(self.student, training.normal, self.config.batch_size, run)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(images)
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))
