"""gamma-VAE with gradient projection: walk from the image to the nearest one that the model can make.

Idea: a variational auto-encoder learns good images, and with them how large its errors are (gamma). An image is then
moved, pixel by pixel, down the model's reconstruction error, while a second term holds it close to where it began: good
places stay and the defect is repaired.
Loss: the evidence bound with a variance gamma that is learned (``gamma_loss``).
Score: the map compares the image before and after by structural similarity (``measure=l2``: squared difference); an
image's score is its highest value (our reading).
A step: x - rate * (gradient of the error + weight * sign(x - start)) * (x - f(x))^2. As in both known codes the slope
leaves f alone; with ``through=true`` it does not, as in the paper. Network: AE-SSIM's. More: docs/methods/gammavae.md.

Dehaene, Frigo, Combrexelle, Eline: Iterative Energy-Based Projection on a Normal Data Manifold for Anomaly
Localization, ICLR 2020.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.autoencoder import SSIM_LAYERS, Variational, decoder, divergence, encoder, fitted, train
from blemish.ops.config import Count, Rate, Sigma, Steps, Weight, Width
from blemish.ops.residual import untrained
from blemish.ops.smoothing import upscale
from blemish.ops.ssim import Measure, residual_map
from blemish.run import Run

SMALLEST_GAMMA = 1e-6  # keeps the logarithm finite where images are given back to the bit


@dataclass(frozen=True)
class GammaVAEConfig:
    """What the two known codes say; docs/methods/gammavae.md has which."""

    measure: Annotated[
        Measure, Field(description="of the map: ssim, structural similarity of 11 x 11 pixels; l2, squared difference")
    ] = "ssim"
    latent: Annotated[Width, Field(description="numbers that an image is squeezed into")] = 100
    iterations: Annotated[
        int, Field(ge=1, le=1000, description="steps of the walk: a verdict takes as many times as long")
    ] = 25
    rate: Annotated[Rate, Field(description="length of the walk's steps")] = 0.5
    weight: Annotated[Weight, Field(description="lambda, of the distance from the image that the walk began at")] = 0.05
    through: Annotated[bool, Field(description="follow the gradient through the network, too")] = False
    epochs: Annotated[Count, Field(description="passes over the images")] = 250
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step of learning")] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 5e-4
    betas: Annotated[tuple[float, float], Field(description="Adam's")] = (0.5, 0.999)
    sigma: Sigma = 0.0


class GammaVAE(Method):
    """``network`` gives back what it takes for a good image."""

    Config = GammaVAEConfig
    on_pixels = True
    config: GammaVAEConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: GammaVAEConfig) -> None:
        super().__init__(backbone, size, config)
        self.needs_gradient = config.through
        layers, latent = fitted(SSIM_LAYERS, size), config.latent
        self.network = untrained(lambda: Variational(encoder(layers, size, 2 * latent), decoder(layers, size, latent)))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config = self.config
        adam = torch.optim.Adam(self.network.parameters(), config.learning_rate, config.betas, fused=True)

        def loss(seen: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
            with run.precision.autocast(run.device):
                logits, mean, log_variance = self.network(seen, draws)
            return gamma_loss(seen, logits.sigmoid(), divergence(mean, log_variance))

        train("gammavae", self.network, adam, loss, training.normal, config, run)

    def predict(self, images: Tensor) -> Prediction:
        moved = images
        for _ in range(self.config.iterations):
            moved = self._step(moved, images)
        map_ = upscale(residual_map(images, moved, self.config.measure), images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _step(self, images: Tensor, start: Tensor) -> Tensor:
        """The images a step further on their walk from ``start``."""
        if self.config.through:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = images.clone().requires_grad_()
                made = self._given_back(leaf)
                (slope,) = torch.autograd.grad((leaf - made).square().sum(), leaf)
                made = made.detach()
        else:
            made = self._given_back(images)
            slope = 2 * (images - made)
        slope = slope + self.config.weight * (images - start).sign()
        return (images - self.config.rate * slope * (images - made).square()).clamp(0, 1)

    def _given_back(self, images: Tensor) -> Tensor:
        with self.autocast(images):
            made: Tensor = self.network(images)[0]
        return made.sigmoid()


def gamma_loss(images: Tensor, made: Tensor, divergences: Tensor) -> dict[str, Tensor]:
    """The bound's negative a value of an image, less a constant, at the best ``gamma`` for these; and that gamma.

    With d values an image, d/2 log(gamma) + |x - made|^2 / (2 gamma) is least where gamma is the mean squared error,
    and then d/2 (log(gamma) + 1).
    """
    gamma = (images - made).square().mean().clamp_min(SMALLEST_GAMMA)
    return {"loss": gamma.log() / 2 + divergences.mean() / images[0].numel(), "gamma": gamma}
