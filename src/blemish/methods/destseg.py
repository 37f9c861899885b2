"""DeSTSeg: a student gives clean features of spoiled images; a small network learns which disagreements are defects.

Idea: as a student that sees what its teacher sees, but the student is given the image with a made-up defect and is to
give the teacher's features of the image without: it learns to repair. Then it is fixed, and a segmenting network learns
from the products of both networks' features, place by place, where the made-up defects are.
Loss: 1 - cosine at every location for the student, for the first fifth of the training; then the focal loss and the
absolute error of the segmentation.
Score: the map is the segmentation, enlarged and not smoothed; an image's score is the mean of its 100 highest values.
The student is the backbone's architecture, one more stage below it, and a decoder of basic blocks: for a ResNet18
the released one (github.com/apple/ml-destseg; of other backbones our reading). The textures are not the paper's
(``ops/textures.py``), and nothing is turned. All differences: docs/methods/destseg.md.

Zhang, Li, Li, Huang, Shan, Chen: DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection, CVPR
2023.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.config import Count, Layers, Rate, Several, Share, Sigma, Steps, Width
from blemish.ops.cosine import vector_loss
from blemish.ops.focal import focal_loss
from blemish.ops.passes import check_number
from blemish.ops.residual import BlockKind, convolutions, initialise, initialise_uniform, residual_stage
from blemish.ops.reverse import MIN_WIDTH
from blemish.ops.smoothing import upscale
from blemish.ops.textures import Textures, with_textures
from blemish.run import Run, derive_seed, epochs

TOP = 100  # highest values of a map whose mean is the image's score
GAMMA = 4.0  # of the focal loss
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of gradient descent
BASIC = BlockKind(bottleneck=False)


@dataclass(frozen=True)
class DeSTSegConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages whose features the student gives back")] = (1, 2, 3)
    network_width: Annotated[Width, Field(description="inside the segmenting network")] = 256
    epochs: Annotated[Count, Field(description="passes over the images, where steps is null")] = 100
    steps: Steps = 5000
    student_share: Annotated[
        Share, Field(description="of the training, the first part, in which the student learns")
    ] = 0.2
    batch_size: Annotated[Several, Field(description="images a step, or all there are")] = 32
    learning_rate: Annotated[Rate, Field(description="gradient descent's, of the student")] = 0.4
    body_rate: Annotated[Rate, Field(description="of the segmenting network's residual blocks")] = 0.1
    head_rate: Annotated[Rate, Field(description="of what follows them")] = 0.01
    sigma: Sigma = 0.0


class DeSTSeg(Method):
    """``student`` repairs, ``body`` and ``head`` segment."""

    Config = DeSTSegConfig
    has_schedule = True
    config: DeSTSegConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DeSTSegConfig) -> None:
        super().__init__(backbone, size, config)
        seen = sum(level.channels for level in backbone.levels)
        self.student = DenoisingStudent(backbone, size)
        self.body, self.head = residual_stage(seen, config.network_width, 2, BASIC, "same"), Head(config.network_width)
        self.to(memory_format=torch.channels_last)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        check_number("destseg", images, 2, "how whole images differ")
        textures = Textures(run)
        self.student.initialise(run)
        segments = nn.ModuleList([self.body, self.head])
        generator = run.generator("segmenting network")
        initialise(self.body, generator)  # as released, the head has other first values than the body
        initialise_uniform(self.head, generator)
        rates = {"student": config.learning_rate, "body": config.body_rate, "head": config.head_rate}
        networks = {name: getattr(self, name) for name in rates}
        optimisers = {
            f"{name}'s optimiser": torch.optim.SGD(
                networks[name].parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY
            )
            for name, rate in rates.items()
        }
        per_epoch = math.ceil(len(images) / config.batch_size)
        repairing = config.student_share * (config.steps or config.epochs * per_epoch)
        for epoch in epochs(run, "destseg", {**networks, **optimisers}, config, len(images)):
            order, draws = epoch.cycle(len(images), config.batch_size, "order of images"), epoch.generator("defects")
            for step in epoch.steps():
                repairs = (epoch.number - 1) * per_epoch + step < repairing
                self.student.train(repairs), segments.train(not repairs)
                batch = images.batch(next(order))
                spoiled, masks = with_textures(batch.images, textures, draws, alter=False)
                with run.precision.autocast(run.device), torch.set_grad_enabled(repairs):
                    student = self.student(spoiled.to(run.device))
                if repairs:
                    loss = vector_loss(teacher(batch), student) * len(masks)  # the sum over a batch, as released
                else:
                    with run.precision.autocast(run.device):
                        logits = self._segmented(teacher(spoiled), student)
                    shrunk = F.interpolate(masks[:, None].float(), size=logits.shape[-2:], mode="bilinear")
                    targets = (shrunk[:, 0] >= 0.5).float().to(run.device)
                    loss = focal_loss(logits, targets, GAMMA) + F.l1_loss(logits.sigmoid(), targets)
                # An optimiser steps over a network without gradients.
                told: dict[str, Any] = {"student" if repairs else "segmented": loss}
                epoch.descend(loss, *optimisers.values(), **told)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            logits = self._segmented(features, self.student(images))
        map_ = upscale(logits.sigmoid(), images.shape[-2:], self.config.sigma)
        highest = map_.flatten(1).topk(TOP, dim=1)
        return Prediction(map_, highest.values.mean(dim=1))

    def _segmented(self, features: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Logits ``b y x`` on the first level's grid."""
        grid = features[0].shape[-2:]
        products = [-F.normalize(t) * F.normalize(s.float()) for t, s in zip(features, student, strict=True)]
        joined = torch.cat([F.interpolate(map_, size=grid, mode="bilinear") for map_ in products], dim=1)
        return self.head(self.body(joined))[:, 0].float()  # type: ignore[no-any-return]


class DenoisingStudent(nn.Module):
    """``b 3 h w`` images to maps of the teacher's shapes, shallowest first, through a grid half as fine as the last."""

    def __init__(self, backbone: Backbone, size: tuple[int, int]) -> None:
        super().__init__()
        check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
        deepest = backbone.levels[-1].channels
        ins = 2 * deepest
        self.encoder = build_student(backbone, size)
        self.code = residual_stage(deepest, ins, 2, BASIC, "down")
        self.stages, self.heads = nn.ModuleList([residual_stage(ins, ins, 2, BASIC, "same")]), nn.ModuleList()
        for level in reversed(backbone.levels):
            width = max(level.channels, MIN_WIDTH)
            self.stages.append(residual_stage(ins, width, 2, BASIC, "same"))
            is_read_off = level.signed or width != level.channels  # a block ends in a ReLU
            head = nn.Sequential(nn.Conv2d(width, level.channels, 1), nn.Identity() if level.signed else nn.ReLU())
            self.heads.append(head if is_read_off else nn.Identity())
            ins = width

    def initialise(self, run: Run) -> None:
        """The encoder's first values are by its architecture's rule, as released."""
        initialise(nn.ModuleList([self.code, self.stages, self.heads]), run.generator("student"))
        self.encoder.reset(derive_seed(run.seed, "encoder"))

    def forward(self, images: Tensor) -> list[Tensor]:
        seen = self.encoder(images)
        maps, code = [], self.stages[0](self.code(seen[-1]))
        for stage, head, like in zip(self.stages[1:], self.heads, reversed(seen)):
            code = stage(F.interpolate(code, size=like.shape[-2:], mode="bilinear"))
            maps.append(head(code))
        return maps[::-1]


class Head(nn.Module):
    """Atrous spatial pyramid pooling, one convolution more, and a logit for every place: ``b c y x`` to ``b 1 y x``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPPConv, ASPPPooling  # takes a second to import

        self.pyramid = nn.ModuleList(ASPPConv(channels, channels, reach) for reach in (6, 12, 18))
        self.pyramid.append(ASPPPooling(channels, channels))
        self.joined = convolutions([4 * channels, channels, channels], ["same"] * 2, "batch", nn.ReLU())
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        joined = torch.cat([part(features) for part in self.pyramid], dim=1)
        return self.out(self.joined(joined))  # type: ignore[no-any-return]
