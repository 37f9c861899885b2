"""AE-SSIM and AE-L2: an auto-encoder of good images cannot give a defect back.

Idea: a small network squeezes the image into a few numbers and builds it again. It learns on good images alone, so what
it builds looks good; where the image differs from it, something is wrong.
Loss: 1 - structural similarity of windows of 11 x 11 pixels (``measure=ssim``), or the squared difference (``l2``).
Score: the map is the same comparison at every pixel; an image's score is its highest value (our reading).
The network is the paper's, which halves larger images more often. Differences: docs/methods/ae.md.

Bergmann, Löwe, Fauser, Sattlegger, Steger: Improving Unsupervised Defect Segmentation by Applying Structural Similarity
to Autoencoders, VISAPP 2019.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.autoencoder import SSIM_LAYERS, decoder, encoder, fitted, train
from blemish.ops.config import LATER, Count, Rate, Sigma, Steps, Weight, Width
from blemish.ops.residual import untrained
from blemish.ops.smoothing import upscale
from blemish.ops.ssim import Measure, residual_map, similarity
from blemish.run import Run


@dataclass(frozen=True)
class AEConfig:
    """The known training, on whole images."""

    measure: Annotated[
        Measure, Field(description="ssim: structural similarity of windows of 11 x 11 pixels; l2: squared difference")
    ] = "ssim"
    residual: Annotated[
        Literal["measure", "l1"],
        Field(description="what the map shows: the measure learned by, or the absolute difference"),
        LATER,
    ] = "measure"
    latent: Annotated[Width, Field(description="numbers that an image is squeezed into")] = 100
    epochs: Annotated[Count, Field(description="passes over the images")] = 200
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 2e-4
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5
    sigma: Sigma = 0.0


class AE(Method):
    """``network`` is encoder and decoder in one."""

    Config = AEConfig
    on_pixels = True
    config: AEConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: AEConfig) -> None:
        super().__init__(backbone, size, config)
        layers, latent = fitted(SSIM_LAYERS, size), config.latent
        self.network = untrained(lambda: nn.Sequential(encoder(layers, size, latent), decoder(layers, size, latent)))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, parameters = self.config, self.network.parameters()
        adam = torch.optim.Adam(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)

        def loss(seen: Tensor, _: torch.Generator) -> dict[str, Tensor]:
            made = self._given_back(seen)
            is_ssim = config.measure == "ssim"
            return {"loss": 1 - similarity(seen, made).mean() if is_ssim else (seen - made).square().mean()}

        train("ae", self.network, adam, loss, training.normal, config, run)

    def predict(self, images: Tensor) -> Prediction:
        by = self.config.measure if self.config.residual == "measure" else "l1"
        residual = residual_map(images, self._given_back(images), by)
        map_ = upscale(residual, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _given_back(self, images: Tensor) -> Tensor:
        with self.autocast(images):
            made: Tensor = self.network(images)
        return made.float().sigmoid()
