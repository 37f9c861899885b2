"""RD++: reverse distillation behind projections that make normal features compact and pretended defects harmless.

Idea: before reverse distillation's bottleneck, each of the teacher's levels passes a projection of four convolutions.
It learns from pairs: a good image, and its twin with a patch of simplex noise as a pretended defect. It is to give the
same features for both, to keep those of good images together and apart from what the teacher says of the twin.
Loss: KD + .2 (SSOT + .01 Recon + .1 Con) / 1.11 in ``_loss``: KD is reverse distillation's; Recon 1 - cosine at every
location of the projected twin and image; Con max(0, cosine - .5) of the twin's raw and the image's projected maps; SSOT
the optimal transport between good images. All are summed over the levels, but ``ssot="paired"``, which is a mean.
Score: reverse distillation's: 1 - cosine of raw teacher and student features, summed over the levels, smoothed; an
image's score is the highest value.
SSOT as released (github.com/tientrandinh/Revisiting-Reverse-Distillation) is zero (``ssot="code"``); the default pairs
different images (our reading). Ours is the last of 200 epochs, not the best on the test set. All differences:
docs/methods/rdpp.md.

Tien et al.: Revisiting Reverse Distillation for Anomaly Detection, CVPR 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import LATER, Count, DistillationLoss, Rate, Several, StudentConfig, Weight
from blemish.ops.cosine import LOSSES, anomaly_map, image_cosines, map_score, vector_loss
from blemish.ops.residual import initialise, initialise_uniform
from blemish.ops.reverse import build_projections, build_reverse_student
from blemish.ops.simplex import PUBLISHED_SIZE, WAVELENGTH, Patches, check_patches, noise_field, with_noise
from blemish.ops.sinkhorn import paired_transport, random_places, released_transport, transport_of_all
from blemish.run import Run, Step, epochs

RECON_WEIGHT, CON_WEIGHT = 0.01, 0.1  # beside 1 for SSOT; the three together are divided by these ones' sum, 1.11


@dataclass(frozen=True)
class RDPPConfig(StudentConfig):
    """The released settings, but for ``ssot``, the noise's place and the length."""

    loss: DistillationLoss = "layer"
    ssot: Annotated[
        Literal["paired", "paper", "code", "none"],
        Field(
            description="optimal transport between each image and one other (paired), all pairs as in Eq. 6 (paper), "
            "or as released, where it is zero (code)"
        ),
    ] = "paired"
    locations: Annotated[Several, Field(description="of each image and level that ssot compares")] = 64
    projection_weight: Annotated[Weight, Field(description="of SSOT, Recon and Con together, beside KD")] = 0.2
    recon_weight: Annotated[Weight, Field(description="of Recon among them, over 1.11"), LATER] = RECON_WEIGHT
    con_weight: Annotated[Weight, Field(description="of Con among them, over 1.11"), LATER] = CON_WEIGHT
    depth: Annotated[int, Field(ge=1, le=8, description="convolutions of a projection"), LATER] = 4
    pattern: Annotated[
        Literal["simplex", "gaussian"], Field(description="what the pretended defects' noise is"), LATER
    ] = "simplex"
    margin: Annotated[float, Field(ge=-1, le=1, description="cosines below it are far enough apart for Con")] = 0.5
    noise: Annotated[Rate, Field(description="strength of the noise")] = 0.2
    patch: Annotated[tuple[int, int], Field(description="smallest and largest side of a patch of noise, in pixels")] = (
        10,
        31,
    )
    scale_patches: Annotated[
        bool, Field(description="grow the noise's sides and wavelength with the image, from 256 pixels")
    ] = False
    fixed_field: Annotated[bool, Field(description="cut all noise at the field's first corner, as released")] = False
    accumulate: Annotated[
        Count, Field(description="batches whose gradients are summed for one update; the features of all are held")
    ] = 2
    projection_rate: Annotated[Rate, Field(description="Adam's, of the projections")] = 0.001


class RDPP(Method):
    """Reverse distillation whose ``student`` is given what ``projections``, one a level, make of the features."""

    Config = RDPPConfig
    config: RDPPConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: RDPPConfig) -> None:
        super().__init__(backbone, size, config)
        scale = min(size) / PUBLISHED_SIZE if config.scale_patches else 1.0
        sides = (max(1, round(config.patch[0] * scale)), max(1, round(config.patch[1] * scale)))
        self._patches, self._wavelength = Patches(sides, config.noise, config.fixed_field), WAVELENGTH * scale
        check_patches(size, self._patches)
        self.projections = build_projections(backbone, size, config.depth)
        self.student = build_reverse_student(backbone, size)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        field = self._initialise(run)
        optimisers = {
            "student optimiser": self._adam(self.student, config.learning_rate),
            "projection optimiser": self._adam(self.projections, config.projection_rate),
        }
        state = {"student": self.student, "projections": self.projections, **optimisers}
        step = Step(run, [*optimisers.values()], partial(self._losses, run))
        for epoch in epochs(run, "rdpp", state, config, len(images)):
            self.student.train()
            noise, pairing = epoch.generator("noise"), epoch.generator("pairs and places")
            waiting: list[list[Tensor]] = []
            for number, indices in enumerate(epoch.batches(), start=1):
                batch = images.batch(indices)
                twins = with_noise(batch.images, field, noise, self._patches)
                clean = teacher(batch)
                drawn = [places.to(run.device) for places in self._drawn(clean, pairing)]
                waiting.append([*clean, *teacher(twins), *drawn])
                if len(waiting) == config.accumulate or number == epoch.step_count:
                    for losses in step(*waiting):
                        epoch.log(**dict(zip(("loss", "kd", "ssot", "recon", "con"), losses)))
                    waiting.clear()

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(self._projected(features))
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))

    def _initialise(self, run: Run) -> Tensor:
        """Fresh values, the student's the same as plain reverse distillation's; the field of noise."""
        initialise(self.student, run.generator("student"))
        initialise_uniform(self.projections, run.generator("projection"))
        # Four of the largest patches a side: enough places to cut that two images rarely get the same noise.
        generator, side = run.generator("noise field"), 4 * (self._patches.sides[1] + 1)
        if self.config.pattern == "gaussian":
            return torch.randn((3, side, side), generator=generator)
        return noise_field(generator, side, self._wavelength)

    def _adam(self, network: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=rate, betas=self.config.betas, fused=True)

    def _losses(self, run: Run, *tensors: Tensor) -> list[Tensor]:
        """One batch's loss and its terms: of the teacher's features of images and of twins, and what was drawn."""
        config, levels = self.config, len(self.projections)
        clean, noisy, (partners, *places) = tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :]
        with run.precision.autocast(run.device):
            projected, projected_noisy = self._projected(clean), self._projected(noisy)
            student = self.student(projected)
        kd = LOSSES[config.loss](clean, student)
        recon = vector_loss(projected_noisy, projected)
        con = contrast(noisy, projected, config.margin)
        ssot = self._transport(projected, partners, places)
        apart = (ssot + config.recon_weight * recon + config.con_weight * con) / (1 + RECON_WEIGHT + CON_WEIGHT)
        loss = kd + config.projection_weight * apart
        return [loss, kd, ssot, recon, con]

    def _drawn(self, maps: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Which image of the batch each is compared with by SSOT, and at which cells of each level."""
        order = torch.randperm(len(maps[0]), generator=generator)
        if self.config.ssot in ("code", "none"):
            return [order]
        partners = torch.empty_like(order)
        partners[order] = order.roll(1)  # one round trip through the batch: no image is its own partner
        return [partners, *random_places(maps, generator, self.config.locations)]

    def _transport(self, projected: list[Tensor], partners: Tensor, places: Sequence[Tensor]) -> Tensor:
        if self.config.ssot == "code":
            return released_transport(projected, partners)
        if self.config.ssot == "none":
            return torch.zeros((), device=projected[0].device)
        if self.config.ssot == "paper":
            return transport_of_all(projected, places)
        return paired_transport(projected, partners, places)

    def _projected(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [projection(feature) for projection, feature in zip(self.projections, features, strict=True)]


def contrast(noisy: Sequence[Tensor], projected: Sequence[Tensor], margin: float = 0.5) -> Tensor:
    """Con: ``max(0, cosine - margin)`` of twins' raw and images' projected maps: mean over images, sum over levels."""
    agreements = [image_cosines(raw, ours) for raw, ours in zip(noisy, projected, strict=True)]
    return torch.stack([F.relu(agreement - margin).mean() for agreement in agreements]).sum()
