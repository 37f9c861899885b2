"""Deep SAD: good images are drawn to one point, known-bad ones are pushed away from it.

Idea: a small network maps every image to a vector. The centre is fixed before learning; good images are to lie close to
it, and the few known-bad ones far away. Nothing in the network can learn a constant (it has no bias), or it could map
everything onto the centre.
Loss: squared distance from the centre for good images, eta over the squared distance for known-bad ones
(``deep_sad_loss``).
Score: the squared distance. There is no map.
Released (github.com/lukasruff/Deep-SAD-PyTorch) are small networks that learn from pixels after an auto-encoder; ours
reads the frozen backbone's features, standardised on the good images (our reading). Optimiser, schedule, eta and the
centre's rule are as released. All differences: docs/methods/deepsad.md.

Ruff et al.: Deep Semi-Supervised Anomaly Detection, ICLR 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.ops.config import Count, Layers, Rate, Several, Steps, Weight, Width
from blemish.ops.norms import Standardisation
from blemish.ops.residual import initialise
from blemish.run import Run, epochs

NUDGE = 0.1  # the centre's entries are at least this far from 0, else a network of zeros would be close to it
EPSILON = 1e-6  # keeps the push finite where a known-bad image lies on the centre


@dataclass(frozen=True)
class DeepSADConfig:
    """The released training, on a network of ours."""

    layers: Annotated[Layers, Field(description="stages whose features are read")] = (2, 3)
    eta: Annotated[Rate, Field(description="weight of the known-bad images")] = 1.0
    width: Annotated[Width, Field(description="channels inside the network")] = 128
    dimensions: Annotated[Width, Field(description="of the vector that an image is mapped to")] = 128
    epochs: Annotated[Count, Field(description="passes over good and known-bad images together")] = 150
    steps: Steps = None
    batch_size: Annotated[Several, Field(description="images a step")] = 128
    learning_rate: Annotated[Rate, Field(description="Adam's, a tenth of it after a third of the training")] = 1e-4
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-6


class DeepSAD(Method):
    """Squared distance of what ``head`` makes of the features from ``centre``, where good images are drawn to."""

    Config = DeepSADConfig
    regimes = frozenset({"weak"})
    has_schedule = True
    config: DeepSADConfig
    centre: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DeepSADConfig) -> None:
        super().__init__(backbone, size, config)
        self.head = Head([level.channels for level in backbone.levels], config.width, config.dimensions)
        self.register_buffer("centre", torch.zeros(config.dimensions))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config = self.config
        self._initialise(training.normal, teacher, run)
        parameters, decay = self.head.parameters(), config.weight_decay
        optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=decay, fused=True)
        state = {"head": self.head, "optimiser": optimiser}
        for epoch in epochs(run, "deepsad", state, config, len(training.normal) + len(training.anomalous)):
            self.head.train()
            optimiser.param_groups[0]["lr"] = config.learning_rate * (1.0 if 3 * (epoch.number - 1) < epoch.of else 0.1)
            for indices in epoch.batches():
                features, is_bad = _mixed(training, teacher, indices)
                distances = self._distances(features)
                loss = deep_sad_loss(distances, is_bad.to(distances.device), config.eta)
                epoch.descend(loss, optimiser, loss=loss)

    def predict(self, images: Tensor) -> Prediction:
        return Prediction(None, self._distances(self.backbone(images)))

    @torch.no_grad()
    def _initialise(self, normal: Images, teacher: Teacher, run: Run) -> None:
        """First values, the features' scale, and the centre."""
        initialise(self.head, run.generator("head"))
        size = self.config.batch_size
        self.head.scale.learn(teacher(batch) for batch in in_batches(normal, size))
        self.head.train()
        centre = torch.cat([self.head(teacher(batch)) for batch in in_batches(normal, size)]).mean(dim=0)
        away = torch.where(centre < 0, -NUDGE, NUDGE)
        self.centre.copy_(torch.where(centre.abs() < NUDGE, away, centre))

    def _distances(self, features: list[Tensor]) -> Tensor:
        distances: Tensor = (self.head(features) - self.centre).square().sum(dim=1)
        return distances


def deep_sad_loss(distances: Tensor, is_bad: Tensor, eta: float = 1.0) -> Tensor:
    """The mean over a batch of the squared distances ``b``, or of ``eta`` over them for images known to be bad."""
    return torch.where(is_bad, eta / (distances + EPSILON), distances).mean()


class Head(nn.Module):
    """Feature maps to one vector an image; nothing in it has a bias that could be learned."""

    def __init__(self, channels: Sequence[int], width: int, dimensions: int) -> None:
        super().__init__()
        self.scale = Standardisation(channels)
        self.reduce = nn.Conv2d(sum(channels), width, 1, bias=False)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(3))
        self.embed = nn.Conv2d(width, dimensions, 1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """``b d``, of maps ``b c y x`` whose finer levels are averaged down to the coarsest grid."""
        grid = (features[-1].shape[-2], features[-1].shape[-1])
        joined = torch.cat([F.adaptive_avg_pool2d(map_, grid) for map_ in self.scale(features)], dim=1)
        reduced = F.leaky_relu(self.norms[0](self.reduce(joined)))
        branch = F.leaky_relu(self.norms[1](self.first(reduced)))
        residual = F.leaky_relu(reduced + self.norms[2](self.second(branch)))
        vectors: Tensor = self.embed(residual.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return vectors


def _mixed(training: TrainingImages, teacher: Teacher, indices: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Features of images counted through, the good ones first, and which of them are bad; the good come first again."""
    count = len(training.normal)
    good, bad = [i for i in indices if i < count], [i - count for i in indices if i >= count]
    sides = ((training.normal, good), (training.anomalous, bad))
    parts = [teacher(images.batch(some)) for images, some in sides if some]
    is_bad = torch.tensor([False] * len(good) + [True] * len(bad))
    return [torch.cat(maps) for maps in zip(*parts, strict=True)], is_bad
