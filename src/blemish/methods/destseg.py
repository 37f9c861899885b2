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
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.config import Count, Layers, Rate, Share, Sigma, Steps, Weight, Width
from blemish.ops.cosine import vector_loss
from blemish.ops.focal import focal_loss
from blemish.ops.passes import check_number
from blemish.ops.residual import BlockKind, convolutions, initialise, residual_stage, untrained
from blemish.ops.reverse import MIN_WIDTH
from blemish.ops.smoothing import upscale
from blemish.ops.textures import Textures, with_textures
from blemish.run import Run, derive_seed, epochs

TOP = 100  # highest values of a map whose mean is the image's score
BASIC = BlockKind(bottleneck=False)


@dataclass(frozen=True)
class DeSTSegConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages whose features the student gives back")] = (1, 2, 3)
    channels: Annotated[Width, Field(description="inside the segmenting network")] = 256
    epochs: Annotated[Count, Field(description="passes over the images, where steps is null")] = 100
    steps: Steps = 5000
    student_share: Annotated[
        Share, Field(description="of the training, the first part, in which the student learns")
    ] = 0.2
    batch_size: Annotated[int, Field(ge=2, description="images a step, or all there are")] = 32
    learning_rate: Annotated[Rate, Field(description="gradient descent's, of the student")] = 0.4
    body_rate: Annotated[Rate, Field(description="of the segmenting network's residual blocks")] = 0.1
    head_rate: Annotated[Rate, Field(description="of what follows them")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, description="of gradient descent")] = 0.9
    weight_decay: Annotated[Weight, Field(description="of gradient descent")] = 1e-4
    gamma: Annotated[Weight, Field(description="of the focal loss")] = 4.0
    sigma: Sigma = 0.0


class DeSTSeg(Method):
    """``student`` repairs, ``body`` and ``head`` segment."""

    Config = DeSTSegConfig
    regimes = frozenset({"clean"})
    has_schedule = True
    config: DeSTSegConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DeSTSegConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = DenoisingStudent(backbone, size)
        seen = sum(level.channels for level in backbone.levels)
        self.body = untrained(lambda: residual_stage(seen, config.channels, 2, BASIC, "same"))
        self.head = untrained(lambda: Head(config.channels))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        check_number("destseg", images, 2, "how whole images differ")
        textures = Textures(run)
        self.student.initialise(run)
        for part, name in ((self.body, "body"), (self.head, "head")):
            initialise(part, run.generator(name))
        rates = ((self.student, config.learning_rate), (self.body, config.body_rate), (self.head, config.head_rate))
        optimisers = [
            torch.optim.SGD(part.parameters(), rate, config.momentum, weight_decay=config.weight_decay)
            for part, rate in rates
        ]
        state = {"student": self.student, "body": self.body, "head": self.head}
        state |= {f"optimiser {number}": optimiser for number, optimiser in enumerate(optimisers)}
        for epoch in epochs(run, "destseg", state, config, len(images)):
            order, draws = epoch.cycle(len(images), config.batch_size, "order of images"), epoch.generator("defects")
            per_epoch = math.ceil(len(images) / config.batch_size)
            total = config.steps or config.epochs * per_epoch
            for step in epoch.steps():
                repairs = (epoch.number - 1) * per_epoch + step < config.student_share * total
                self.student.train(repairs), self.body.train(not repairs), self.head.train(not repairs)
                batch = images.batch(next(order))
                spoiled, masks = with_textures(batch.images, textures, draws, alter=False)
                with run.precision.autocast(run.device), torch.set_grad_enabled(repairs):
                    student = self.student(spoiled.to(run.device))
                if repairs:
                    loss = vector_loss(teacher(batch), student) * len(masks)  # the sum over a batch, as released
                    epoch.log(student=loss.detach())
                else:
                    with run.precision.autocast(run.device):
                        logits = self._segmented(teacher(spoiled), student)
                    shrunk = F.interpolate(masks[:, None].float(), size=logits.shape[-2:], mode="bilinear")[:, 0] >= 0.5
                    targets = shrunk.to(run.device)
                    loss = focal_loss(logits, targets, config.gamma) + F.l1_loss(logits.sigmoid(), targets.float())
                    epoch.log(segmented=loss.detach())
                for optimiser in optimisers[:1] if repairs else optimisers[1:]:
                    optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                for optimiser in optimisers[:1] if repairs else optimisers[1:]:
                    optimiser.step()

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            logits = self._segmented(features, self.student(images))
        map_ = upscale(logits.sigmoid(), images.shape[-2:], self.config.sigma)
        highest = map_.flatten(1).topk(min(TOP, map_[0].numel()), dim=1)
        return Prediction(map_, highest.values.mean(dim=1))

    def _segmented(self, features: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Logits ``b y x`` on the first level's grid."""
        grid = features[0].shape[-2:]
        products = [
            -F.normalize(t, dim=1) * F.normalize(s.float(), dim=1) for t, s in zip(features, student, strict=True)
        ]
        joined = torch.cat([F.interpolate(map_, size=grid, mode="bilinear") for map_ in products], dim=1)
        return self.head(self.body(joined))[:, 0].float()  # type: ignore[no-any-return]


class DenoisingStudent(nn.Module):
    """``b 3 h w`` images to maps of the teacher's shapes, shallowest first, through a grid half as fine as the last."""

    def __init__(self, backbone: Backbone, size: tuple[int, int]) -> None:
        super().__init__()
        check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
        self.encoder = build_student(backbone, size)
        deepest = backbone.levels[-1].channels
        self.code = untrained(lambda: residual_stage(deepest, 2 * deepest, 2, BASIC, "down"))
        self.stages, self.heads, self.is_rectified = nn.ModuleList(), nn.ModuleList(), []
        self.stages.append(untrained(lambda: residual_stage(2 * deepest, 2 * deepest, 2, BASIC, "same")))
        ins = 2 * deepest
        for level in reversed(backbone.levels):
            width = max(level.channels, MIN_WIDTH)
            self.stages.append(untrained(lambda i=ins, w=width: residual_stage(i, w, 2, BASIC, "same")))
            is_read_off = level.signed or width != level.channels  # a block ends in a ReLU
            self.heads.append(nn.Conv2d(width, level.channels, 1) if is_read_off else nn.Identity())
            self.is_rectified.append(is_read_off and not level.signed)
            ins = width

    def initialise(self, run: Run) -> None:
        """The encoder's first values are by its architecture's rule, as released."""
        for name, part in (("code", self.code), ("decoder", self.stages), ("read off", self.heads)):
            initialise(part, run.generator(name))
        self.encoder.reset(derive_seed(run.seed, "encoder"))

    def forward(self, images: Tensor) -> list[Tensor]:
        seen = self.encoder(images)
        maps, code = [], self.stages[0](self.code(seen[-1]))
        for stage, head, is_rectified, like in zip(self.stages[1:], self.heads, self.is_rectified, reversed(seen)):
            code = stage(F.interpolate(code, size=like.shape[-2:], mode="bilinear"))
            maps.append(F.relu(head(code)) if is_rectified else head(code))
        return maps[::-1]


class Head(nn.Module):
    """Atrous spatial pyramid pooling, one convolution more, and a logit for every place: ``b c y x`` to ``b 1 y x``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.whole = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.around = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=reach, dilation=reach, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            )
            for reach in (6, 12, 18)
        )
        self.joined = convolutions([4 * channels, channels, channels], ["same"] * 2, "batch", nn.ReLU())
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        whole = self.whole(features.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *features.shape[-2:])
        return self.out(self.joined(torch.cat([whole, *(a(features) for a in self.around)], dim=1)))  # type: ignore[no-any-return]
