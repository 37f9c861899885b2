"""URD: reverse distillation from a teacher that has learned to see made-up defects, to a student that restores them.

Idea: a frozen expert, its copy the teacher, which learns, and a student. Copies of good images with a texture laid upon
them are defects whose place is known. On them the teacher learns to stand off from the expert's view of the good image,
the student to give that view all the same, from the teacher's features. Between its levels the student is helped with
detail from the teacher, as far as the two agree there already (guided information injection).
Loss: the teacher's is 1 - cosine with the expert at every place of good images, plus the distance of the same at the
defects from their mask (1 there, 0 elsewhere), plus 1 - cosine of whole maps with the expert on the spoiled image. The
student's is 1 - cosine of whole maps from good and spoiled images, each with teacher's and expert's of the good ones.
Score: 1 - cosine of teacher and student at every place, upsampled, summed over levels and smoothed; an image's score is
the highest value.
The released script leaves the gate out by a slip of flags (``gated=false``). Textures, and backbones other than ResNets,
are our reading; the last step stays. Differences: docs/methods/urd.md.

Liu, Wang, Leng, Zhang: Unlocking the Potential of Reverse Distillation for Anomaly Detection, AAAI 2025.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Batch, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.config import Count, EncoderNorm, Rate, Share, Steps, StudentConfig
from blemish.ops.cosine import anomaly_map, layer_loss, location_cosines, map_score, vector_loss
from blemish.ops.residual import convolution, convolutions, initialise, normalisation, untrained
from blemish.ops.reverse import Bottleneck, Decoder, DecoderSpec, decoder_spec
from blemish.ops.textures import TextureSource, find_foreground, load_textures, with_textures
from blemish.run import Run, epochs


@dataclass(frozen=True)
class URDConfig(StudentConfig):
    """The released training on most of MVTec AD, and the paper's gate."""

    epochs: Annotated[Count, Field(description="passes over the images, where steps does not say")] = 200
    steps: Steps = 5000
    teacher_rate: Annotated[Rate, Field(description="Adam's, of the teacher")] = 1e-4
    gated: Annotated[bool, Field(description="inject detail as far as teacher and student agree (paper)")] = True
    blend: Annotated[Share, Field(description="most of the image that may shine through a made-up defect")] = 0.8
    textures: TextureSource = "photographs"
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
    regimes = frozenset({"clean"})
    config: URDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: URDConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
        self.encoder = build_student(backbone, size)
        self.student = untrained(lambda: GuidedStudent(decoder_spec(backbone), config.gated))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        self._initialise(run)
        textures = load_textures(config.textures, run.generator("textures"))
        foregrounds: dict[str, Tensor] = {}
        optimisers = [
            torch.optim.Adam(network.parameters(), rate, config.betas, fused=True)
            for network, rate in ((self.encoder, config.teacher_rate), (self.student, config.learning_rate))
        ]
        state = {"encoder": self.encoder, "student": self.student}
        for epoch in epochs(run, "urd", state | dict(zip(("teacher's", "student's"), optimisers)), config, len(images)):
            self.student.train()
            draws = epoch.generator("made-up defects")
            for indices in epoch.batches():
                batch = images.batch(indices)
                inside = self._foregrounds(batch, foregrounds) if config.foreground == "grabcut" else None
                spoiled, masks = with_textures(batch.images, textures, draws, config.blend, inside)
                given = batch.images.to(run.device), spoiled.to(run.device)
                expert, masks = (teacher(batch), teacher(given[1])), masks.to(run.device)
                self.encoder.train(config.batchnorm == "train")
                teacher_loss = teaching_loss(self._encoded(given, run), expert, masks)
                self.encoder.eval()
                self._update(optimisers[0], teacher_loss)
                with torch.no_grad():
                    taught = self._encoded(given, run)
                with run.precision.autocast(run.device):
                    students = [self.student(features) for features in taught]
                losses = [layer_loss(target, student) for student in students for target in (taught[0], expert[0])]
                self._update(optimisers[1], loss := torch.stack(losses).sum())
                epoch.log(loss=loss.detach(), teacher=teacher_loss.detach())

    def predict(self, images: Tensor) -> Prediction:
        with self.backbone.precision.autocast(images.device):
            features = self.encoder(images)
        with self.autocast(images):
            student = self.student(features)
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))

    def _initialise(self, run: Run) -> None:
        """The teacher as the expert is; the student's convolutions Xavier normal, as released."""
        self.encoder.copy_values(self.backbone)
        generator = run.generator("student")
        initialise(self.student, generator)
        with torch.no_grad():
            for module in self.student.modules():
                if isinstance(module, nn.Conv2d):
                    drawn = nn.init.xavier_normal_(torch.empty(module.weight.shape), generator=generator)
                    module.weight.copy_(drawn)

    def _encoded(self, given: Sequence[Tensor], run: Run) -> list[list[Tensor]]:
        with self.backbone.precision.autocast(run.device):
            return [self.encoder(images) for images in given]

    def _update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _foregrounds(self, batch: Batch, known: dict[str, Tensor]) -> Tensor:
        """``b 1 h w``: each image's, found once."""
        for key, image in zip(batch.keys, batch.images, strict=True):
            if key not in known:
                known[key] = find_foreground(image)
        return torch.stack([known[key] for key in batch.keys])


def teaching_loss(taught: Sequence[list[Tensor]], expert: Sequence[list[Tensor]], masks: Tensor) -> Tensor:
    """The teacher's, from its maps and the expert's of good images and of spoiled ones, whose ``masks`` are known.

    As released, each level's mask is the one above it made smaller, and again 0 or 1.
    """
    apart = []
    for t, e in zip(taught[1], expert[0], strict=True):
        masks = (F.interpolate(masks, t.shape[-2:], mode="bilinear", align_corners=True) >= 0.5).float()
        apart.append((1 - location_cosines(t, e) - masks[:, 0]).abs().mean())
    return vector_loss(taught[0], expert[0]) + torch.stack(apart).sum() + layer_loss(taught[1], expert[1])
