"""GeoTrans: a classifier tells how a good image was turned, flipped and shifted; of a bad one it cannot. No map.

Idea: 72 transformations (flipped or not, shifted by a quarter of the side in x and y or not, turned by quarters) make a
problem with labels out of good images alone. Who can tell them apart knows what marks good images.
Loss: cross-entropy over the 72.
Score: for each transformation, a Dirichlet distribution is fitted to the classifier's outputs for the transformed good
images; an image is as bad as its own outputs are unlikely under them, averaged over the transformations. No map.
As released: a wide residual network (depth 10, four times as wide), images of 32 pixels, three epochs over all
transformed images. Logarithms have a floor, which the released code lacks, and the Dirichlets are fitted by Newton's
method. Textures and round parts look alike turned: there it is weak. All differences: docs/methods/geotrans.md.

Golan and El-Yaniv: Deep Anomaly Detection Using Geometric Transformations, NeurIPS 2018.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Rate, Steps, Weight
from blemish.ops.passes import batches
from blemish.ops.residual import initialise, initialise_uniform, untrained
from blemish.ops.smoothing import shrink
from blemish.run import Run, epochs

KINDS = 72  # transformations
PORTIONS = 8  # of the 72, that an image's verdict is computed in: less memory
FLOOR = math.log(1e-6)  # of a share
LARGEST = 1e6  # of a Dirichlet's parameters, which images without any difference would raise without end


@dataclass(frozen=True)
class GeoTransConfig:
    """The released settings for small images."""

    side: Annotated[Literal[16, 32, 64], Field(description="pixels a side that images are brought to")] = 32
    widen: Annotated[int, Field(ge=1, le=16, description="the classifier has 16, 32 and 64 times as many channels")] = 4
    blocks: Annotated[int, Field(ge=1, le=8, description="of each of its three stages; 2 make it 16 deep")] = 1
    score: Annotated[
        Literal["dirichlet", "simple"],
        Field(description="an image's: how unlikely its outputs are, or 1 less the true transformation's mean share"),
    ] = "dirichlet"
    repeats: Annotated[int, Field(ge=1, le=KINDS, description="transformations of an image in an epoch")] = KINDS
    epochs: Annotated[Count, Field(description="passes over the images, with as many of each as repeats says")] = 3
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="transformed images a step")] = 128
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 1e-3
    weight_decay: Annotated[Weight, Field(description="Adam's: twice the released factor of squared weights")] = 5e-4


class GeoTrans(Method):
    """``network`` tells transformations apart; ``alpha`` ``t k`` are the Dirichlets of its outputs for good images.

    ``usual`` ``t k`` are those outputs' mean logarithms: less them, sums keep the digits in which images differ.
    """

    Config = GeoTransConfig
    bf16 = "never"  # logarithms of small shares
    on_pixels = True
    config: GeoTransConfig
    moves: Tensor
    alpha: Tensor
    usual: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: GeoTransConfig) -> None:
        super().__init__(backbone, size, config)
        self.network = untrained(lambda: wide_network(config.widen, config.blocks))
        self.register_buffer("moves", transformations(config.side), persistent=False)
        self.register_buffer("alpha", torch.ones(KINDS, KINDS))
        self.register_buffer("usual", torch.zeros(KINDS, KINDS))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, draws = self.config, run.generator("network")
        initialise(self.network, draws)
        initialise_uniform(self.network[-1:], draws)
        images = self._prepared(training.normal, run)
        count, rate, decay = config.repeats * len(images), config.learning_rate, config.weight_decay
        optimiser = torch.optim.Adam(self.network.parameters(), lr=rate, weight_decay=decay, fused=True)
        state, steps = {"network": self.network, "optimiser": optimiser}, math.ceil(count / config.batch_size)
        for epoch in epochs(run, "geotrans", state, config, epoch_steps=steps):
            self.network.train()
            drawn = epoch.permutation(KINDS * len(images), "order of transformed images")[:count]
            order = torch.tensor(drawn, device=run.device)
            for step in epoch.steps():
                chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
                kinds = chosen % KINDS
                pixels = images[chosen // KINDS].gather(2, self.moves[kinds, None].expand(-1, 3, -1))
                loss = F.cross_entropy(self._logits(pixels), kinds)
                epoch.descend(loss, optimiser, loss=loss)

    @torch.no_grad()
    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """Fit the Dirichlets to what the classifier says of good images."""
        if self.config.score == "dirichlet":
            images = self._prepared(training.normal, run)
            shares = torch.cat([self._log_shares(some).cpu() for some in torch.split(images, 4)]).double().exp()
            self.alpha.copy_(dirichlets(shares))
            self.usual.copy_(shares.log().mean(dim=0))

    def predict(self, images: Tensor) -> Prediction:
        logs = self._log_shares(self._small(images))
        if self.config.score == "simple":
            return Prediction(None, 1 - logs.diagonal(dim1=1, dim2=2).exp().mean(dim=1))
        return Prediction(None, ((1 - self.alpha) * (logs - self.usual)).sum(dim=2).mean(dim=1))

    def _small(self, images: Tensor) -> Tensor:
        return (2 * shrink(images, (self.config.side, self.config.side)) - 1).flatten(2)

    def _prepared(self, images: Images, run: Run) -> Tensor:
        """All of them, ``n c p``."""
        small = [self._small(batch.images) for batch in batches(images, run, "making images small")]
        return torch.cat(small).to(run.device)

    def _logits(self, pixels: Tensor) -> Tensor:
        """``b 72``, of ``b c p``."""
        logits: Tensor = self.network(pixels.reshape(-1, 3, self.config.side, self.config.side))
        return logits

    def _log_shares(self, images: Tensor) -> Tensor:
        """``b t k``: the logarithm of transformation k's share in the output for each image under transformation t."""
        parts = []
        for moves in self.moves.chunk(1 if torch.compiler.is_compiling() else PORTIONS):  # one copy in a graph
            logits = self._logits(images[:, :, moves].transpose(1, 2).flatten(0, 1))
            parts.append(logits.log_softmax(dim=1).clamp_min(FLOOR).view(-1, len(moves), KINDS))
        return torch.cat(parts, dim=1)


def transformations(side: int) -> Tensor:
    """``72 p``: which pixel each of ``side * side`` comes from, flipped, shifted (what is missing mirrored), turned."""
    grid, places, shift = torch.arange(side * side).view(side, side), torch.arange(side), side // 4
    found = []
    for flip, x, y, turns in product((False, True), (0, -shift, shift), (0, -shift, shift), range(4)):
        rows, columns = (torch.where(at < 0, -1 - at, at) for at in (places - y, places - x))
        rows, columns = (torch.where(at >= side, 2 * side - 1 - at, at) for at in (rows, columns))
        moved = (grid.flip(1) if flip else grid)[rows][:, columns]
        found.append(moved.rot90(turns).flatten())
    return torch.stack(found)


def dirichlets(shares: Tensor) -> Tensor:
    """``t k``: parameters of the Dirichlet distributions under which ``n`` shares ``n t k`` are likeliest, for each t.

    Newton's method, whose Hessian is diagonal but for a constant (Minka, Estimating a Dirichlet Distribution, 2000).
    """
    mean, logs = shares.mean(dim=0), shares.log().mean(dim=0)
    apart = (mean * (mean.log() - logs)).sum(dim=1, keepdim=True).clamp_min(1e-9)
    alpha = (mean * (shares.shape[2] - 1) * 0.5772 / apart).clamp(1e-3, LARGEST)
    for _ in range(200):
        total = alpha.sum(dim=1, keepdim=True)
        slope = torch.digamma(total) - torch.digamma(alpha) + logs
        bend, shared = -torch.polygamma(1, alpha), torch.polygamma(1, total)
        level = (slope / bend).sum(dim=1, keepdim=True) / (1 / shared + (1 / bend).sum(dim=1, keepdim=True))
        stepped = alpha - (slope - level) / bend
        stepped = torch.where(stepped > alpha / 4, stepped, alpha / 4).clamp_max(LARGEST)  # never to 0 or below
        is_done, alpha = bool(((stepped - alpha).abs() < 1e-9 * alpha).all()), stepped
        if is_done:
            break
    return alpha


class Block(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice; the shortcut reads what the first convolution reads."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(ins), nn.BatchNorm2d(outs)])
        self.first = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.shortcut = None if ins == outs else nn.Conv2d(ins, outs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = F.relu(self.norms[0](maps))
        branch: Tensor = self.second(F.relu(self.norms[1](self.first(active))))
        return branch + (maps if self.shortcut is None else self.shortcut(active))


def wide_network(widen: int, blocks: int) -> nn.Sequential:
    """``b 3 s s`` to ``b 72``."""
    network, ins = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False)), 16
    for outs in (16 * widen, 32 * widen, 64 * widen):
        for i in range(blocks):
            network.append(Block(ins, outs, 2 if i == 0 and outs > 16 * widen else 1))
            ins = outs
    return network.extend(
        [nn.BatchNorm2d(ins), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, KINDS)]
    )
