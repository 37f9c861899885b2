"""CKAAD: reverse distillation that a discriminator keeps normal, with a few known-bad images to sharpen it.

Idea: an auto-encoder gives back the teacher's features, as in reverse distillation. A few images are known to be bad,
without outlines. A discriminator learns a low energy for the features of normal images and a high one for those of bad
images and for what the auto-encoder makes; the auto-encoder learns to give low energies whatever it is shown, so a
defect comes back as something normal. The bad images only say where normal ends; they are not learned by heart.

Signal: auto-encoder: 1 - cosine on normal images, plus lambda times the energy of all it makes. Discriminator: energy
of the normal, and by how much the others stay below a margin. One step of each a batch, the discriminator first.

Score: the map is 1 - cosine at every location, summed over the levels and smoothed; an image's score is the mean of
the map's 100 highest values, or of the whole map (``score="mean"``, for skin images).

Strategies, as the paper compares them: ``ckapatch`` (energy of every patch), ``ckaimg`` (of the image), ``gan`` (an
ordinary GAN on patches that makes normal features from bad ones, too), ``reconsub`` (pushes the bad images' features
apart), ``recon`` (good images alone). Without a known-bad image every strategy is ``recon``, and says so; with
``elastic=True`` distorted copies of the good images stand in for bad ones, as in the paper's industrial tables.

Paper and released code (github.com/Faustinaqq/CKAAD):
- The paper weighs the auto-encoder's energy by gamma * lambda = .01, the code by lambda = .02: .02 here.
- The margin (5), the features' scaling to length one and the clipping of the discriminator's gradient (1) are in the
  code alone; as there.
- ``gan`` and ``reconsub`` are not released: networks, weights and limits are our reading.
- The released loader repeats its first shuffle of the bad images within an epoch; each pass is shuffled anew here.
- The code names no epoch whose figures are printed; ours are of the last.
- Backbones other than ResNets follow the scheme of ``blemish.ops.reverse`` (our reading).

Fang, Su, Lv, Xu, Yu: Boosting Fine-Grained Visual Anomaly Detection with Coarse-Knowledge-Aware Adversarial Learning,
AAAI 2025.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.errors import ConfigError
from blemish.ops.cosine import anomaly_map, layer_loss
from blemish.ops.cycling import passes
from blemish.ops.discriminators import (
    SMALLEST_GRID,
    build_discriminator,
    discriminator_loss,
    energies,
    gan_loss,
    mean_energy,
)
from blemish.ops.residual import Norm, initialise
from blemish.ops.reverse import build_reverse_student
from blemish.ops.simplex import elastic_twins
from blemish.run import Epoch, Run

Strategy = Literal["recon", "reconsub", "gan", "ckaimg", "ckapatch"]


@dataclass(frozen=True)
class CKAADConfig:
    """The released defaults of the industrial sets, for whatever backbone.

    Attributes:
        strategy: ``recon``, ``reconsub``, ``gan``, ``ckaimg`` or ``ckapatch``.
        norm: of the auto-encoder: ``instance``, or ``batch``, which mixes good and bad images' statistics.
        layers: stages that are given back, without a gap.
        margin: energy from which on a bad or a generated feature costs the discriminator nothing.
        gamma: weight of the generated among what the discriminator drives off; the bad have the rest.
        weight: lambda, of the energies in the auto-encoder's loss.
        clip: largest norm of the discriminator's gradient.
        discriminator_rate: Adam's, of the discriminator.
        sub_weight: of the bad images' loss that ``reconsub`` subtracts.
        elastic: distorted copies of the good images serve as bad ones where none is known.
        epochs: passes over the good images.
        steps: batches to learn from, in place of ``epochs``.
        batch_size: good images a step, and as many bad ones or all there are.
        learning_rate: Adam's, of the auto-encoder; the paper's medical sets have .001.
        betas: Adam's, of both.
        sigma: standard deviation of the map's smoothing, in input pixels.
        score: an image's: ``top``, the mean of the highest values of its map, or ``mean``, of all.
        top: how many highest values.
    """

    strategy: Strategy = "ckapatch"
    norm: Norm = "instance"
    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3)
    margin: Annotated[float, Field(gt=0)] = 5.0
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    weight: Annotated[float, Field(ge=0)] = 0.02
    clip: Annotated[float, Field(gt=0)] = 1.0
    discriminator_rate: Annotated[float, Field(gt=0)] = 1e-4
    sub_weight: Annotated[float, Field(ge=0)] = 0.1
    elastic: bool = False
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0
    score: Literal["top", "mean"] = "top"
    top: Annotated[int, Field(ge=1)] = 100


class CKAAD(Method):
    """Reverse distillation kept normal by a discriminator. See the top of this file.

    Attributes:
        student: the auto-encoder: the teacher's feature maps to its own.
        precision: how it computes; None to choose by the device.
    """

    Config = CKAADConfig
    regimes = frozenset({"clean", "weak"})
    config: CKAADConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CKAADConfig) -> None:
        """Build the auto-encoder, untaught.

        Raises:
            ConfigError: the levels leave a gap, or the images are too small for them.
        """
        super().__init__(backbone, size, config)
        stride = backbone.levels[-1].stride
        self._grid = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        _check_grid(self._grid, size, config)
        self.student = build_reverse_student(backbone, size, config.norm)

    @classmethod
    def learns_from_anomalous(cls, config: CKAADConfig) -> bool:
        """In every strategy but ``recon``."""
        return config.strategy != "recon"

    @classmethod
    def without_anomalous(cls, config: CKAADConfig) -> CKAADConfig | None:
        """The same auto-encoder as plain reconstruction."""
        return None if config.strategy == "recon" else dataclasses.replace(config, strategy="recon")

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Teach the auto-encoder to give back normal features, and the discriminator to tell when it does not."""
        config, strategy = self.config, self._strategy(training, run)
        initialise(self.student, run.generator("student"))
        optimiser = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
        keep = {"student": self.student, "optimiser": optimiser}
        adversary = None if strategy in ("recon", "reconsub") else Adversary(self.backbone, self._grid, config, run)
        if adversary is not None:
            keep |= {"discriminator": adversary.network, "discriminator optimiser": adversary.optimiser}
        length = run.length(epochs=config.epochs, steps=config.steps)
        size = min(config.batch_size, len(training.normal))
        steps = len(training.normal) // size  # the rest of a pass is dropped, as released
        for epoch in run.epochs(length, epoch_steps=steps, state=keep, title="ckaad"):
            self.student.train()
            for clean, bad in self._pairs(strategy, training, teacher, epoch, size):
                loss = self._loss(clean, bad, adversary, run, epoch)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        self.student.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(features)
        map_ = anomaly_map(features, student, (int(images.shape[-2]), int(images.shape[-1])), self.config.sigma)
        values = map_.flatten(1)
        if self.config.score == "top":
            values = values.topk(min(self.config.top, values.shape[1]), dim=1).values
        return Prediction(map_, values.mean(dim=1))

    def _strategy(self, training: TrainingImages, run: Run) -> Strategy:
        """What can be done with the images at hand; said where it is not what was asked for."""
        strategy = self.config.strategy
        if strategy == "recon" or len(training.anomalous):
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
        order = torch.randperm(len(training.normal), generator=epoch.generator("order of images")).tolist()
        bad = None
        if strategy != "recon" and len(training.anomalous):
            bad = passes(len(training.anomalous), size, epoch.generator("order of bad images"))
        for step in epoch.steps():
            batch = training.normal.batch(order[step * size : (step + 1) * size])
            clean = teacher(batch)
            if strategy == "recon":
                yield clean, None
            else:
                yield clean, teacher(training.anomalous.batch(next(bad)) if bad else elastic_twins(batch.images))

    def _loss(
        self, clean: list[Tensor], bad: list[Tensor] | None, adversary: Adversary | None, run: Run, epoch: Epoch
    ) -> Tensor:
        """The auto-encoder's loss of one batch, after the discriminator has taken its step."""
        count = len(clean[0])
        given = clean if bad is None else [torch.cat(pair) for pair in zip(clean, bad, strict=True)]
        with run.precision.autocast(run.device):
            made = self.student(given)
        recon = loss = layer_loss(clean, made if bad is None else [map_[:count] for map_ in made])
        if adversary is not None:
            epoch.log(**adversary.learn(given, made, count))
            loss = recon + self.config.weight * adversary.energy(made)
        elif bad is not None:
            apart = layer_loss(bad, [map_[count:] for map_ in made])
            # Our reading of the limit: once level by level nothing is alike, there is no more to push apart.
            loss = recon - self.config.sub_weight * apart.clamp_max(float(len(made)))
            epoch.log(recon_anomalous=apart.detach())
        epoch.log(loss=loss.detach(), recon=recon.detach())
        return loss


class Adversary:
    """The discriminator, its optimiser and its half of the game."""

    def __init__(self, backbone: Backbone, grid: tuple[int, int], config: CKAADConfig, run: Run) -> None:
        """Build the strategy's discriminator with fresh values.

        Args:
            backbone: whose levels it judges.
            grid: rows and columns of the deepest level.
            config: strategy, margin, weights, rate.
            run: seed, device and precision.
        """
        kind: Literal["image", "patch"] = "image" if config.strategy == "ckaimg" else "patch"
        self.network = build_discriminator(kind, backbone.levels, grid, run.generator("discriminator"))
        self.network.to(run.device).train()
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.discriminator_rate, betas=config.betas, fused=True
        )
        self._config, self._run = config, run

    def learn(self, given: list[Tensor], made: list[Tensor], count: int) -> dict[str, Tensor]:
        """One step of the discriminator; the mean energies before it, a sum over levels each.

        Args:
            given: the teacher's features, ``count`` normal images first, then bad ones.
            made: what the auto-encoder gave back of all of them; it gets no gradient.
            count: how many are normal.
        """
        sizes = [count, len(given[0]) - count, len(made[0])]
        outputs = self._outputs([torch.cat([seen, back.detach()]) for seen, back in zip(given, made, strict=True)])
        normal, bad, generated = (list(part) for part in zip(*(torch.split(output, sizes) for output in outputs)))
        if self._config.strategy == "gan":
            loss = gan_loss(normal, generated)
        else:
            parts = (energies(normal), energies(bad), energies(generated))
            loss = discriminator_loss(*parts, margin=self._config.margin, gamma=self._config.gamma)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self._config.clip)
        self.optimiser.step()
        named = {"energy_normal": normal, "energy_anomalous": bad, "energy_generated": generated}
        means = {name: mean_energy(self._energies(part)).detach() for name, part in named.items()}
        return {**means, "discriminator": loss.detach()}

    def energy(self, made: list[Tensor]) -> Tensor:
        """The mean energy of generated features, with gradient for whoever made them and none for the discriminator."""
        self.network.requires_grad_(False)
        try:
            return mean_energy(self._energies(self._outputs(made)))
        finally:
            self.network.requires_grad_(True)

    def _outputs(self, features: list[Tensor]) -> list[Tensor]:
        with self._run.precision.autocast(self._run.device):
            found: list[Tensor] = self.network(features)
        return found

    def _energies(self, outputs: list[Tensor]) -> list[Tensor]:
        # A GAN's energy is -log of the probability of being normal: its mean is the usual loss of a generator.
        return [F.softplus(-output) for output in outputs] if self._config.strategy == "gan" else energies(outputs)


def _check_grid(grid: tuple[int, int], size: tuple[int, int], config: CKAADConfig) -> None:
    left = f"{grid[1]} x {grid[0]} cells at the deepest of layers={config.layers}"
    given = f"images of {size[1]} x {size[0]} leave {left}"
    if config.strategy == "ckaimg" and min(grid) < SMALLEST_GRID:
        raise ConfigError(f"{given}, and ckaimg needs {SMALLEST_GRID} a side: give a larger --size, or ckapatch")
