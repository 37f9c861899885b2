"""ReContrast: reverse distillation whose encoder learns, too; beside a frozen copy, each is rebuilt from the other.

Idea: the features of a frozen encoder and of its copy that learns the images' own domain, side by side in one batch,
pass reverse distillation's bottleneck and decoder. 1x1 convolutions read the frozen features off the trained half, and
others the trained ones off the frozen half: an encoder that came to say the same of everything would gain nothing.
Loss: 1 - cosine of whole maps, half of it each way. Easy places have no gradient: those whose own 1 - cosine lies below
mean + alpha deviations of the batch's, where alpha rises from -3 to ``hardness`` in the first tenth of the training.
Score: 1 - cosine at every place, upsampled, summed over the levels of both ways and smoothed; an image's score is the
highest value. Differences from the released code, and our readings: docs/methods/recontrast.md.

Guo, Lu, Jia, Zhang, Li: ReContrast: Domain-Specific Anomaly Detection via Contrastive Reconstruction, NeurIPS 2023.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import build_student
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.config import Count, EncoderNorm, Rate, Steps, StudentConfig, Weight
from blemish.ops.cosine import anomaly_map, layer_loss, location_cosines, map_score
from blemish.ops.residual import initialise, untrained
from blemish.ops.reverse import Bottleneck, Decoder, DecoderSpec, decoder_spec
from blemish.run import Run, epochs

EASIEST, RISE = -3.0, 0.1  # where alpha begins, and the share of the training in which it rises


@dataclass(frozen=True)
class ReContrastConfig(StudentConfig):
    """The released training on MVTec AD."""

    epochs: Annotated[Count, Field(description="passes over the images, where steps does not say")] = 200
    steps: Steps = 2000
    learning_rate: Annotated[Rate, Field(description="AdamW's, of bottleneck and decoder")] = 0.002
    encoder_rate: Annotated[Rate, Field(description="AdamW's, of the encoder")] = 1e-5
    betas: Annotated[tuple[float, float], Field(description="AdamW's")] = (0.9, 0.999)
    weight_decay: Annotated[Weight, Field(description="AdamW's")] = 1e-5
    hardness: Annotated[
        float, Field(ge=-10, le=10, description="deviations above the mean distance from which places are learned")
    ] = 1.0
    batchnorm: EncoderNorm = "train"


class TwinStudent(nn.Module):
    """Bottleneck and decoder of two encoders' features, with a set of 1x1 convolutions for each."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        pairs = list(zip(spec.levels, spec.widths, strict=True))
        inner = tuple(dataclasses.replace(level, channels=width, signed=False) for level, width in pairs)
        self.bottleneck = Bottleneck(spec)
        self.decoder = Decoder(dataclasses.replace(spec, levels=inner))  # its own heads fall away
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, level.channels, 1) for level, width in pairs) for _ in range(2)
        )

    def forward(self, trained: Sequence[Tensor], frozen: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What it makes of the ``trained`` encoder's features, to be the frozen ones', and the other way round."""
        grids = [(map_.shape[-2], map_.shape[-1]) for map_ in frozen]
        joined = [torch.cat(pair) for pair in zip(trained, frozen, strict=True)]
        maps, b = self.decoder(self.bottleneck(joined), grids), frozen[0].shape[0]
        first = [head(map_[:b]) for head, map_ in zip(self.heads[0], maps)]  # type: ignore[call-overload]
        return first, [head(map_[b:]) for head, map_ in zip(self.heads[1], maps)]  # type: ignore[call-overload]


class ReContrast(Method):
    """``encoder`` begins as the backbone and learns with ``student``."""

    Config = ReContrastConfig
    has_schedule = True  # alpha rises over a share of the whole length
    config: ReContrastConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: ReContrastConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
        self.encoder = build_student(backbone, size)
        self.student = untrained(lambda: TwinStudent(decoder_spec(backbone)))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        initialise(self.student, run.generator("student"))
        self.encoder.copy_values(self.backbone)
        # One optimiser, which moves each parameter by itself, does as two would.
        rates = (self.student, config.learning_rate), (self.encoder, config.encoder_rate)
        groups = [{"params": network.parameters(), "lr": rate} for network, rate in rates]
        optimiser = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        state = {"student": self.student, "encoder": self.encoder, "optimiser": optimiser}
        epoch_steps = math.ceil(len(images) / config.batch_size)
        rise = RISE * (config.steps or config.epochs * epoch_steps)
        for epoch in epochs(run, "recontrast", state, config, len(images)):
            self.student.train()
            self.encoder.train(config.batchnorm == "train")
            for step, indices in enumerate(epoch.batches(), start=(epoch.number - 1) * epoch_steps):
                batch = images.batch(indices)
                frozen = teacher(batch)
                with self.backbone.precision.autocast(run.device):
                    trained = self.encoder(batch.images.to(run.device))
                with run.precision.autocast(run.device):
                    to_frozen, to_trained = self.student(trained, frozen)
                alpha = min(EASIEST + (config.hardness - EASIEST) * step / rise, config.hardness)
                targets = [map_.detach() for map_ in trained]
                loss = (mined_loss(frozen, to_frozen, alpha) + mined_loss(targets, to_trained, alpha)) / 2
                epoch.descend(loss, optimiser, loss=loss)

    def predict(self, images: Tensor) -> Prediction:
        frozen = self.backbone(images)
        with self.backbone.precision.autocast(images.device):
            trained = self.encoder(images)
        with self.autocast(images):
            to_frozen, to_trained = self.student(trained, frozen)
        pairs = [*frozen, *trained], [*to_frozen, *to_trained]
        map_ = anomaly_map(*pairs, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))


def mined_loss(target: Sequence[Tensor], student: Sequence[Tensor], alpha: float) -> Tensor:
    """``layer_loss`` without gradient at places nearer than the batch's mean + ``alpha`` deviations, level by level."""
    mined = []
    for t, s in zip(target, student, strict=True):
        away = 1 - location_cosines(t, s.detach())
        mined.append(torch.where((away < away.mean() + alpha * away.std())[:, None], s.detach(), s))
    return layer_loss(target, mined)
