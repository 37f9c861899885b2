"""Uninformed students: they learn to describe patches as a teacher does; where they miss it or each other, it is bad.

Idea: a small network describes every pixel by the patch around it. Students of the same architecture learn to give its
descriptors on good images; elsewhere they fail, each in its own way. All of that for patches of 17, 33 and 65 pixels.
Loss: of the teacher, on crops, squared distance of its descriptor, decoded, to the backbone's features of the crop, a
triplet of crop, shifted noisy crop and another image's, and the squared correlations of the descriptor's numbers; of a
student, squared distance to the descriptor, whose numbers are brought to mean 0 and variance 1.
Score: at each pixel the squared error of the students' mean and the variance of the students, each in deviations from
what good images held out have, summed, and averaged over the sizes of patches; an image's is the map's highest.
The paper teaches on ImageNet; here the teacher learns from crops of the good images, for half of the steps, from any
backbone (our reading). Poolings are replaced by dilation: the same numbers at every pixel, at a great price, which
``spacing=4`` and fewer ``filters`` lower. More: docs/methods/students.md.

Bergmann, Fauser, Sattlegger, Steger: Uninformed Students: Student-Teacher Anomaly Detection, CVPR 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages, in_batches
from blemish.errors import ConfigError
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Weight, Width
from blemish.ops.gaussian import Moments
from blemish.ops.passes import hold_out
from blemish.ops.smoothing import upscale
from blemish.run import Run, derive_seed, epochs, torch_seeded

# By the pixels of a patch: each convolution's kernel and its filters, in multiples; a pooling has 0.
NETWORKS = {
    17: ((6, 1), (5, 2), (5, 2), (4, 1)),
    33: ((5, 1), (2, 0), (5, 2), (2, 0), (2, 2), (4, 1)),
    65: ((5, 1), (2, 0), (5, 1), (2, 0), (5, 2), (2, 0), (4, 2), (1, 1)),
}
SLOPE = 5e-3  # of LeakyReLU
CROPS = 8  # of each of as many images, that a teacher sees in a step
SEEN = 64  # pixels of a side that a crop is enlarged to for the backbone
SHIFT, NOISE, MARGIN = 4, 0.1, 1.0  # of the triplet: pixels at most, deviation, and how much farther the other must be
TEACHER_RATE = 2e-4  # Adam's


@dataclass(frozen=True)
class StudentsConfig:
    """The paper's, as far as it is known."""

    layers: Annotated[Layers, Field(description="stages whose means over a crop the teachers learn to give")] = (4,)
    fields: Annotated[
        tuple[Literal[17, 33, 65], ...], Field(min_length=1, description="pixels of the patches, a teacher for each")
    ] = (17, 33, 65)
    students: Annotated[int, Field(ge=1, le=20, description="of each teacher")] = 3
    filters: Annotated[Width, Field(description="numbers of a descriptor; inner layers have up to twice as many")] = 128
    spacing: Annotated[Literal[1, 2, 4, 8], Field(description="pixels from one described place to the next")] = 1
    taught: Annotated[
        float, Field(ge=0, lt=1, description="of all steps, the first ones, in which the teachers learn")
    ] = 0.5
    epochs: Annotated[Count, Field(description="passes over the images")] = 200
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step of the students")] = 1
    learning_rate: Annotated[Rate, Field(description="Adam's, of the students")] = 1e-4
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5
    holdout: Annotated[
        float, Field(ge=0, lt=1, description="share of the good parts that errors and variances are measured on")
    ] = 0.1
    sigma: Sigma = 0.0


class PatchNetwork(nn.Module):
    """Descriptors ``b d y x`` of the patches around every ``spacing``-th pixel, less ``mean``, over ``deviation``."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, field: int, filters: int) -> None:
        super().__init__()
        widths = [3, *(factor * filters for _, factor in NETWORKS[field] if factor)]
        kernels = [kernel for kernel, factor in NETWORKS[field] if factor]
        self.convolutions = nn.ModuleList(map(nn.Conv2d, widths, widths[1:], kernels))
        self.field = field
        self.register_buffer("mean", torch.zeros(filters, 1, 1))
        self.register_buffer("deviation", torch.ones(filters, 1, 1))

    def forward(self, images: Tensor, spacing: int) -> Tensor:
        rows, columns = (-(-side // spacing) for side in images.shape[-2:])
        return self.describe(self.padded(images, spacing), spacing)[..., :rows, :columns]

    def padded(self, images: Tensor, spacing: int = 1) -> Tensor:
        """With as much of their mirror image around them as patches reach; each place lies amid its pixels."""
        before, after = self.field // 2 - (spacing - 1) // 2, self.field // 2 + (spacing - 1) // 2
        return F.pad(images, (before, after, before, after), mode="reflect")

    def describe(self, padded: Tensor, spacing: int) -> Tensor:
        """Of every ``spacing``-th place at which a whole patch fits: poolings keep their stride as far as it allows."""
        maps, stride, dilation, left = padded * 4 - 2, 1, 1, list(self.convolutions)
        for kernel, factor in NETWORKS[self.field]:
            if factor:
                convolution = left.pop(0)
                maps = F.conv2d(maps, convolution.weight, convolution.bias, dilation=dilation)  # type: ignore[arg-type]
                maps = F.leaky_relu(maps, SLOPE) if left else maps
            else:
                step = 2 if stride < spacing else 1
                maps = F.max_pool2d(maps, kernel, step, dilation=dilation)
                stride, dilation = stride * step, dilation * 2 // step
        rest = spacing // stride
        return (maps[..., ::rest, ::rest].float() - self.mean) / self.deviation


class Students(Method):
    """``teachers``, one a size of patch, ``students`` of each; ``usual``: mean and deviation on good images."""

    Config = StudentsConfig
    has_schedule = True
    costs_more_later = True  # students see whole images, their teacher, before, crops
    config: StudentsConfig
    usual: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: StudentsConfig) -> None:
        super().__init__(backbone, size, config)
        if min(size) <= (reach := max(config.fields) // 2 + config.spacing // 2):
            text = f"images of {size[0]} x {size[1]} are smaller than half of a patch of {max(config.fields)} pixels"
            raise ConfigError(f"{text}: use images of more than {reach} pixels, or smaller --set fields")

        def networks(count: int) -> nn.ModuleList:
            return nn.ModuleList(PatchNetwork(field, config.filters) for field in config.fields for _ in range(count))

        stride = backbone.levels[0].stride if backbone.tokens else 1  # a transformer sees whole cells
        self.seen = -(-SEEN // stride) * stride
        self.teachers, self.students = networks(1), networks(config.students)
        self.register_buffer("usual", torch.tensor([0.0, 1.0]).repeat(len(config.fields), 2, 1))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        _, learned = self._parts(images, run)
        with torch_seeded(derive_seed(run.seed, "networks")):
            width = sum(level.channels for level in self.backbone.levels)
            decoders = nn.ModuleList(nn.Linear(config.filters, width) for _ in config.fields).to(run.device)
            for module in [*self.teachers.modules(), *self.students.modules()]:
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
                elif isinstance(module, PatchNetwork):
                    module.mean.zero_()
                    module.deviation.fill_(1)
        parameters, decay = [*self.teachers.parameters(), *decoders.parameters()], config.weight_decay
        teaching = torch.optim.Adam(parameters, TEACHER_RATE, weight_decay=decay, fused=True)
        following = torch.optim.Adam(self.students.parameters(), config.learning_rate, weight_decay=decay, fused=True)
        networks = {"teachers": self.teachers, "students": self.students, "decoders": decoders}
        state: dict[str, Any] = {**networks, "teaching": teaching, "following": following}
        each = -(-len(learned) // config.batch_size)
        taught = int(config.taught * (config.steps or config.epochs * each))
        for epoch in epochs(run, "students", state, config, len(learned)):
            draws = epoch.generator("crops")
            for number, indices in enumerate(epoch.batches(), (epoch.number - 1) * each):
                if number == taught:
                    self._standardise(images, learned, run)
                if number < taught:
                    chosen = torch.randperm(len(learned), generator=draws)[:CROPS].tolist()  # another's is of another
                    seen = images.batch([learned[i] for i in chosen]).images
                    loss = self._teach(seen, teacher, decoders, draws, run)
                else:
                    loss = self._follow(images.batch([learned[i] for i in indices]).images.to(run.device))
                optimiser = teaching if number < taught else following
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                epoch.log(loss=loss)

    @torch.no_grad()
    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """Measure the disagreements on the images held out."""
        moments = Moments()
        for batch in in_batches(training.normal, self.config.batch_size, self._parts(training.normal, run)[0]):
            found = self._disagreements(batch.images.to(run.device))
            moments.add(found.flatten(0, 1).flatten(1)[:, :, None])
        ((mean, variance),) = moments.portions()
        usual = torch.stack([mean.squeeze(1), variance.flatten().sqrt().clamp_min(1e-6)], dim=1)
        self.usual.copy_(usual.view_as(self.usual))

    def predict(self, images: Tensor) -> Prediction:
        usual = self.usual[..., None, None, None]
        scores = (self._disagreements(images) - usual[:, :, 0]) / usual[:, :, 1]
        map_ = upscale(scores.sum(dim=1).mean(dim=0), images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _parts(self, images: Images, run: Run) -> tuple[list[int], list[int]]:
        """Images held out and learned from; of too few to hold one out, all serve for both."""
        held, learned = hold_out(images, self.config.holdout, run)
        return held or learned, learned

    def _described(self, networks: Sequence[nn.Module], images: Tensor) -> Tensor:
        """``n b d y x``."""
        with self.autocast(images):
            return torch.stack([network(images, self.config.spacing) for network in networks])

    def _disagreements(self, images: Tensor) -> Tensor:
        """``f 2 b y x``, for each size of patches: squared error of the students' mean, variance of the students."""
        target = self._described(list(self.teachers), images)
        given = self._described(list(self.students), images).view(len(target), -1, *target.shape[1:])
        mean = given.mean(dim=1)
        error, variance = (mean - target).square().sum(dim=2), (given - mean[:, None]).square().sum(dim=3).mean(dim=1)
        return torch.stack([error, variance], dim=1)

    def _follow(self, images: Tensor) -> Tensor:
        """Backward through each student's squared distance to its teacher; gives their sum."""
        losses = []
        with torch.no_grad():
            targets = self._described(list(self.teachers), images).repeat_interleave(self.config.students, dim=0)
        for student, target in zip(self.students, targets, strict=True):
            loss = (self._described([student], images)[0] - target).square().sum(dim=1).mean()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _teach(
        self, images: Tensor, backbone: Teacher, decoders: nn.ModuleList, draws: torch.Generator, run: Run
    ) -> Tensor:
        """Backward through each teacher's loss on crops of ``images``; gives their sum."""
        losses = []
        for network, field, decode in zip(self.teachers, self.config.fields, decoders, strict=True):
            crops = draw_crops(network.padded(images), field, draws).to(run.device)  # type: ignore[operator]
            enlarged = F.interpolate(crops[: len(crops) // 2], size=(self.seen, self.seen), mode="bilinear")
            features = torch.cat([map_.mean(dim=(2, 3)) for map_ in backbone(enlarged)], dim=1)
            with run.precision.autocast(run.device):
                own, near = network.describe(crops, 8).flatten(1).chunk(2)  # type: ignore[operator]
                decoded = decode(own).float()
            loss = teacher_loss(own, near, decoded, features)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _standardise(self, images: Images, order: Sequence[int], run: Run) -> None:
        """Take mean and deviation of each number of the teachers' descriptors, over all places of the images."""
        for network in self.teachers:
            moments = Moments()
            for batch in in_batches(images, self.config.batch_size, order):
                (maps,) = self._described([network], batch.images.to(run.device))
                moments.add(maps.transpose(0, 1).flatten(1)[:, :, None])
            ((mean, variance),) = moments.portions()
            deviation = variance.sqrt().clamp_min(1e-3 * float(variance.max().sqrt()) + 1e-6)
            network.load_state_dict({"mean": mean[:, :, None], "deviation": deviation}, strict=False)


def draw_crops(padded: Tensor, field: int, draws: torch.Generator) -> Tensor:
    """``2n 3 p p``: crops of some images, image by image, then the same a little shifted and with noise on them."""
    last = torch.tensor(padded.shape[-2:]) - field
    places = (torch.rand(len(padded), CROPS, 2, generator=draws) * (last + 1)).long()
    shifts = torch.randint(-SHIFT, SHIFT + 1, places.shape, generator=draws)
    shifted = torch.minimum((places + shifts).clamp_min(0), last)
    own, near = (
        torch.stack([i[:, y : y + field, x : x + field] for i, at in zip(padded, corners.tolist()) for y, x in at])
        for corners in (places, shifted)
    )
    return torch.cat([own, near + NOISE * torch.randn(near.shape, generator=draws)])


def teacher_loss(own: Tensor, near: Tensor, decoded: Tensor, features: Tensor) -> Tensor:
    """Of descriptors ``n d`` of crops, image by image, and of their neighbours; ``decoded`` ``n c`` are the first ones.

    Features are brought to mean 0 and, all together, variance 1, so that every backbone weighs as much (our reading).
    """
    features = features - features.mean(dim=0)
    copied = (decoded - features / features.std().clamp_min(1e-6)).square().sum(dim=1).mean()
    others = own.roll(CROPS if len(own) > CROPS else 1, dims=0)  # of another image, where there is one
    apart = torch.minimum(F.pairwise_distance(own, others), F.pairwise_distance(near, others))
    triplet = F.relu(MARGIN + F.pairwise_distance(own, near) - apart).mean()
    scaled = (own - own.mean(dim=0)) / (own.std(dim=0, correction=0) + 1e-6)
    correlations = scaled.T @ scaled / len(scaled)
    return copied + triplet + (correlations - correlations.diag().diag()).square().sum()
