"""AA-BiGAN: an encoder and a generator that agree with each other on good images, told by known-bad ones where not to.

Idea: a generator makes images of codes, an encoder codes of images; one discriminator judges pairs of both, another
pairs of an image and what comes back of it. They learn to tell good images' pairs (1) from generated ones (0) and put
known-bad images' half-way (.5): the generator aims above those (.75), so that what it makes is good.
Loss: squared differences from these targets, as least-squares GANs have them (``verdicts``).
Score: the squared error of what comes back (``score=code``: the squared length of the code). There is no map.
Networks, targets and rates are the released code's (github.com/tbw162/AA-BiGAN) for 32 pixels, which any image
is averaged down to. It chooses score and epoch on a validation set; ours keeps the last. More: docs/methods/aabigan.md.

Tian, Su, Yin: Anomaly Detection by Leveraging Incomplete Anomalous Knowledge with Anomaly-Aware Bidirectional GANs,
IJCAI 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Rate, Several, Steps, Width
from blemish.ops.draws import normals
from blemish.ops.residual import initialise_uniform, untrained
from blemish.run import Run, epochs

SIDE, CELLS = 32, 4  # pixels of the images, and what three halvings leave
WIDTHS = (3, 32, 64, 128)
PLANE = WIDTHS[-1] * CELLS**2
GOOD, GENERATED, BAD, AIM = 1.0, 0.0, 0.5, 0.75  # the discriminators' targets, and what generator and encoder aim at
CYCLE = 1 / 3  # weight of the pairs of images in what generator and encoder learn
SLOWER, EVERY = 0.98, 100  # the rates' factor, after so many epochs

Pairs = Sequence[tuple[Tensor, Tensor, float]]  # of an image and what goes with it, and what is to be said of them


@dataclass(frozen=True)
class AABiGANConfig:
    """The released training for colour images of 32 pixels."""

    score: Annotated[
        Literal["image", "code"], Field(description="image: squared error of what comes back; code: its squared length")
    ] = "image"
    latent: Annotated[int, Field(ge=16, le=2048, multiple_of=16, description="numbers of a code")] = 128
    hidden: Annotated[Width, Field(description="numbers that a discriminator joins both sides of a pair in")] = 1024
    epochs: Annotated[Count, Field(description="passes over the good images")] = 1000
    steps: Steps = None
    batch_size: Annotated[
        Several, Field(description="good images a step; as many known-bad ones, or all of those, come with them")
    ] = 200
    learning_rate: Annotated[Rate, Field(description="Adam's, of generator and encoder")] = 1e-4
    discriminator_rate: Annotated[Rate, Field(description="Adam's, of the discriminators")] = 2.5e-5
    betas: Annotated[tuple[float, float], Field(description="Adam's, of both")] = (0.5, 0.9)


class AABiGAN(Method):
    """``encoder`` makes codes ``b d`` of small images, ``generator`` small images of codes."""

    Config = AABiGANConfig
    regimes = frozenset({"weak"})
    on_pixels = True
    config: AABiGANConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: AABiGANConfig) -> None:
        super().__init__(backbone, size, config)
        self.encoder = untrained(lambda: trunk().append(nn.Linear(PLANE, config.latent, bias=False)))
        self.generator = untrained(lambda: build_generator(config.latent))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config = self.config
        judges = untrained(lambda: build_discriminators(config.latent, config.hidden)).to(run.device).train()
        ours = nn.ModuleList([self.encoder, self.generator])
        for name, network in (("networks", ours), ("discriminators", judges)):
            initialise_uniform(network, run.generator(name))
        optimiser = torch.optim.Adam(ours.parameters(), config.learning_rate, config.betas, fused=True)
        other = torch.optim.Adam(judges.parameters(), config.discriminator_rate, config.betas, fused=True)
        state = {"networks": ours, "optimiser": optimiser, "discriminators": judges, "discriminators' optimiser": other}
        for epoch in epochs(run, "aabigan", state, config, len(training.normal)):
            ours.train()
            for adam, rate in ((optimiser, config.learning_rate), (other, config.discriminator_rate)):
                adam.param_groups[0]["lr"] = rate * SLOWER ** (epoch.number // EVERY)
            bad_indices = epoch.cycle(len(training.anomalous), config.batch_size, "order of bad images")
            draws = epoch.generator("codes")
            for indices in epoch.batches():
                good = _small(training.normal, indices, run)
                bad = _small(training.anomalous, next(bad_indices), run)
                noise = normals((len(good), config.latent), draws, run.device)
                with run.precision.autocast(run.device):
                    codes = self.encoder(torch.cat([good, bad])).float()
                    made = self.generator(torch.cat([codes[: len(good)], noise])).float()
                back, drawn = torch.split(made, len(good))
                coded, spoiled = torch.split(codes, [len(good), len(bad)])
                with_code = [(good, coded, GOOD), (drawn, noise, GENERATED), (bad, spoiled, BAD)]
                with_image = [(good, good, GOOD), (good, back, GENERATED), (bad, bad, BAD)]
                judging = verdicts(judges, _detached(with_code), _detached(with_image))
                epoch.descend(judging, other, judging=judging)
                judges.requires_grad_(False)
                aims = [(image, code, AIM) for image, code, _ in with_code]
                aiming = verdicts(judges, aims, [(good, back, AIM)], CYCLE)
                epoch.descend(aiming, optimiser, aiming=aiming)
                judges.requires_grad_(True)

    def predict(self, images: Tensor) -> Prediction:
        small = F.adaptive_avg_pool2d(images, SIDE)
        with self.autocast(images):
            codes = self.encoder(small)
            made = self.generator(codes).float()
        differences = codes.float() if self.config.score == "code" else made - small
        return Prediction(None, differences.square().flatten(1).sum(dim=1))


def trunk() -> nn.Sequential:
    """``b 3 32 32`` to ``b 2048``: three 5x5 convolutions, each with its norm, and the grid halved."""
    network = nn.Sequential()
    for ins, outs in pairwise(WIDTHS):
        network.extend([nn.Conv2d(ins, outs, 5, padding=2, bias=False), nn.BatchNorm2d(outs, 1e-4, affine=False)])
        network.extend([nn.LeakyReLU(), nn.MaxPool2d(2)])
    return network.append(nn.Flatten())


def build_generator(latent: int) -> nn.Sequential:
    """``b latent``, taken for a map of 4 x 4 cells, to ``b 3 32 32`` in [0, 1]."""
    network = nn.Sequential(nn.Unflatten(1, (latent // CELLS**2, CELLS, CELLS)), nn.LeakyReLU())
    for ins, outs in pairwise([latent // CELLS**2, *WIDTHS[:0:-1]]):
        network.append(nn.ConvTranspose2d(ins, outs, 5, padding=2, bias=False))
        network.extend([nn.BatchNorm2d(outs, 1e-4, affine=False), nn.LeakyReLU(), nn.Upsample(scale_factor=2.0)])
    return network.extend([nn.ConvTranspose2d(WIDTHS[1], WIDTHS[0], 5, padding=2, bias=False), nn.Sigmoid()])


class Discriminator(nn.Module):
    """``b``, of images ``b 3 32 32`` and what goes with them, which ``other`` makes vectors of ``width`` numbers of."""

    def __init__(self, other: nn.Module, width: int, hidden: int, slope: float) -> None:
        super().__init__()
        self.image, self.other = trunk(), other
        self.joined = nn.Sequential(nn.Linear(PLANE + width, hidden), nn.LeakyReLU(slope), nn.Linear(hidden, 1))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        outputs: Tensor = self.joined(torch.cat([self.image(images), self.other(others)], dim=1))
        return outputs.float().squeeze(1)


def build_discriminators(latent: int, hidden: int = 1024) -> nn.ModuleList:
    """The discriminator of images with their codes, and that of images with what came back of them."""
    return nn.ModuleList(
        [Discriminator(nn.Linear(latent, 512), 512, hidden, 0.2), Discriminator(trunk(), PLANE, hidden, 0.1)]
    )


def verdicts(judges: nn.ModuleList, with_code: Pairs, with_image: Pairs, weight: float = 1.0) -> Tensor:
    """Mean squared differences of what is said of pairs from each one's target, summed; ``weight`` is of the second."""
    on_code, on_image = judges
    first = [(on_code(one, two) - target).square().mean() for one, two, target in with_code]
    second = [(on_image(one, two) - target).square().mean() for one, two, target in with_image]
    return torch.stack(first).sum() + weight * torch.stack(second).sum()


def _small(images: Images, indices: Sequence[int], run: Run) -> Tensor:
    return F.adaptive_avg_pool2d(images.batch(indices).images.to(run.device), SIDE)


def _detached(pairs: Pairs) -> Pairs:
    return [(one.detach(), two.detach(), target) for one, two, target in pairs]
