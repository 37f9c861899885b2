"""CS-Flow: one normalising flow over three sizes of the image at once, which exchange what they see.

Idea: steps that can be undone turn features of the image, at its size, half and a quarter of it, into independent
standard normal numbers z. What is inside each step reads all three maps: finer ones pass on what they see by strided,
coarser ones by enlarged convolutions. What good images never showed, at whatever scale, lands far from 0.
Loss: minus the log-likelihood of all three maps, by the number. Score: the mean of z²/2 over all numbers; the map is
the mean of z² over the channels of the finest scale, enlarged.
As released (github.com/marco-rudolph/cs-flow), but for the backbone. Differences: docs/methods/csflow.md.

Rudolph, Wehrbein, Rosenhahn, Wandt: Fully Convolutional Cross-Scale-Flows, WACV 2022.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Batch, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Sigma, Standardise, Steps, Weight, Width
from blemish.ops.coupling import RIDGE, SCALES, Flow, check_pyramid, negative_log_likelihood, pyramid, train
from blemish.ops.norms import Standardisation
from blemish.ops.residual import untrained
from blemish.ops.smoothing import upscale
from blemish.run import Run


@dataclass(frozen=True)
class CSFlowConfig:
    """The released training."""

    layers: Annotated[Layers, Field(description="stages that are joined, on the deepest one's grid")] = (3,)
    flow_steps: Annotated[int, Field(ge=1, le=64, description="couplings; the last one sees 5 x 5 cells")] = 4
    hidden: Annotated[Width, Field(description="channels inside a coupling, at each scale")] = 1024
    clamp: Annotated[Rate, Field(description="what a coupling's log scales stay within")] = 3.0
    standardise: Standardise = False
    epochs: Annotated[Count, Field(description="passes over the images")] = 240
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 2e-4
    betas: Annotated[tuple[float, float], Field(description="Adam's")] = (0.9, 0.999)
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5
    clip: Annotated[Rate, Field(description="largest norm of the gradient")] = 1.0
    sigma: Sigma = 0.0


class CSFlow(Method):
    """``scale`` standardises the features of each size of the image, if asked to; ``flow`` takes them all."""

    Config = CSFlowConfig
    config: CSFlowConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CSFlowConfig) -> None:
        super().__init__(backbone, size, config)
        check_pyramid("csflow", backbone, size)
        width = sum(level.channels for level in backbone.levels)
        subnets = [partial(CrossScale, config.hidden, kernel) for kernel in [3] * (config.flow_steps - 1) + [5]]
        self.scale = Standardisation([width] * SCALES, RIDGE)
        self.flow = untrained(lambda: Flow(width, subnets, config.clamp, two_sided=True))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        self.flow.reset(run.generator("flow"))
        with torch.no_grad():
            for subnet in (module for module in self.flow.modules() if isinstance(module, CrossScale)):
                subnet.gain.zero_()
        if config.standardise:
            self.scale.learn(pyramid(teacher, batch, batch.images) for batch in in_batches(images, config.batch_size))

        def loss(batch: Batch, _: torch.Generator) -> Tensor:
            maps, volume = self._flowed(pyramid(teacher, batch, batch.images))
            return negative_log_likelihood(maps, volume).mean() / sum(map_[0].numel() for map_ in maps)

        adam = {"betas": config.betas, "eps": 1e-4, "weight_decay": config.weight_decay}
        train("csflow", self.flow, loss, images, config, run, config.clip, **adam)

    def predict(self, images: Tensor) -> Prediction:
        flowed, _ = self._flowed(pyramid(self.backbone, images, images))
        squares = [map_.square() for map_ in flowed]
        score = torch.cat([square.flatten(1) for square in squares], dim=1).mean(dim=1) / 2
        return Prediction(upscale(squares[0].mean(dim=1), images.shape[-2:], self.config.sigma), score)

    def _flowed(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        with self.autocast(features[0]):
            return self.flow(*self.scale(features))  # type: ignore[no-any-return]


class CrossScale(nn.Module):
    """A coupling's subnet: maps ``b ins y x`` of three sizes, the finest first, to ``b outs y x`` of the same."""

    def __init__(self, hidden: int, kernel: int, ins: int, outs: int) -> None:
        super().__init__()

        def convolutions(count: int, ins: int, outs: int, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(ins, outs, kernel, stride, kernel // 2) for _ in range(count))

        self.enter, self.leave = convolutions(SCALES, ins, hidden), convolutions(SCALES, hidden, outs)
        self.up, self.down = convolutions(SCALES - 1, hidden, outs), convolutions(SCALES - 1, hidden, outs, stride=2)
        self.gain = nn.Parameter(torch.zeros(SCALES))

    def forward(self, *maps: Tensor) -> list[Tensor]:
        inner = [F.leaky_relu(enter(map_), 0.1) for enter, map_ in zip(self.enter, maps, strict=True)]
        found = [leave(map_) for leave, map_ in zip(self.leave, inner)]
        for number, (up, down) in enumerate(zip(self.up, self.down)):
            fine, coarse = inner[number : number + 2]
            found[number] = found[number] + up(F.interpolate(coarse, fine.shape[-2:], mode="bilinear"))
            rows, columns = coarse.shape[-2:]  # where the backbone rounds down, halving gives one too many
            found[number + 1] = found[number + 1] + down(fine)[..., :rows, :columns]
        return [gain * map_ for gain, map_ in zip(self.gain, found)]
