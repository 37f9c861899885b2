"""CKAAD: reverse distillation that a discriminator keeps normal, with a few known-bad images to sharpen it.

Idea: an auto-encoder gives back the teacher's features, as in reverse distillation. A discriminator learns a low energy
for the features of normal images and a high one for those of a few known-bad images and for what the auto-encoder
makes; the auto-encoder learns to give low energies whatever it is shown, so a defect comes back as something normal.
Loss: auto-encoder: 1 - cosine on normal images, plus lambda times the energy of all it makes (``_loss``).
Discriminator: the normal images' energy, and by how much the others' stay below a margin. One step of each a batch.
Score: the map is 1 - cosine at every location, summed over the levels and smoothed; an image's score is the mean of
the map's 100 highest values, or of the whole map (``score="mean"``, for skin images).
Without a known-bad image every strategy is ``recon``, reconstruction alone, unless distorted copies of good ones stand
in (``elastic``). lambda is .02 as in the released code (github.com/Faustinaqq/CKAAD); ``gan`` and ``reconsub`` are our
reading. Strategies and all differences: docs/methods/ckaad.md.

Fang, Su, Lv, Xu, Yu: Boosting Fine-Grained Visual Anomaly Detection with Coarse-Knowledge-Aware Adversarial Learning,
AAAI 2025.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.errors import ConfigError
from blemish.ops.config import LATER, Count, DistillationLoss, Rate, Share, StudentConfig, Weight
from blemish.ops.cosine import LOSSES, anomaly_map
from blemish.ops.discriminators import (
    SMALLEST_GRID,
    build_discriminator,
    discriminator_loss,
    energies,
    gan_loss,
    mean_energy,
)
from blemish.ops.residual import initialise
from blemish.ops.reverse import build_reverse_student
from blemish.ops.simplex import elastic_twins
from blemish.run import Epoch, Run, epochs

Strategy = Literal["recon", "reconsub", "gan", "ckaimg", "ckapatch"]


@dataclass(frozen=True)
class CKAADConfig(StudentConfig):
    """The released defaults of the industrial sets, for whatever backbone."""

    strategy: Annotated[
        Strategy,
        Field(
            description="recon: good images alone; reconsub: push the bad ones' features apart; gan: a GAN on patches; "
            "ckaimg, ckapatch: an energy for every image or patch"
        ),
    ] = "ckapatch"
    loss: Annotated[DistillationLoss, LATER] = "layer"
    norm: Annotated[
        Literal["batch", "instance"],
        Field(description="of the auto-encoder; for batch, good and bad images pass it apart, as released"),
    ] = "instance"
    image_norm: Annotated[
        Literal["instance", "plain"], Field(description="of ckaimg; plain: no scale and shift, as released"), LATER
    ] = "instance"
    margin: Annotated[Rate, Field(description="energy above which a bad or generated feature costs nothing")] = 5.0
    gamma: Annotated[Share, Field(description="weight of the generated beside the bad, which have the rest")] = 0.5
    weight: Annotated[Weight, Field(description="lambda, of the energies in the auto-encoder's loss")] = 0.02
    clip: Annotated[Rate, Field(description="largest norm of the discriminator's gradient")] = 1.0
    discriminator_rate: Annotated[Rate, Field(description="Adam's, of the discriminator")] = 1e-4
    sub_weight: Annotated[Weight, Field(description="of the bad images' loss that reconsub subtracts")] = 0.1
    elastic: Annotated[
        bool, Field(description="distorted copies of good images serve as bad ones where none is known")
    ] = False
    score: Annotated[
        Literal["top", "mean"], Field(description="an image's: the mean of its map's highest values, or of all")
    ] = "top"  # type: ignore[assignment]  # StudentConfig's have no mean of the highest
    top: Annotated[Count, Field(description="how many highest values")] = 100
    elastic_strength: Annotated[Rate, Field(description="pixels it moves by, before smoothing"), LATER] = 200.0
    elastic_sigma: Annotated[Rate, Field(description="of the Gaussian that smooths them, in pixels"), LATER] = 5.0
    alpha: Annotated[
        Share | None,
        Field(description="weight of the good among what is made of both; by itself their share of the batch"),
        LATER,
    ] = None
    sub_limit: Annotated[
        Literal["sum", "level"], Field(description="where reconsub stops: at one a level on average, or in each"), LATER
    ] = "sum"


class CKAAD(Method):
    """Reverse distillation whose ``student``, the auto-encoder, a discriminator keeps normal."""

    Config = CKAADConfig
    regimes = frozenset({"clean", "weak"})
    config: CKAADConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CKAADConfig) -> None:
        super().__init__(backbone, size, config)
        self._grid = backbone.grids(size)[-1]
        if config.strategy == "ckaimg" and min(self._grid) < SMALLEST_GRID:
            cells = f"{self._grid[1]} x {self._grid[0]} cells at the deepest of layers={config.layers}"
            raise ConfigError(
                f"images of {size[1]} x {size[0]} leave {cells}, and ckaimg needs {SMALLEST_GRID} a side: give a "
                "larger --size, or ckapatch"
            )
        self.student = build_reverse_student(backbone, size, config.norm)

    @classmethod
    def without_anomalous(cls, config: CKAADConfig) -> CKAADConfig | None:
        return None if config.strategy == "recon" else dataclasses.replace(config, strategy="recon")

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, strategy = self.config, self._strategy(training, run)
        initialise(self.student, run.generator("student"))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
        state = {"student": self.student, "optimiser": optimiser}
        adversary = None if strategy in ("recon", "reconsub") else Adversary(self.backbone, self._grid, config, run)
        if adversary is not None:
            state |= {"discriminator": adversary.network, "discriminator optimiser": adversary.optimiser}
        size = min(config.batch_size, len(training.normal))
        steps = len(training.normal) // size  # the rest of a pass is dropped, as released
        for epoch in epochs(run, "ckaad", state, config, epoch_steps=steps):
            self.student.train()
            for clean, bad in self._pairs(strategy, training, teacher, epoch, size):
                loss = self._loss(clean, bad, adversary, run, epoch)
                epoch.descend(loss, optimiser)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(features)
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        values = map_.flatten(1)
        if self.config.score == "top":
            values = values.topk(min(self.config.top, values.shape[1]), dim=1).values
        return Prediction(map_, values.mean(dim=1))

    def _strategy(self, training: TrainingImages, run: Run) -> Strategy:
        """What can be done with the images at hand; said where it is not what was asked for."""
        strategy = self.config.strategy
        if strategy == "recon" or len(training.anomalous):
            if self.config.elastic and strategy != "recon":
                run.progress.note("note: there are known-bad images, so that ckaad makes no distorted copies (elastic)")
            return strategy
        if self.config.elastic:
            run.progress.note("ckaad: no known-bad image; distorted copies of the good ones stand in for them")
            return strategy
        run.progress.note(f"note: without a known-bad image ckaad's {strategy} is plain reconstruction (recon)")
        return "recon"

    def _pairs(
        self, strategy: Strategy, training: TrainingImages, teacher: Teacher, epoch: Epoch, size: int
    ) -> Iterator[tuple[list[Tensor], list[Tensor] | None]]:
        """Each step's features of good images and of bad ones, None where none take part."""
        order = epoch.permutation(len(training.normal), "order of images")
        anomalous, elastic = training.anomalous, (self.config.elastic_strength, self.config.elastic_sigma)
        bad = epoch.cycle(len(anomalous), size, "order of bad images") if len(anomalous) else None
        for step in epoch.steps():
            batch = training.normal.batch(order[step * size : (step + 1) * size])
            clean = teacher(batch)
            if strategy == "recon":
                yield clean, None
            else:
                yield clean, teacher(anomalous.batch(next(bad)) if bad else elastic_twins(batch.images, *elastic))

    def _loss(
        self, clean: list[Tensor], bad: list[Tensor] | None, adversary: Adversary | None, run: Run, epoch: Epoch
    ) -> Tensor:
        """The auto-encoder's loss of one batch, after the discriminator has taken its step."""
        count = len(clean[0])
        given = clean if bad is None else [torch.cat(pair) for pair in zip(clean, bad, strict=True)]
        config, loss_of = self.config, LOSSES[self.config.loss]
        with run.precision.autocast(run.device):
            if bad is not None and config.norm == "batch":
                made = [torch.cat(pair) for pair in zip(self.student(clean), self.student(bad), strict=True)]
            else:
                made = self.student(given)
        recon = loss = loss_of(clean, made if bad is None else [map_[:count] for map_ in made])
        if adversary is not None:
            epoch.log(**adversary.learn(given, made, count))
            loss = recon + config.weight * adversary.energy(made, count)
        elif bad is not None:
            levels = [loss_of([seen], [back[count:]]) for seen, back in zip(bad, made, strict=True)]
            # Our reading of the limit: once level by level nothing is alike, there is no more to push apart.
            limited = [level.clamp_max(1.0) for level in levels] if config.sub_limit == "level" else levels
            apart = torch.stack(levels).sum()
            loss = recon - config.sub_weight * torch.stack(limited).sum().clamp_max(float(len(made)))
            epoch.log(recon_anomalous=apart.detach())
        epoch.log(loss=loss.detach(), recon=recon.detach())
        return loss


class Adversary:
    """The strategy's discriminator, its optimiser and its half of the game."""

    def __init__(self, backbone: Backbone, grid: tuple[int, int], config: CKAADConfig, run: Run) -> None:
        kind: Literal["image", "patch"] = "image" if config.strategy == "ckaimg" else "patch"
        self.network = build_discriminator(
            kind, backbone.levels, grid, run.generator("discriminator"), config.image_norm
        )
        self.network.to(run.device).train()
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.discriminator_rate, betas=config.betas, fused=True
        )
        self._config, self._run = config, run

    def learn(self, given: list[Tensor], made: list[Tensor], count: int) -> dict[str, Tensor]:
        """One step of the discriminator; the mean energies before it, a sum over levels each.

        ``given`` are the teacher's features, those of ``count`` normal images first; ``made`` gets no gradient.
        """
        sizes = [count, len(given[0]) - count, len(made[0])]
        outputs = self._outputs([torch.cat([seen, back.detach()]) for seen, back in zip(given, made, strict=True)])
        normal, bad, generated = (list(part) for part in zip(*(torch.split(output, sizes) for output in outputs)))
        if self._config.strategy == "gan":
            loss = gan_loss(normal, generated)
        else:
            parts = (energies(normal), energies(bad), energies(generated))
            weights = self._weights(made, count)
            loss = discriminator_loss(*parts, self._config.margin, self._config.gamma, weights)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self._config.clip)
        self.optimiser.step()
        named = {"energy_normal": normal, "energy_anomalous": bad, "energy_generated": generated}
        means = {name: mean_energy(self._energies(part)).detach() for name, part in named.items()}
        return {**means, "discriminator": loss.detach()}

    def _weights(self, made: list[Tensor], count: int) -> Tensor | None:
        """``b``, of what was made, of ``count`` normal images first; None for equal ones."""
        alpha, bad = self._config.alpha, len(made[0]) - count
        if alpha is None or not bad:
            return None
        return made[0].new_tensor([alpha / count] * count + [(1 - alpha) / bad] * bad, dtype=torch.float32)

    def energy(self, made: list[Tensor], count: int) -> Tensor:
        """The mean energy of generated features, with gradient for whoever made them and none for the discriminator."""
        self.network.requires_grad_(False)
        try:
            return mean_energy(self._energies(self._outputs(made)), self._weights(made, count))
        finally:
            self.network.requires_grad_(True)

    def _outputs(self, features: list[Tensor]) -> list[Tensor]:
        with self._run.precision.autocast(self._run.device):
            outputs: list[Tensor] = self.network(features)
        return outputs

    def _energies(self, outputs: list[Tensor]) -> list[Tensor]:
        # A GAN's energy is -log of the probability of being normal: its mean is the usual loss of a generator.
        return [F.softplus(-output) for output in outputs] if self._config.strategy == "gan" else energies(outputs)
