"""DSEBM: a network gives each image an energy, low where good images lie; it learns by taking noise away.

Idea: the energy is half the squared distance from a learned image b, less the outputs h of a small network. A step down
its slope, x - dE/dx, is to lead from a noisy good image to the clean one.
Loss: the squared difference of that step's end and the clean image (denoising score matching).
Score: the energy of the image as it is, or the squared length of the slope there. The map is ours: how far the step
moves each pixel. The slope is written out as a pass back through the same weights, so that judging needs no gradient.
Softplus throughout, as in the paper, and no norms, through which a slope would depend on a batch's other images: the
known code has ReLU and batch norms. All differences: docs/methods/dsebm.md.

Zhai, Cheng, Lu, Zhang: Deep Structured Energy Based Models for Anomaly Detection, ICML 2016.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Rate, Sigma, Steps, Width
from blemish.ops.draws import normals
from blemish.ops.residual import initialise_uniform, untrained
from blemish.ops.smoothing import shrink, upscale
from blemish.run import Run, epochs


@dataclass(frozen=True)
class DSEBMConfig:
    """The known code's training; its networks but for norms and activations."""

    side: Annotated[Literal[16, 32, 64, 128], Field(description="pixels a side that images are brought to")] = 32
    first_width: Annotated[int, Field(ge=1, le=128, description="channels after one halving; twice as many each")] = 64
    units: Annotated[Width, Field(description="outputs that are taken off the energy")] = 256
    noise: Annotated[Rate, Field(description="deviation, of values in [-1, 1], that it learns to take off")] = 0.5
    score: Annotated[
        Literal["energy", "slope"], Field(description="an image's: its energy, or its slope's squared length")
    ] = "energy"
    epochs: Annotated[Count, Field(description="passes over the images")] = 200
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 128
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 1e-3
    sigma: Sigma = 4.0


class DSEBM(Method):
    """``energy``: a network with a slope of its own."""

    Config = DSEBMConfig
    bf16 = "never"  # of sums over thousands of pixels, small differences count
    on_pixels = True
    config: DSEBMConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DSEBMConfig) -> None:
        super().__init__(backbone, size, config)
        self.square = config.side, config.side
        self.energy = untrained(lambda: Energy(config.side, config.first_width, config.units))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        initialise_uniform(self.energy, run.generator("energy"))
        nn.init.zeros_(self.energy.centre)
        optimiser = torch.optim.Adam(self.energy.parameters(), lr=config.learning_rate, fused=True)
        for epoch in epochs(run, "dsebm", {"energy": self.energy, "optimiser": optimiser}, config, len(images)):
            draws = epoch.generator("noise")
            for indices in epoch.batches():
                clean = 2 * shrink(images.batch(indices).images.to(run.device), self.square) - 1
                noise = config.noise * normals(clean.shape, draws, run.device)
                loss = F.mse_loss(self.energy(clean + noise)[1], clean)
                epoch.descend(loss, optimiser, loss=loss)

    def predict(self, images: Tensor) -> Prediction:
        small = 2 * shrink(images, self.square) - 1
        energy, end = self.energy(small)
        slope = (small - end).square()
        score = energy if self.config.score == "energy" else slope.flatten(1).sum(dim=1)
        return Prediction(upscale(slope.mean(dim=1), images.shape[-2:], self.config.sigma), score)


class Energy(nn.Module):
    """E(x) = |x - b|^2 / 2 - sum of h(x), and the step down its slope."""

    def __init__(self, side: int, width: int, units: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.convolutions = nn.ModuleList(nn.Conv2d(ins, outs, 3, 2, 1) for ins, outs in pairwise(widths))
        self.units = nn.Linear(4 * width * (side // 8) ** 2, units)
        self.centre = nn.Parameter(torch.zeros(3, side, side))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``b`` of ``b 3 side side``, and the images less their slopes, of the images' shape."""
        inner, sums = images, []
        for convolution in self.convolutions:
            sums.append(convolution(inner))
            inner = F.softplus(sums[-1])
        units = self.units(inner.flatten(1))
        energy = (images - self.centre).square().flatten(1).sum(dim=1) / 2 - F.softplus(units).sum(dim=1)
        # Backwards through the same weights; the slope of a softplus is a sigmoid.
        slope = (torch.sigmoid(units) @ self.units.weight).view(-1, *inner.shape[1:])
        for convolution, sum_ in zip(reversed(self.convolutions), reversed(sums)):
            slope = slope * torch.sigmoid(sum_)
            slope = F.conv_transpose2d(slope, convolution.weight, None, 2, 1, 1)  # type: ignore[arg-type]
        return energy, self.centre + slope
