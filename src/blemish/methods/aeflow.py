"""AE-FLOW: an auto-encoder with a normalising flow in its middle; bad is what is unlikely, or given back badly.

Idea: steps that can be undone turn the features of good images into independent standard normal numbers, and a small
decoder makes the image again from those. Of something unknown the numbers are unlikely, and it comes back changed.
Loss: half the mean squared difference of image and reconstruction, in [-1, 1], and half minus the log-likelihood in
bits a number.
Score: .9 x -p + .1 x -SSIM, with p the likelihood of a number, by the geometric mean, and SSIM the similarity of image
and reconstruction. The map is the same place by place (our reading).
The paper's code was not found: sizes, weights and training are an unofficial one's (github.com/Urukat/AE-Flow).
More: docs/methods/aeflow.md.

Zhao, Ding, Zhang: AE-FLOW: Autoencoders with Normalizing Flows for Medical Images Anomaly Detection, ICLR 2023.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Batch, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.errors import ConfigError
from blemish.ops.config import Count, Layers, Rate, Share, Sigma, Standardise, Steps, Width
from blemish.ops.coupling import RIDGE, Flow, convolutional, joined, negative_log_likelihood, train
from blemish.ops.norms import Standardisation
from blemish.ops.residual import initialise_uniform
from blemish.ops.smoothing import upscale
from blemish.ops.ssim import WINDOW, similarity, ssim_map
from blemish.run import Run

NORMAL = math.log(2 * math.pi) / 2  # minus the log-likelihood of 0
WIDER = (1, 4, 8, 16, 32)  # the decoder's widths, from the image upwards, in times of the narrowest


@dataclass(frozen=True)
class AEFlowConfig:
    """The unofficial code's."""

    layers: Annotated[Layers, Field(description="stages that are joined, on the deepest one's grid")] = (3,)
    flow_steps: Annotated[int, Field(ge=1, le=64, description="couplings")] = 8
    clamp: Annotated[Rate, Field(description="what a coupling's log scales stay within")] = 2.0
    standardise: Standardise = False
    width: Annotated[Width, Field(description="channels of the decoder before the image; those before are wider")] = 64
    alpha: Annotated[Share, Field(description="weight of the likelihood in the loss, of 1")] = 0.5
    beta: Annotated[Share, Field(description="weight of the likelihood in the score, of 1")] = 0.9
    epochs: Annotated[Count, Field(description="passes over the images")] = 100
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 1e-3
    sigma: Sigma = 0.0


class AEFlow(Method):
    """``scale`` standardises features, if asked to, ``flow`` takes them, ``decoder`` makes images of what it gives."""

    Config = AEFlowConfig
    config: AEFlowConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: AEFlowConfig) -> None:
        super().__init__(backbone, size, config)
        if min(size) < WINDOW:
            raise ConfigError(
                f"aeflow compares images in windows of {WINDOW} pixels, and these are {size[0]} x {size[1]}: choose a "
                f"--size of {WINDOW} or more"
            )
        channels = sum(level.channels for level in backbone.levels)
        self.scale = Standardisation([channels], RIDGE)
        self.flow = Flow(channels, [partial(convolutional, (3, 1))] * config.flow_steps, config.clamp)
        doublings = math.ceil(math.log2(backbone.levels[-1].stride))
        widths = [channels, *(config.width * wider for wider in reversed(WIDER[: doublings - 1])), 3]
        self.decoder = nn.Sequential()
        for ins, outs in pairwise(widths):  # a tanh after each, as released
            self.decoder.extend([nn.ConvTranspose2d(ins, outs, 2, stride=2), nn.Tanh()])

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images, network = self.config, training.normal, nn.ModuleList([self.flow, self.decoder])
        self.flow.reset(run.generator("flow"))
        initialise_uniform(self.decoder, run.generator("decoder"))
        if config.standardise:
            self.scale.learn([joined(teacher(batch))] for batch in in_batches(images, config.batch_size))

        def loss(batch: Batch, _: torch.Generator) -> Tensor:
            z, volume, given_back = self._seen(teacher(batch))
            bits = (negative_log_likelihood([z], volume).mean() / z[0].numel() + NORMAL) / math.log(2)
            # Of images in [-1, 1] squares are four times as large as of these.
            squares = 4 * F.mse_loss(given_back, batch.images.to(given_back.device))
            return (1 - config.alpha) * squares + config.alpha * bits

        train("aeflow", network, loss, images, config, run)

    def predict(self, images: Tensor) -> Prediction:
        z, _, given_back = self._seen(self.backbone(images))
        beta, squares = self.config.beta, z.square().mean(dim=1)
        likely = (-squares.mean(dim=(1, 2)) / 2 - NORMAL).exp()
        score = -beta * likely - (1 - beta) * similarity(images, given_back).mean(dim=(1, 2, 3))
        map_ = -beta * upscale((-squares / 2 - NORMAL).exp(), images.shape[-2:], self.config.sigma)
        apart = ssim_map(images, given_back) - 1
        return Prediction(map_ + (1 - beta) * upscale(apart, images.shape[-2:], self.config.sigma), score)

    def _seen(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What the flow makes of features, its volume, and the image ``b 3 h w`` in [0, 1] that is made of that."""
        with self.autocast(features[0]):
            (z,), volume = self.flow(*self.scale([joined(features)]))
            given_back = self.decoder(z)
        given_back = (given_back.float() + 1) / 2
        if tuple(given_back.shape[-2:]) != self.size:
            given_back = F.interpolate(given_back, self.size, mode="bilinear")
        return z, volume, given_back
