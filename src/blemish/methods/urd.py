"""URD: reverse distillation from a teacher that has learned to see made-up defects, to a student that mends them.

Idea: copies of good images, with a texture laid upon them, show defects whose place is known. On them a teacher, which
begins as a frozen expert, learns to stand off from the expert's view of the good image; a student gives just that view
from the teacher's features, and is helped between its levels with detail as far as the two agree (guided injection).
Loss: the teacher's is 1 - cosine with the expert at every place of good images, plus how far that of spoiled ones is
from their mask, plus 1 - cosine of whole spoiled maps; the student's 1 - cosine of whole maps, from good and spoiled
images, with what teacher and expert say of the good ones.
Score: 1 - cosine of teacher and student at every place, upsampled, summed over levels and smoothed; an image's score is
the highest value. Differences from the released code, and our readings: docs/methods/urd.md.

Liu, Wang, Leng, Zhang: Unlocking the Potential of Reverse Distillation for Anomaly Detection, AAAI 2025.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.errors import ConfigError
from blemish.ops.config import Count, EncoderNorm, Rate, Steps, StudentConfig
from blemish.ops.cosine import anomaly_map, layer_loss, location_cosines, map_score, vector_loss
from blemish.ops.residual import convolution, convolutions, initialise, normalisation, untrained
from blemish.ops.reverse import Bottleneck, Decoder, DecoderSpec, decoder_spec
from blemish.ops.textures import Textures, with_textures
from blemish.run import Run, epochs

GRABCUT_ROUNDS = 11  # as released


@dataclass(frozen=True)
class URDConfig(StudentConfig):
    """The released training on most of MVTec AD, and the paper's gate."""

    epochs: Annotated[Count, Field(description="passes over the images, where steps does not say")] = 200
    steps: Steps = 5000
    teacher_rate: Annotated[Rate, Field(description="Adam's, of the teacher")] = 1e-4
    gated: Annotated[bool, Field(description="inject detail as far as teacher and student agree (paper)")] = True
    foreground: Annotated[
        Literal["none", "grabcut"],
        Field(description="where made-up defects may lie: anywhere, or on what GrabCut (OpenCV) takes for the thing"),
    ] = "none"
    batchnorm: EncoderNorm = "train"


class Injection(nn.Module):
    """Detail of two of the teacher's levels for the student's code, ``b width y x``, at the deeper one's grid."""

    def __init__(self, above: int, channels: int, width: int, gated: bool) -> None:
        super().__init__()
        self.shallower = nn.Sequential(convolution(above, channels, 1), normalisation("batch", channels), nn.ReLU(True))
        self.joined = convolutions([channels, channels], ["same"], "batch", nn.ReLU(True))
        self.gate = convolutions([channels, channels], ["same"], "batch", nn.ReLU(True)) if gated else None
        self.back = convolutions([width + channels, width], ["same"], "batch", nn.ReLU(True))

    def forward(self, shallow: Tensor, level: Tensor, code: Tensor, found: Tensor) -> Tensor:
        """The code for the next level, from the teacher's levels, the student's code and the map ``found`` in it."""
        size = level.shape[-2:]
        detail = self.joined(level + self.shallower(F.interpolate(shallow, size, mode="bilinear", align_corners=False)))
        if self.gate is not None:
            alike = location_cosines(found.detach(), level)[:, None]
            detail = self.gate(alike * detail + (1 - alike) * found)
        injected: Tensor = self.back(torch.cat([code, detail], dim=1))
        return injected


class GuidedStudent(nn.Module):
    """Reverse distillation's student, with an ``Injection`` before each level but the deepest."""

    def __init__(self, spec: DecoderSpec, gated: bool) -> None:
        super().__init__()
        self.bottleneck, self.decoder = Bottleneck(spec), Decoder(spec)
        shapes = zip(spec.levels, spec.levels[1:], spec.widths[1:])
        self.injections = nn.ModuleList(
            Injection(above.channels, level.channels, width, gated) for above, level, width in shapes
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's feature maps, shallowest first, to as many of the same shapes."""

        def inject(left: int, code: Tensor, found: Tensor) -> Tensor:
            injected: Tensor = self.injections[left - 1](features[left - 1], features[left], code, found)
            return injected

        grids = [(map_.shape[-2], map_.shape[-1]) for map_ in features]
        return self.decoder(self.bottleneck(features), grids, inject)  # type: ignore[no-any-return]


class URD(Method):
    """``encoder`` is the teacher that learns, and the backbone the expert; ``student`` is given the teacher's maps."""

    Config = URDConfig
    config: URDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: URDConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
        self.encoder = build_student(backbone, size)
        self.student = untrained(lambda: GuidedStudent(decoder_spec(backbone), config.gated))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        textures, foregrounds = Textures(run), dict[str, Tensor]()
        initialise(self.student, run.generator("student"), xavier=True)
        self.encoder.copy_values(self.backbone)
        rates = (self.encoder, config.teacher_rate), (self.student, config.learning_rate)
        learners = [torch.optim.Adam(n.parameters(), rate, config.betas, fused=True) for n, rate in rates]
        state = {"encoder": self.encoder, "student": self.student, "teaching": learners[0], "learning": learners[1]}
        for epoch in epochs(run, "urd", state, config, len(images)):
            self.student.train()
            draws = epoch.generator("made-up defects")
            for indices in epoch.batches():
                batch = images.batch(indices)
                spoiled, masks = with_textures(batch.images, textures, draws, alter=False)
                if config.foreground == "grabcut":
                    for key, image in zip(batch.keys, batch.images):
                        if key not in foregrounds:
                            foregrounds[key] = find_foreground(image)
                    masks &= torch.stack([foregrounds[key] for key in batch.keys])
                    spoiled = torch.where(masks[:, None], spoiled, batch.images)
                given = batch.images.to(run.device), spoiled.to(run.device)
                expert = teacher(batch), teacher(given[1])
                self.encoder.train(config.batchnorm == "train")
                with self.backbone.precision.autocast(run.device):
                    taught = [self.encoder(seen) for seen in given]
                loss = teaching_loss(taught, expert, masks[:, None].float().to(run.device))
                epoch.descend(loss, learners[0], teacher=loss)
                self.encoder.eval()
                with torch.no_grad(), self.backbone.precision.autocast(run.device):
                    taught = [self.encoder(seen) for seen in given]
                with run.precision.autocast(run.device):
                    students = [self.student(features) for features in taught]
                losses = [layer_loss(target, student) for student in students for target in (taught[0], expert[0])]
                loss = torch.stack(losses).sum()
                epoch.descend(loss, learners[1], loss=loss)

    def predict(self, images: Tensor) -> Prediction:
        with self.backbone.precision.autocast(images.device):
            features = self.encoder(images)
        with self.autocast(images):
            student = self.student(features)
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))


def teaching_loss(taught: Sequence[list[Tensor]], expert: Sequence[list[Tensor]], masks: Tensor) -> Tensor:
    """The teacher's, from its maps and the expert's of good and of spoiled images, whose ``masks`` are ``b 1 h w``.

    As released, each level's mask is the one above it made smaller, and again 0 or 1.
    """
    apart = []
    for t, e in zip(taught[1], expert[0], strict=True):
        masks = (F.interpolate(masks, t.shape[-2:], mode="bilinear", align_corners=True) >= 0.5).float()
        apart.append((1 - location_cosines(t, e) - masks[:, 0]).abs().mean())
    return vector_loss(taught[0], expert[0]) + torch.stack(apart).sum() + layer_loss(taught[1], expert[1])


def find_foreground(image: Tensor) -> Tensor:
    """``h w``, bool: what OpenCV's GrabCut takes for the thing in ``3 h w`` in [0, 1], from the border inwards."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ConfigError(
            "foreground=grabcut needs OpenCV, which is not there: install it with pip install opencv-python-headless, "
            "or give --set foreground=none"
        ) from error
    pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy()[..., ::-1].copy()
    mask, models = np.zeros(pixels.shape[:2], np.uint8), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)  # it begins from clusters drawn at random
    frame = (1, 1, pixels.shape[1] - 1, pixels.shape[0] - 1)
    cv2.grabCut(pixels, mask, frame, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT)
    return torch.from_numpy((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD))
