"""Small convolutional auto-encoders: an encoder down to one vector an image and the decoder that mirrors it.

A layer is its width and its stride: 4x4 convolutions of stride 2 halve the grid, 3x3 ones of stride 1 keep it. A leaky
ReLU follows each, behind a BatchNorm where one is asked for, but for what touches the image or the code.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blemish.contract import Images
from blemish.errors import ConfigError
from blemish.ops.draws import normals
from blemish.ops.residual import initialise_uniform
from blemish.run import Run, epochs
from blemish.run.loop import Schedule

Layer = tuple[int, Literal[1, 2]]

SSIM_LAYERS: list[Layer] = [(32, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (64, 1), (32, 1)]
"""AE-SSIM's, for images of 128 pixels, which leave 8 x 8 cells."""


def fitted(layers: Sequence[Layer], size: Sequence[int], most: int = 8) -> list[Layer]:
    """``layers``, with halvings of the first one's width in front till ``most`` cells are left along a side, or odd."""
    layers = list(layers)
    while min(grid := cells(layers, size)) > most and not any(side % 2 for side in grid):
        layers = [(layers[0][0], 2), *layers]
    return layers


def cells(layers: Sequence[Layer], size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns that images of ``size`` (height, width) leave; a ConfigError where they cannot be halved."""
    shrink = 2 ** sum(stride == 2 for _, stride in layers)
    if any(side % shrink for side in size):
        raise ConfigError(
            f"images of {size[0]} x {size[1]} cannot be halved evenly {shrink.bit_length() - 1} times: give a --size "
            f"whose height and width are multiples of {shrink}"
        )
    return size[0] // shrink, size[1] // shrink


def downward(layers: Sequence[Layer], channels: int = 3, norm: bool = False, slope: float = 0.2) -> nn.Sequential:
    """``b channels h w`` to the last layer's width and ``cells``."""
    network = nn.Sequential()
    for index, (ins, (outs, stride)) in enumerate(zip([channels, *(width for width, _ in layers)], layers)):
        has_norm = norm and index > 0
        network.append(nn.Conv2d(ins, outs, 2 + stride, stride, padding=1, bias=not has_norm))
        network.extend([nn.BatchNorm2d(outs)] * has_norm + [nn.LeakyReLU(slope)])
    return network


def encoder(
    layers: Sequence[Layer], size: Sequence[int], latent: int, channels: int = 3, norm: bool = False, slope: float = 0.2
) -> nn.Sequential:
    """``b channels h w``, of ``size`` (h, w) alone, to ``b latent 1 1``: a last convolution sees all that is left."""
    last = nn.Conv2d(layers[-1][0], latent, cells(layers, size))
    return downward(layers, channels, norm, slope).append(last)


def decoder(
    layers: Sequence[Layer], size: Sequence[int], latent: int, channels: int = 3, norm: bool = False, slope: float = 0.2
) -> nn.Sequential:
    """The mirror of ``encoder``, of the same layers: ``b latent 1 1`` to ``b channels h w``, without an activation."""
    widths = [channels, *(width for width, _ in layers)]
    network = nn.Sequential(nn.ConvTranspose2d(latent, widths[-1], cells(layers, size), bias=not norm))
    for index in reversed(range(len(layers))):
        ins, outs, stride = widths[index + 1], widths[index], layers[index][1]
        network.extend([nn.BatchNorm2d(ins)] * norm + [nn.LeakyReLU(slope)])
        kind: Callable[..., nn.Module] = nn.ConvTranspose2d if stride == 2 else nn.Conv2d
        network.append(kind(ins, outs, 2 + stride, stride, padding=1, bias=not norm or index == 0))
    return network


class Variational(nn.Module):
    """A variational auto-encoder: an encoder to ``b 2d 1 1``, mean and log-variance, and a decoder of ``b d 1 1``."""

    def __init__(self, encoder: nn.Sequential, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor, draws: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What it gives back of the code's mean or, with ``draws``, of a draw; the code's mean and log-variance."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        noise = 0.0 if draws is None else normals(mean.shape, draws, mean.device)
        return self.decoder(mean + noise * (log_variance / 2).exp()).float(), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """``b``: the Kullback-Leibler divergence of an image's code from a standard normal one, over all its numbers."""
    return (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(dim=1) / 2


def train(
    name: str,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Tensor, torch.Generator], dict[str, Any]],
    images: Images,
    config: Schedule,
    run: Run,
) -> None:
    """Learn from pixels alone, from fresh values: ``loss`` of images ``b 3 h w`` and what codes are drawn by."""
    initialise_uniform(network, run.generator("network"))
    for epoch in epochs(run, name, {"network": network, "optimiser": optimiser}, config, len(images)):
        network.train()
        draws = epoch.generator("codes")
        for indices in epoch.batches():
            values = loss(images.batch(indices).images.to(run.device), draws)
            epoch.descend(values["loss"], optimiser, **values)
