"""CAVGA: a variational auto-encoder whose attention is taught to cover all of a good image.

Idea: the code of the auto-encoder is itself a small map, and Grad-CAM says which places of the encoder's last features
it hangs on. On good images all places are to count; a place that does not count at judging is bad. With a few known-bad
images a classifier learns on the code, too, and on good ones its attention for "good" is to cover everything, that for
"bad" nothing (CAVGA-w).
Loss: squared error and divergence, a discriminator's judgement of what is given back, .01 (1 - attention) or
.01 (1 - attention for good + attention for bad), and .001 cross-entropy of the classifier (``_guide``).
Score: the map is 1 - attention, or 1 - that for good; an image's score is the mean absolute difference of the image and
what is given back.
Nothing but linear layers lie between the features and what is explained, so that Grad-CAM has the closed form of
``_attention`` and costs no second gradient; it is scaled by a sigmoid, never by image. The encoder is a copy of the
backbone that goes on learning; decoder and discriminator start from random values. No code by the authors was found:
what is our reading, and all differences, are on docs/methods/cavga.md.

Venkataramanan, Peng, Singh, Mahalanobis: Attention Guided Anomaly Localization in Images, ECCV 2020.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.backbones.backbone import normalise_cells
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.autoencoder import Layer, divergence, downward
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Weight, Width
from blemish.ops.draws import normals
from blemish.ops.residual import BlockKind, initialise, initialise_uniform, residual_stage, untrained
from blemish.ops.smoothing import upscale
from blemish.run import Epoch, Run, epochs

DECODER = (128, 64, 32, 16)  # widths, each at twice the grid of the one before; further doublings keep the last
DISCRIMINATOR: list[Layer] = [(32, 2), (64, 2), (128, 2), (256, 2), (512, 2)]
SMALLEST = 32  # pixels a side of which the discriminator leaves a cell


@dataclass(frozen=True)
class CAVGAConfig:
    """The weights of the paper's losses; the rest is our reading."""

    layers: Annotated[Layers, Field(description="stages of the encoder; the last one's features are explained")] = (2,)
    labels: Annotated[bool, Field(description="known-bad images take part, where there are any (CAVGA-w)")] = True
    latent: Annotated[Width, Field(description="channels of the code")] = 128
    adversarial: Annotated[Weight, Field(description="of the discriminator's judgement")] = 1.0
    attention: Annotated[Weight, Field(description="of what the attention leaves out")] = 0.01
    classification: Annotated[Weight, Field(description="of the classifier's cross-entropy")] = 0.001
    epochs: Annotated[Count, Field(description="passes over the good images")] = 100
    steps: Steps = None
    batch_size: Annotated[
        Count, Field(description="good images a step; half as many known-bad ones come with them")
    ] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's, of all networks")] = 1e-4
    betas: Annotated[tuple[float, float], Field(description="Adam's")] = (0.5, 0.999)
    sigma: Sigma = 0.0


class CAVGA(Method):
    """``encoder`` is the backbone as it went on learning; ``guided`` says whether the classifier has learned."""

    Config = CAVGAConfig
    regimes = frozenset({"clean", "weak"})
    bf16 = "dense"
    config: CAVGAConfig
    guided: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CAVGAConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells(size, SMALLEST, "cavga's discriminator", rounds_up=False)
        level, latent = backbone.levels[-1], config.latent
        self.encoder = copy.deepcopy(backbone).requires_grad_(True)
        grid = backbone.grids(size)[-1]
        self.mean, self.log_variance = nn.Conv2d(level.channels, latent, 1), nn.Conv2d(level.channels, latent, 1)
        self.classifier = nn.Conv2d(latent, 2, grid)  # one output for good, one for bad
        doublings = max(1, round(math.log2(level.stride)))
        widths = [latent, *DECODER[:doublings], *[DECODER[-1]] * (doublings - len(DECODER))]
        blocks = [residual_stage(ins, outs, 1, BlockKind(False), "up") for ins, outs in pairwise(widths)]
        self.decoder = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 3, 3, padding=1))
        self.register_buffer("guided", torch.tensor(False))

    @classmethod
    def without_anomalous(cls, config: CAVGAConfig) -> CAVGAConfig | None:
        return dataclasses.replace(config, labels=False) if config.labels else None

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config = self.config
        self.guided.fill_(config.labels and len(training.anomalous) > 0)
        self.encoder.load_state_dict(self.backbone.state_dict())
        initialise(self.decoder, run.generator("decoder"))
        for name in ("mean", "log_variance"):
            initialise_uniform(getattr(self, name), run.generator(name))
        with torch.no_grad():  # attention begins at one half and images grey: what moves them is what is learned
            self.mean.weight -= self.mean.weight.mean(dim=0, keepdim=True)
            for parameter in [*self.classifier.parameters(), *self.decoder[-1].parameters()]:
                parameter.zero_()
        judge = untrained(
            lambda: downward(DISCRIMINATOR, norm=True).extend(
                [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DISCRIMINATOR[-1][0], 1)]
            )
        )
        initialise_uniform(judge, run.generator("discriminator"))
        judge.to(run.device).train()
        learning = nn.ModuleList([self.encoder, self.mean, self.log_variance, self.classifier, self.decoder])
        optimiser, other = (
            torch.optim.Adam(network.parameters(), config.learning_rate, config.betas, fused=True)
            for network in (learning, judge)
        )
        state = {"networks": learning, "optimiser": optimiser, "discriminator": judge, "discriminator optimiser": other}
        for epoch in epochs(run, "cavga", state, config, len(training.normal)):
            learning.train()
            for seen, count, noise in self._batches(training, epoch, run):
                with run.precision.autocast(run.device):
                    features, mean, log_variance = self._encode(seen)
                    code = mean[:count] + noise * (log_variance[:count] / 2).exp()
                    made = self._decode(code, seen)
                good = seen[:count]
                ours = F.softplus(-judge(good)).mean() + F.softplus(judge(made.detach())).mean()
                epoch.descend(ours, other, discriminator=ours)
                judge.requires_grad_(False)
                values = good[0].numel()
                bound = (made - good).square().mean() + divergence(mean, log_variance)[:count].mean() / values
                loss = bound + config.adversarial * F.softplus(-judge(made)).mean() + self._guide(features, mean, count)
                epoch.descend(loss, optimiser, loss=loss, bound=bound)
                judge.requires_grad_(True)

    def predict(self, images: Tensor) -> Prediction:
        with self.autocast(images):
            features, mean, _ = self._encode(images)
            made = self._decode(mean, images)
        map_ = upscale(1 - self._attention(features)[:, 0], images.shape[-2:], self.config.sigma, align_corners=True)
        return Prediction(map_, (images - made).abs().mean(dim=(1, 2, 3)))

    def _batches(self, training: TrainingImages, epoch: Epoch, run: Run) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Each step's good images and, where they take part, bad ones behind them; how many are good; their noise."""
        draws, size = epoch.generator("codes"), max(1, self.config.batch_size // 2)
        bad = epoch.cycle(len(training.anomalous), size, "order of bad images") if self.guided else None
        grid = (self.config.latent, *self.classifier.kernel_size)
        for indices in epoch.batches():
            seen = training.normal.batch(indices).images
            if bad is not None:
                seen = torch.cat([seen, training.anomalous.batch(next(bad)).images])
            yield seen.to(run.device), len(indices), normals((len(indices), *grid), draws, run.device)

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Last features, and mean and log-variance of the code, at every cell.

        Each cell's features have mean 0 and variance 1, or attention would go to whatever is strong.
        """
        (features,) = normalise_cells(self.encoder(images)[-1:])
        return features, self.mean(features).float(), self.log_variance(features).float()

    def _decode(self, code: Tensor, like: Tensor) -> Tensor:
        """``b 3 h w`` in [0, 1], at the size of ``like``."""
        made: Tensor = self.decoder(code)
        if made.shape[-2:] != like.shape[-2:]:
            made = F.interpolate(made, size=like.shape[-2:], mode="bilinear")
        return made.float().sigmoid()

    def _attention(self, features: Tensor) -> Tensor:
        """``b 2 y x`` in [0, 1]: for the code's mean twice over, or for the classifier's good and bad.

        The sum of linear outputs has the same gradient at every place, which Grad-CAM takes the mean of.
        """
        weights = self.mean.weight[:, :, 0, 0]
        explained = self.classifier.weight.mean(dim=(2, 3)) @ weights
        weights = torch.where(self.guided, explained, weights.sum(dim=0)) / math.sqrt(features.shape[1])
        return F.conv2d(features, weights[:, :, None, None]).sigmoid()

    def _guide(self, features: Tensor, mean: Tensor, count: int) -> Tensor:
        """What the attention of the first ``count`` images, good ones, leaves out, and the classifier's loss."""
        config, attention = self.config, self._attention(features[:count])
        if not self.guided:
            return config.attention * (1 - attention[:, 0]).mean()
        logits: Tensor = self.classifier(mean).flatten(1)
        is_bad = (torch.arange(len(logits), device=logits.device) >= count).long()
        is_right = logits[:count].argmax(dim=1) == 0  # the attention of an image that is misjudged says nothing
        missed = (1 - attention[:, 0] + attention[:, 1]).mean(dim=(1, 2)) * is_right
        balance = logits.new_tensor([len(logits) - count, count])  # good and bad weigh alike
        entropy = F.cross_entropy(logits, is_bad, weight=balance)
        return config.classification * entropy + config.attention * missed.mean()
