"""RD++: reverse distillation behind projections that make normal features compact and pretended defects harmless.

Idea: before reverse distillation's bottleneck, each of the teacher's levels passes a projection of four convolutions.
It learns from pairs: a good image, and its twin with a patch of simplex noise as a pretended defect. The projection is
to give the same features for both, to keep those of good images together, and to keep them apart from what the teacher
says of the twin. The bottleneck and the decoder see good images alone.

Signal: KD + .2 (SSOT + .01 Recon + .1 Con) / 1.11, with KD the loss of reverse distillation between the teacher's raw
features and the student's; Recon 1 - cosine at every location between the projected twin and the projected image; Con
max(0, cosine - .5) of the twin's raw and the image's projected features, whole maps as vectors; SSOT the optimal
transport between good images. All are summed over the levels, but ``ssot="paired"``, which is a mean.

Score: as reverse distillation's: 1 - cosine of raw teacher and student features, summed over the levels, smoothed; an
image's score is the highest value.

Paper and released code (github.com/tientrandinh/Revisiting-Reverse-Distillation); docs/methods/rdpp.md has them all:
- SSOT as released compares a batch with itself, shuffled: it is zero and teaches nothing (``ssot="code"``). The default
  is our reading of the paper: pairs of different images, each a cloud of feature vectors (``ssot="paired"``).
- The released noise is one corner of one field for all images (``fixed_field=True``); ours is cut at random places.
- The code has epochs set for each product and picks the epoch that does best on the test set; ours is the last of 200.
- The paper averages over levels where the code sums, and has no 1.11; we follow the code.
- Gradients left over from an odd last batch leak into the code's next epoch; ours are used at the end of their own.
- Backbones other than ResNets: see ``blemish.ops.reverse`` (our reading).

Tien et al.: Revisiting Reverse Distillation for Anomaly Detection, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.cosine import LOSSES, Loss, anomaly_map, cosines, vector_loss
from blemish.ops.residual import initialise, initialise_uniform
from blemish.ops.reverse import build_projections, build_reverse_student
from blemish.ops.simplex import PUBLISHED_SIZE, WAVELENGTH, Patches, check_patches, noise_field, with_noise
from blemish.ops.sinkhorn import paired_transport, released_transport
from blemish.run import Epoch, Run

RECON_WEIGHT, CON_WEIGHT = 0.01, 0.1
"""Beside 1 for SSOT; the three together are divided by their sum, 1.11."""


@dataclass(frozen=True)
class RDPPConfig:
    """The released settings, but for ``ssot``, the noise's place and the length.

    Attributes:
        layers: stages that are distilled, without a gap.
        loss: of KD: ``layer`` as released, or ``vector``.
        ssot: ``paired`` as we read the paper, ``code`` as released (zero), ``none`` to leave it out.
        locations: of each image and level that ``ssot="paired"`` compares.
        projection_weight: of SSOT, Recon and Con together, beside KD.
        margin: cosines below it are far enough apart for Con.
        noise: strength of the noise.
        patch: smallest and largest side of a patch of noise, in pixels.
        scale_patches: grow sides and wavelength with the image: published are 256 pixels.
        fixed_field: cut every patch at the field's first corner, as released.
        epochs: passes over the good images.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: images in a batch.
        accumulate: batches whose gradients are summed for one update of the weights.
        learning_rate: Adam's, of the bottleneck and the decoder.
        projection_rate: Adam's, of the projections.
        betas: of both.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3)
    loss: Loss = "layer"
    ssot: Literal["paired", "code", "none"] = "paired"
    locations: Annotated[int, Field(ge=2)] = 64
    projection_weight: Annotated[float, Field(ge=0)] = 0.2
    margin: Annotated[float, Field(ge=-1, le=1)] = 0.5
    noise: Annotated[float, Field(gt=0)] = 0.2
    patch: tuple[int, int] = (10, 31)
    scale_patches: bool = False
    fixed_field: bool = False
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    accumulate: Annotated[int, Field(ge=1)] = 2
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    projection_rate: Annotated[float, Field(gt=0)] = 0.001
    betas: tuple[float, float] = (0.5, 0.999)
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class RDPP(Method):
    """Reverse distillation with projections. See the top of this file.

    Attributes:
        projections: one for each level.
        student: the projected maps to maps like the teacher's raw ones.
        precision: how both compute; None to choose by the device.
    """

    Config = RDPPConfig
    regimes = frozenset({"clean"})
    config: RDPPConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: RDPPConfig) -> None:
        """Build projections and student, untaught.

        Raises:
            ConfigError: the levels leave a gap, or the images are too small for noise or levels.
        """
        super().__init__(backbone, size, config)
        scale = min(size) / PUBLISHED_SIZE if config.scale_patches else 1.0
        sides = (max(1, round(config.patch[0] * scale)), max(1, round(config.patch[1] * scale)))
        self._patches, self._wavelength = Patches(sides, config.noise, config.fixed_field), WAVELENGTH * scale
        check_patches(size, self._patches)
        self.projections = build_projections(backbone, size)
        self.student = build_reverse_student(backbone, size)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Teach projections and student together."""
        config, count = self.config, len(training.normal)
        field = self._begin(run)
        optimisers = {
            "student optimiser": self._adam(self.student, config.learning_rate),
            "projection optimiser": self._adam(self.projections, config.projection_rate),
        }
        keep = {"student": self.student, "projections": self.projections, **optimisers}
        length = run.length(epochs=config.epochs, steps=config.steps)
        for epoch in run.epochs(length, images=count, batch_size=config.batch_size, state=keep, title="rdpp"):
            self.student.train()
            noise, pairing = epoch.generator("noise"), epoch.generator("pairs and places")
            for step, indices in enumerate(epoch.batches(), start=1):
                batch = training.normal.batch(indices)
                twins = with_noise(batch.images, field, noise, self._patches)
                loss = self._loss(teacher(batch), teacher(twins), pairing, run, epoch)
                loss.backward()  # type: ignore[no-untyped-call]
                if step % config.accumulate == 0 or step == epoch.step_count:
                    for optimiser in optimisers.values():
                        optimiser.step()
                        optimiser.zero_grad(set_to_none=True)
        self.student.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(self._projected(features))
        size = (int(images.shape[-2]), int(images.shape[-1]))
        map_ = anomaly_map(features, student, size, self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _begin(self, run: Run) -> Tensor:
        """Fresh values, the student's the same as plain reverse distillation's; the field of noise."""
        initialise(self.student, run.generator("student"))
        initialise_uniform(self.projections, run.generator("projection"))
        # Four of the largest patches a side: enough places to cut that two images rarely get the same noise.
        return noise_field(run.generator("noise field"), 4 * (self._patches.sides[1] + 1), self._wavelength)

    def _adam(self, network: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=rate, betas=self.config.betas, fused=True)

    def _loss(
        self, clean: list[Tensor], noisy: list[Tensor], generator: torch.Generator, run: Run, epoch: Epoch
    ) -> Tensor:
        """The loss of one batch, from the teacher's features of the images and of their twins; logs its terms."""
        config = self.config
        with run.precision.autocast(run.device):
            projected, projected_noisy = self._projected(clean), self._projected(noisy)
            student = self.student(projected)
        kd = LOSSES[config.loss](clean, student)
        recon = vector_loss(projected_noisy, projected)
        con = contrast(noisy, projected, config.margin)
        ssot = self._transport(projected, generator)
        apart = (ssot + RECON_WEIGHT * recon + CON_WEIGHT * con) / (1 + RECON_WEIGHT + CON_WEIGHT)
        loss = kd + config.projection_weight * apart
        epoch.log(loss=loss.detach(), kd=kd.detach(), ssot=ssot.detach(), recon=recon.detach(), con=con.detach())
        return loss

    def _transport(self, projected: list[Tensor], generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(projected[0]), generator=generator)
        if self.config.ssot == "code":
            return released_transport(projected, order)
        if self.config.ssot == "none":
            return torch.zeros((), device=projected[0].device)
        partners = torch.empty_like(order)
        partners[order] = order.roll(1)  # one round trip through the batch: no image is its own partner
        return paired_transport(projected, partners, generator, self.config.locations)

    def _projected(self, features: list[Tensor]) -> list[Tensor]:
        return [projection(feature) for projection, feature in zip(self.projections, features, strict=True)]


def contrast(noisy: Sequence[Tensor], projected: Sequence[Tensor], margin: float = 0.5) -> Tensor:
    """Con: ``max(0, cosine - margin)`` of whole maps as vectors: mean over images, sum over levels.

    Args:
        noisy: the teacher's raw maps of the twins, ``b c y x``.
        projected: the projected maps of the good images, the same shapes.
        margin: cosines below it cost nothing.
    """
    found = []
    for raw, ours in zip(noisy, projected, strict=True):
        cosine = cosines(raw.permute(0, 2, 3, 1).flatten(1), ours.permute(0, 2, 3, 1).flatten(1))
        found.append(F.relu(cosine - margin).mean())
    return torch.stack(found).sum()
