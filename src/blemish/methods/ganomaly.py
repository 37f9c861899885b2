"""GANomaly: an image is encoded, decoded and encoded again; the two codes of a bad image differ. No map.

Idea: an auto-encoder learns to give back good images, so well that a discriminator takes them for real; a second
encoder learns to find the code again in what was given back. Of a bad image the decoder makes something good, with
another code.
Loss: the difference of image and reconstruction (L1, weight 50), of the discriminator's features of the two, and of the
two codes; in turns with the discriminator's own.
Score: the mean squared difference of the codes. There is no map.
The adversarial term compares features, as the original does; 64 pixels and 100 epochs are our reading. All differences:
docs/methods/ganomaly.md.

Akcay, Atapour-Abarghouei, Breckon: GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, ACCV 2018.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.autoencoder import Layer, decoder, encoder
from blemish.ops.config import Count, Rate, Steps, Weight, Width
from blemish.ops.residual import initialise_uniform, untrained
from blemish.ops.smoothing import shrink
from blemish.run import Run, epochs


@dataclass(frozen=True)
class GANomalyConfig:
    """Released weights of the loss and optimiser; size and length are our reading."""

    side: Annotated[Literal[16, 32, 64, 128, 256], Field(description="pixels a side that images are brought to")] = 64
    latent: Annotated[Width, Field(description="numbers in a code")] = 100
    first_width: Annotated[int, Field(ge=1, le=128, description="channels after one halving; twice as many each")] = 64
    context_weight: Annotated[Weight, Field(description="of the difference of image and reconstruction")] = 50.0
    latent_weight: Annotated[Weight, Field(description="of the difference of the codes")] = 1.0
    adversarial_weight: Annotated[Weight, Field(description="of the difference of the discriminator's features")] = 1.0
    epochs: Annotated[Count, Field(description="passes over the images")] = 100
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 64
    learning_rate: Annotated[Rate, Field(description="Adam's, of both sides")] = 2e-4
    betas: Annotated[tuple[float, float], Field(description="Adam's")] = (0.5, 0.999)


class GANomaly(Method):
    """``encoder``, ``decoder`` and ``again``, the second encoder, in ``networks``."""

    Config = GANomalyConfig
    bf16 = "never"  # the score is a small difference
    on_pixels = True
    config: GANomalyConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: GANomalyConfig) -> None:
        super().__init__(backbone, size, config)
        self.square = config.side, config.side
        # Down to 4 x 4 cells, which a last convolution reads.
        self.layers: list[Layer] = [(config.first_width << i, 2) for i in range(config.side.bit_length() - 3)]
        whole = self.layers, self.square, config.latent
        down = [untrained(lambda: encoder(*whole, norm=True)) for _ in range(2)]
        up = untrained(lambda: decoder(*whole, norm=True, slope=0.0).append(nn.Tanh()))
        self.networks = nn.ModuleList([down[0], up, down[1]])

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        discriminator = untrained(lambda: encoder(self.layers, self.square, 1, norm=True)).to(run.device)
        features, verdict = discriminator[:-1], discriminator[-1]
        for name, network in (("generator", self.networks), ("discriminator", discriminator)):
            _initialise(network, run.generator(name))
        making, telling = (
            torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
            for network in (self.networks, discriminator)
        )
        state = {"networks": self.networks, "discriminator": discriminator, "making": making, "telling": telling}
        for epoch in epochs(run, "ganomaly", state, config, len(images)):
            self.networks.train()
            discriminator.train()
            for indices in epoch.batches():
                real = 2 * shrink(images.batch(indices).images.to(run.device), self.square) - 1
                code, made, code_again = self._pass(real)
                context, latent = F.l1_loss(made, real), F.smooth_l1_loss(code_again, code)
                loss = config.context_weight * context + config.latent_weight * latent
                loss = loss + config.adversarial_weight * F.mse_loss(features(made), features(real))
                epoch.descend(loss, making, loss=loss, context=context, latent=latent)
                told_real, told_made = (verdict(features(seen)) for seen in (real, made.detach()))
                told = (F.softplus(-told_real).mean() + F.softplus(told_made).mean()) / 2
                telling.zero_grad(set_to_none=True)  # of the other loss, which goes through it
                epoch.descend(told, telling, told=told)

    def predict(self, images: Tensor) -> Prediction:
        code, _, code_again = self._pass(2 * shrink(images, self.square) - 1)
        return Prediction(None, (code - code_again).square().flatten(1).mean(dim=1))

    def _pass(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code, reconstruction and its code."""
        code = self.networks[0](images)
        made = self.networks[1](code)
        return code, made, self.networks[2](made)


@torch.no_grad()
def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh values: convolutions' as released, normal with a deviation of .02; biases 0, norms 1."""
    initialise_uniform(network, generator)
    for name, values in network.named_parameters():
        if values.ndim == 4:
            values.copy_(torch.empty(values.shape).normal_(std=0.02, generator=generator))
        elif name.endswith("bias"):
            values.zero_()
