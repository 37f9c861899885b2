"""Visually explaining VAE: where in the image do the numbers lie that make its code unusual?

Idea: a variational auto-encoder maps good images to codes that look like standard normal draws. An unusual image has a
code far from zero, and Grad-CAM says which places of the encoder's last feature map the code hangs on.
Loss: cross-entropy of the pixels and the code's divergence from the standard normal, both summed over an image.
Score: the map is Grad-CAM of the sum of the code's means on the encoder's last convolution, in absolute value. An
image's score is the map's mean (our reading; ``elbo``: the negative evidence bound).
Written from the paper's equations. The network is the paper's small one, which halves larger images more often; there
the paper has a ResNet18. Differences: docs/methods/expvae.md.

Liu, Li, Zheng, Karanam, Wu, Bhanu, Radke, Camps: Towards Visually Explaining Variational Autoencoders, CVPR 2020.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.autoencoder import Layer, Variational, decoder, divergence, encoder, fitted, train
from blemish.ops.config import Count, Rate, Sigma, Steps, Width
from blemish.ops.gradcam import gradcam
from blemish.ops.residual import untrained
from blemish.ops.smoothing import upscale
from blemish.run import Run

LAYERS: list[Layer] = [(64, 2), (128, 2)]


@dataclass(frozen=True)
class ExpVAEConfig:
    """The paper's training of its small network."""

    latent: Annotated[Width, Field(description="numbers of a code")] = 32
    hidden: Annotated[Width, Field(description="numbers between the last feature map and the code")] = 1024
    score: Annotated[
        Literal["map", "elbo"], Field(description="an image's: its map's mean, or the negative evidence bound a pixel")
    ] = "map"
    epochs: Annotated[Count, Field(description="passes over the images")] = 100
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 1e-3
    sigma: Sigma = 0.0


class ExpVAE(Method):
    """``network``'s encoder is convolutions, then what makes a code of the last one's output."""

    Config = ExpVAEConfig
    on_pixels = True
    config: ExpVAEConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: ExpVAEConfig) -> None:
        super().__init__(backbone, size, config)
        layers, hidden = fitted(LAYERS, size), config.hidden

        def build() -> Variational:
            into, back = encoder(layers, size, hidden, slope=0), decoder(layers, size, hidden, slope=0)
            into.extend([nn.ReLU(), nn.Conv2d(hidden, 2 * config.latent, 1)])
            return Variational(into, nn.Sequential(nn.Conv2d(config.latent, hidden, 1), nn.ReLU(), back))

        self.network = untrained(build)
        self._last = 2 * len(layers) - 1  # modules up to the last convolution, each before it with an activation

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        def loss(seen: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
            with run.precision.autocast(run.device):
                back = self.network(seen, draws)
            return {"loss": negative_bounds(seen, *back).mean()}

        adam = torch.optim.Adam(self.network.parameters(), self.config.learning_rate, fused=True)
        train("expvae", self.network, adam, loss, training.normal, self.config, run)

    def predict(self, images: Tensor) -> Prediction:
        with torch.inference_mode(False), torch.enable_grad():
            given = images.clone()
            with torch.no_grad(), self.autocast(given):
                features = self.network.encoder[: self._last](given)
            features = features.float().requires_grad_()
            mean = self.network.encoder[self._last :](features)[:, : self.config.latent]
            attention = gradcam(features, mean, scaled=True).detach()
        map_ = upscale(attention, images.shape[-2:], self.config.sigma).abs()
        if self.config.score == "map":
            return Prediction(map_, map_.mean(dim=(1, 2)))
        with self.autocast(images):
            back = self.network(images)
        return Prediction(map_, negative_bounds(images, *back) / images[0, 0].numel())


def negative_bounds(images: Tensor, logits: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """``b``: cross-entropy of the pixels and divergence of the code, each summed over an image."""
    pixels = F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(dim=1)
    return pixels + divergence(mean, log_variance)
