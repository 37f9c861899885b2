"""AE-SSIM and AE-L2: an auto-encoder of good images cannot give a defect back.

Idea: a small network squeezes the image into a few numbers and builds it again. It learns on good images alone, so what
it builds looks good; where the image differs from it, something is wrong.
Loss: 1 - structural similarity of windows of 11 x 11 pixels (``measure=ssim``), or the squared difference (``l2``).
Score: the map is the same comparison of the image and what came back, pixel by pixel; an image's score is its highest
value (the paper has none).
The network is the paper's for 128 pixels; larger images are halved more often at both ends, as the paper does for 256.
Good images are not augmented, and textures are not cut (``--tile`` does that). Differences: docs/methods/ae.md.

Bergmann, Löwe, Fauser, Sattlegger, Steger: Improving Unsupervised Defect Segmentation by Applying Structural Similarity
to Autoencoders, VISAPP 2019.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.autoencoder import SSIM_LAYERS, decoder, encoder, fitted
from blemish.ops.config import Count, Rate, Sigma, Steps, Weight, Width
from blemish.ops.residual import initialise_uniform, untrained
from blemish.ops.smoothing import upscale
from blemish.ops.ssim import Measure, residual_map, similarity
from blemish.run import Run, epochs


@dataclass(frozen=True)
class AEConfig:
    """The known training, on whole images."""

    measure: Annotated[
        Measure, Field(description="ssim: structural similarity of windows of 11 x 11 pixels; l2: squared difference")
    ] = "ssim"
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
    regimes = frozenset({"clean"})
    on_pixels = True
    config: AEConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: AEConfig) -> None:
        super().__init__(backbone, size, config)
        layers, latent = fitted(SSIM_LAYERS, size), config.latent
        self.network = untrained(
            lambda: nn.Sequential(encoder(layers, size, latent), decoder(layers, size, latent), nn.Sigmoid())
        )

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        initialise_uniform(self.network, run.generator("network"))
        parameters, decay = self.network.parameters(), config.weight_decay
        optimiser = torch.optim.Adam(parameters, config.learning_rate, weight_decay=decay, fused=True)
        for epoch in epochs(run, "ae", {"network": self.network, "optimiser": optimiser}, config, len(images)):
            for indices in epoch.batches():
                seen = images.batch(indices).images.to(run.device)
                with run.precision.autocast(run.device):
                    made = self.network(seen).float()
                loss = 1 - similarity(seen, made).mean() if config.measure == "ssim" else (seen - made).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                epoch.log(loss=loss.detach())

    def predict(self, images: Tensor) -> Prediction:
        with self.autocast(images):
            made = self.network(images)
        map_ = residual_map(images, made.float(), self.config.measure)
        map_ = upscale(map_, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))
