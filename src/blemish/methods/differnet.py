"""DifferNet: a normalising flow over a whole image's features, seen in many directions; there is no map.

Idea: features of an image at three sizes, averaged over all places, are one vector. Steps that can be undone turn the
vectors of good images, turned at random, into independent standard normal numbers z. An image is judged in many
directions, so that how a part lies counts little.
Loss: minus the log-likelihood of a vector, by the number. Score: the mean of z² over numbers and directions.
As released (github.com/marco-rudolph/differnet), but for the backbone (there AlexNet). The released map, a gradient
with respect to the pixels for looking at, is left out, so that a model exports. Differences: docs/methods/differnet.md.

Rudolph, Wandt, Rosenhahn: Same Same But DifferNet, WACV 2021.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Batch, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Standardise, Steps, Weight, Width
from blemish.ops.coupling import RIDGE, SCALES, Flow, check_pyramid, dense, negative_log_likelihood, pyramid, train
from blemish.ops.norms import Standardisation
from blemish.ops.residual import untrained
from blemish.run import Run


@dataclass(frozen=True)
class DifferNetConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages whose channels are averaged over the image")] = (3,)
    flow_steps: Annotated[int, Field(ge=1, le=64, description="couplings")] = 8
    hidden: Annotated[Width, Field(description="numbers in each of three layers inside a coupling")] = 2048
    clamp: Annotated[Rate, Field(description="what a coupling's log scales stay within")] = 3.0
    standardise: Standardise = False
    turns: Annotated[
        int, Field(ge=0, le=64, description="random directions in which a step sees each image; 0: as it is")
    ] = 4
    test_turns: Annotated[
        int, Field(ge=1, le=360, description="even directions in which an image is judged; 1: as it is")
    ] = 64
    epochs: Annotated[Count, Field(description="passes over the images")] = 192
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 24
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 2e-4
    betas: Annotated[tuple[float, float], Field(description="Adam's")] = (0.8, 0.8)
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5


class DifferNet(Method):
    """``scale`` standardises an image's vector, if asked to; ``flow`` takes it."""

    Config = DifferNetConfig
    config: DifferNetConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DifferNetConfig) -> None:
        super().__init__(backbone, size, config)
        check_pyramid("differnet", backbone, size)
        width, subnets = sum(level.channels for level in backbone.levels), [partial(dense, config.hidden)]
        self.scale = Standardisation([width] * SCALES, RIDGE)
        self.flow = untrained(lambda: Flow(SCALES * width, subnets * config.flow_steps, config.clamp, two_sided=True))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images, turns = self.config, training.normal, self.config.turns

        def means(batch: Batch, draws: torch.Generator) -> list[Tensor]:
            if turns == 0:
                return _means(teacher, batch, batch.images)
            several = batch.images.repeat_interleave(turns, dim=0)
            several = turned(several, 360 * torch.rand(len(several), generator=draws).to(several.device))
            return _means(teacher, several, several)

        def loss(batch: Batch, draws: torch.Generator) -> Tensor:
            z, volume = self._flowed(means(batch, draws))
            return negative_log_likelihood([z], volume).mean() / z.shape[1]

        self.flow.reset(run.generator("flow"))
        if config.standardise:
            draws = run.generator("directions for the scale")
            self.scale.learn(means(batch, draws) for batch in in_batches(images, config.batch_size))
        adam: dict[str, Any] = {"betas": config.betas, "eps": 1e-4, "weight_decay": config.weight_decay}
        train("differnet", self.flow, loss, images, config, run, **adam)

    def predict(self, images: Tensor) -> Prediction:
        count, alone = self.config.test_turns, not torch.compiler.is_compiling()  # a graph cannot count images
        scores = []
        for given in torch.split(images, 1) if alone else [images]:
            angles = torch.arange(count, device=images.device).repeat(given.shape[0]) * (360 / count)
            posed = turned(given.repeat_interleave(count, dim=0), angles) if count > 1 else given
            z, _ = self._flowed(_means(self.backbone, posed, posed))
            scores.append(z.square().mean(dim=1).view(-1, count).mean(dim=1))
        return Prediction(None, torch.cat(scores))

    def _flowed(self, means: list[Tensor]) -> tuple[Tensor, Tensor]:
        with self.autocast(means[0]):
            (z,), volume = self.flow(torch.cat(self.scale(means), dim=1).flatten(1))
        return z, volume


def _means(see: Callable[[Any], list[Tensor]], given: Batch | Tensor, images: Tensor) -> list[Tensor]:
    """``b c 1 1``, of each size: the features of what is ``given``, averaged over all places."""
    return [map_.mean(dim=(2, 3), keepdim=True) for map_ in pyramid(see, given, images)]


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """``b c h w``, each turned anticlockwise by its own of ``degrees`` ``b``; black comes in, as released."""
    height, width = images.shape[-2:]
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    rows = [cos, -sin * height / width, 0 * cos, sin * width / height, cos, 0 * cos]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
