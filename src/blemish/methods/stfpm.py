"""STFPM: a student of the teacher's architecture agrees with it on good images; where all levels differ, it is bad.

Idea: as NKD, which came after it: a frozen teacher and an untaught student of the same architecture see the image, and
the student learns to give the teacher's features, on good images only.
Loss: squared distance of teacher and student features of length 1, one a location, summed over the levels.
Score: the map is that distance, each level brought to a quarter of the image's grid, multiplied over the levels,
enlarged and not smoothed; an image's score is its highest value.
As released: stochastic gradient descent, a fifth of the good images held out, and the weights kept that were best on
them. The student is whatever the backbone is, its first weights by timm's rule for that (our reading; the paper's is a
ResNet18). Differences: docs/methods/stfpm.md.

Wang, Han, Ding, Xu: Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021.
"""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Weight
from blemish.ops.cosine import location_cosines, vector_loss
from blemish.ops.passes import hold_out
from blemish.ops.smoothing import upscale
from blemish.run import Run, Step, derive_seed, epochs


@dataclass(frozen=True)
class STFPMConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages whose features the student gives back")] = (1, 2, 3)
    epochs: Annotated[Count, Field(description="passes over the images")] = 100
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 32
    learning_rate: Annotated[Rate, Field(description="of gradient descent")] = 0.4
    momentum: Annotated[float, Field(ge=0, lt=1, description="of gradient descent")] = 0.9
    weight_decay: Annotated[Weight, Field(description="of gradient descent")] = 1e-4
    holdout: Annotated[
        float, Field(ge=0, lt=1, description="share of the good parts that chooses the epoch; 0: the last one stays")
    ] = 0.2
    sigma: Sigma = 0.0


class STFPM(Method):
    """``student`` holds the best weights so far, by the images held out."""

    Config = STFPMConfig
    bf16 = "dense"
    config: STFPMConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: STFPMConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = build_student(backbone, size)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        held, learned = hold_out(images, config.holdout, run)
        self.student.reset(derive_seed(run.seed, "student"))
        learner, lowest = copy.deepcopy(self.student), torch.tensor(torch.inf, device=run.device)
        learner.register_buffer("lowest", lowest)  # loss on the images held out: a checkpoint holds it, too
        optimiser = torch.optim.SGD(
            learner.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
        )
        state = {"student": self.student, "learner": learner, "optimiser": optimiser}

        def loss_at(seen: Tensor, *features: Tensor) -> list[Tensor]:
            """|t - s|^2 of vectors of length 1, which is twice 1 - cosine: mean over places, sum over levels."""
            with run.precision.autocast(run.device):
                found = learner(seen)
            return [2 * vector_loss(features, found)]

        step = Step(run, [optimiser], loss_at)
        for epoch in epochs(run, "stfpm", state, config, len(learned)):
            learner.train()
            for indices in epoch.batches():
                batch = images.batch([learned[i] for i in indices])
                ((loss,),) = step([batch.images.to(run.device), *teacher(batch)])
                epoch.log(loss=loss)
            learner.eval()
            with torch.no_grad():
                batches = in_batches(images, config.batch_size, held)
                losses = [loss_at(b.images.to(run.device), *teacher(b))[0] * len(b.keys) for b in batches]
            reached = torch.stack(losses).sum() if losses else torch.tensor(-float(epoch.number))  # none held: the last
            if reached < lowest:
                lowest.copy_(reached)
                self.student.load_state_dict(learner.state_dict(), strict=False)  # all but ``lowest``

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(images)
        height, width = images.shape[-2:]
        quarter = -(-height // 4), -(-width // 4)
        levels = [2 - 2 * location_cosines(t, s) for t, s in zip(features, student, strict=True)]
        product = torch.stack([upscale(level, quarter, sigma=0) for level in levels]).prod(dim=0)
        map_ = upscale(product, (height, width), self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))
