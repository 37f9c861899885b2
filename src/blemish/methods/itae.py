"""ITAE: colour and orientation are erased from an image, and a network puts them back; of a bad one it cannot.

Idea: the image is made grey and turned by a random quarter, and a U-Net gives back the original, upright and in colour.
To know which way is up it must know what good images mean, which a mere copy does not ask for.
Loss: squared difference from the original.
Score: the mean absolute difference, for each of the four turns over its mean on the good images, averaged. The map, the
same without the mean over places and smoothed, is ours.
Network, gradient descent at .1 halved at each tenth of the training, and score are the known (unofficial) code's, which
keeps the best epoch on the test set; here the last one stays. The code says nothing on large images: size, batch and
length are our reading, and images that are not square are brought to a square. All differences: docs/methods/itae.md.

Huang, Cao, Ye, Li, Zhang, Lu: Inverse-Transform AutoEncoder for Anomaly Detection, 2019 (later: Attribute Restoration).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.config import LATER, Count, Rate, Sigma, Steps
from blemish.ops.passes import batches
from blemish.ops.residual import initialise_uniform, untrained
from blemish.ops.smoothing import shrink, upscale
from blemish.run import Run, epochs


@dataclass(frozen=True)
class ITAEConfig:
    """The known code's network and optimiser; batch and length are our reading."""

    first_width: Annotated[int, Field(ge=1, le=128, description="channels at the finest grid; up to eight times")] = 64
    epochs: Annotated[Count, Field(description="passes over the images")] = 125
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 16
    optimiser: Annotated[
        Literal["sgd", "adam"], Field(description="adam: less fragile on large images; set learning_rate=0.001"), LATER
    ] = "sgd"
    learning_rate: Annotated[Rate, Field(description="of the optimiser, halved at each tenth of the training")] = 0.1
    sigma: Sigma = 4.0


class ITAE(Method):
    """``network`` restores; ``usual``: its mean difference on good images for each of four turns."""

    Config = ITAEConfig
    on_pixels = True
    has_schedule = True
    config: ITAEConfig
    usual: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: ITAEConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells((max(size),) * 2, 16, "itae", rounds_up=False)
        self.network = untrained(lambda: UNet(config.first_width))
        self.register_buffer("usual", torch.ones(4))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        initialise_uniform(self.network, run.generator("network"))
        kind = torch.optim.SGD if config.optimiser == "sgd" else torch.optim.Adam
        optimiser = kind(self.network.parameters(), config.learning_rate)
        for epoch in epochs(run, "itae", {"network": self.network, "optimiser": optimiser}, config, len(images)):
            self.network.train()
            optimiser.param_groups[0]["lr"] = config.learning_rate * 0.5 ** (10 * (epoch.number - 1) // epoch.of)
            draws = epoch.generator("turns")
            for indices in epoch.batches():
                original = self._squared(images.batch(indices).images.to(run.device))
                turns = torch.randint(4, (len(indices),), generator=draws).tolist()
                erased = torch.cat([_erased(one[None], turn) for one, turn in zip(original, turns)])
                with run.precision.autocast(run.device):
                    restored = self.network(erased)
                loss = F.mse_loss(restored.float(), original)
                epoch.descend(loss, optimiser, loss=loss)

    @torch.no_grad()
    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """Measure how well good images are restored."""
        seen = batches(training.normal, run, "restoring good images")
        means = [self._differences(batch.images.to(run.device)).mean(dim=(2, 3)) for batch in seen]
        self.usual.copy_(torch.cat(means, dim=1).mean(dim=1).clamp_min(1e-6))

    def predict(self, images: Tensor) -> Prediction:
        map_ = (self._differences(images) / self.usual[:, None, None, None]).mean(dim=0)
        return Prediction(upscale(map_, images.shape[-2:], self.config.sigma), map_.mean(dim=(1, 2)))

    def _squared(self, images: Tensor) -> Tensor:
        """``b 3 s s`` in [-1, 1]."""
        return 2 * shrink(images, (max(self.size), max(self.size))) - 1

    def _differences(self, images: Tensor) -> Tensor:
        """``4 b s s``: of the original and what is restored after each turn, the mean over the channels."""
        original = self._squared(images)
        with self.autocast(images):
            restored = [self.network(_erased(original, turn)) for turn in range(4)]
        return torch.stack([(one.float() - original).abs().mean(dim=1) for one in restored])


def _erased(images: Tensor, turn: int) -> Tensor:
    """Grey and turned: ``b 3 s s`` to ``b 1 s s``."""
    return images.mean(dim=1, keepdim=True).rot90(turn, (2, 3))


class UNet(nn.Module):
    """``b 1 s s`` to ``b 3 s s`` in [-1, 1], over four halvings of the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        ins = [2 * skip for skip in reversed(widths[:-1])]
        self.down = nn.ModuleList(_twice(*pair) for pair in pairwise([1, *widths]))
        self.up = nn.ModuleList(_twice(*pair) for pair in zip(ins, [4 * width, 2 * width, width, width]))
        self.last = nn.Conv2d(width, 3, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.down:
            maps = down(F.max_pool2d(maps, 2) if skips else maps)
            skips.append(maps)
        for up, skip in zip(self.up, reversed(skips[:-1])):
            maps = up(torch.cat([skip, upscale(maps, skip.shape[-2:], 0, align_corners=True)], dim=1))
        restored: Tensor = self.last(maps).tanh()
        return restored


def _twice(ins: int, outs: int) -> nn.Sequential:
    first, second = (nn.Conv2d(width, outs, 3, padding=1) for width in (ins, outs))
    return nn.Sequential(first, nn.BatchNorm2d(outs), nn.ReLU(), second, nn.BatchNorm2d(outs), nn.ReLU())
