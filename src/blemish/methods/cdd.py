"""CDD: cross-domain distillation; from a pile that nobody has looked at, students of its parts teach one another.

Idea: bad images are few and differ from each other. In each epoch the pile is split at random into K domains, and a
student learns each by reverse distillation. The global student learns an image not from the teacher, but from what
students of domains make of it that it did not belong to: they hardly know its defect.

Each epoch e of E, which begins with the last global student:
1. It judges every image. The r(e) N on which it agrees best with the teacher, r(e) = min(e / E, .5), are confident:
   they belong to every domain. The others are split at random.
2. Each domain's student starts from its weights and learns from the teacher and, with weight lambda(e), from it:
   lambda(u) = u^4 / (u^4 + (1 - u)^4), u = e / E.
3. The global student, given the teacher's features with Gaussian noise, learns image by image what one of the OTHER
   domains' students gives: the one that agrees best with the last global student.
4. It learns the confident images from the teacher, without noise.

Signal: reverse distillation's, 1 - cosine of whole maps, summed over the levels, in each of the three trainings.

Score: reverse distillation's, of the global student alone: 1 - cosine at every location, brought to the size of the
image, summed over the levels and smoothed; an image's score is the highest value.

No code of the authors was found. What the text leaves open is OUR READING, listed in docs/methods/cdd.md. With
``domains=(1,)``, no noise, no regularisation and no confident pass this is reverse distillation, to the bit.

Liu, Wang, Leng, Zhang: Fence off Anomaly Interference: Cross-Domain Distillation for Fully Unsupervised Anomaly
Detection, arXiv 2508.18007, 2025.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages
from blemish.ops.agreement import PreviousStudent, consensus, jitter_deviations, jittered, outputs
from blemish.ops.cosine import LOSSES, Loss, anomaly_map
from blemish.ops.residual import initialise
from blemish.ops.reverse import ReverseStudent, build_reverse_student
from blemish.run import Epoch, Run

Regularisation = Literal["none", "full", "linear", "s-shape"]
Selection = Literal["all", "next", "consensual"]


@dataclass(frozen=True)
class CDDConfig:
    """The paper's settings, for whatever backbone.

    Attributes:
        layers: stages that are distilled, without a gap.
        loss: ``layer``, or ``vector``.
        domains: how many domains, over equal parts of the epochs; with 1 the global student learns from the teacher.
        r_normal: of all images, at most how many are confident; 0 for none.
        share_confident: whether confident images belong to every domain.
        confident_pass: whether the global student learns confident images from the teacher, at an epoch's end.
        regularisation: weight of agreeing with the last global student: none (0), full (1), linear or s-shape.
        selection: which of the other domains' students the global student learns from: all of them, the next one,
            or image by image the one that agrees best with the last global student.
        perturbation: standard deviation of the noise for ResNets; scaled with the levels' own for other backbones.
        reset_optimisers: whether each epoch's domain students begin with a fresh Adam.
        memory: gigabytes that the last global student's features may take; beyond it they are computed at each use.
        epochs: passes over the pile.
        steps: length in place of ``epochs``, counted as reverse distillation's: ``ceil(N / batch_size)`` an epoch.
        batch_size: images in an update of the weights.
        learning_rate: every student's Adam's.
        betas: every student's Adam's.
        sigma: standard deviation of the map's smoothing, in input pixels.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3)
    loss: Loss = "layer"
    domains: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (2, 3, 3, 2)
    r_normal: Annotated[float, Field(ge=0, le=1)] = 0.5
    share_confident: bool = True
    confident_pass: bool = True
    regularisation: Regularisation = "s-shape"
    selection: Selection = "consensual"
    perturbation: Annotated[float, Field(ge=0)] = 0.2
    reset_optimisers: bool = False
    memory: Annotated[float, Field(ge=0)] = 2.0
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    sigma: Annotated[float, Field(ge=0, le=100)] = 4.0


class CDD(Method):
    """Cross-domain distillation. See the top of this file.

    Attributes:
        student: the global one: the teacher's feature maps to its own.
        precision: how it computes; None to choose by the device.
        confident: places in the pile of the images that the epoch under way, or the last one, took for good.
    """

    Config = CDDConfig
    regimes = frozenset({"contaminated"})
    has_schedule = True
    config: CDDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CDDConfig) -> None:
        """Build the global student, untaught.

        Raises:
            ConfigError: the levels leave a gap.
        """
        super().__init__(backbone, size, config)
        self.student = build_reverse_student(backbone, size)
        self.confident: list[int] = []

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Teach the global student what is normal in the pile."""
        count, config = len(training.normal), self.config
        initialise(self.student, run.generator("student"))
        noise = jitter_deviations(self.backbone, config.perturbation, training.normal, teacher, config.batch_size)
        run.log.facts["noise on features"] = ", ".join(f"{deviation:.3g}" for deviation in noise)
        lesson = DomainTrainer(self.student, config, noise, training.normal, teacher, run)
        length, keep = run.length(epochs=config.epochs, steps=config.steps), lesson.keep()
        for epoch in run.epochs(length, images=count, batch_size=config.batch_size, state=keep, title="cdd"):
            self.confident = lesson.begin(epoch)
            lesson.teach(epoch)
        self.student.eval()

    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images."""
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(features)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        map_ = anomaly_map(features, student, size, self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))


class Student(NamedTuple):
    """A network that learns, and its optimiser."""

    network: ReverseStudent
    optimiser: torch.optim.Optimizer


class DomainTrainer:
    """All students, and one epoch of teaching them."""

    def __init__(
        self, student: ReverseStudent, config: CDDConfig, noise: list[float], images: Images, teacher: Teacher, run: Run
    ) -> None:
        self.config, self.noise, self.images, self.teacher, self.run = config, noise, images, teacher, run
        parts = max(config.domains) if max(config.domains) > 1 else 0
        networks = [student, *(copy.deepcopy(student) for _ in range(parts))]
        rate, betas = config.learning_rate, config.betas
        self.whole, *self.parts = [
            Student(network, torch.optim.Adam(network.parameters(), lr=rate, betas=betas, fused=True))
            for network in networks
        ]
        self.last = PreviousStudent(student, images, teacher, run, int(1e9 * config.memory))

    def keep(self) -> dict[str, Any]:
        """What an epoch hands to the next: not the domains' weights, which begin as copies of the global student's."""
        optimisers = {f"optimiser of domain {k}": pupil.optimiser for k, pupil in enumerate(self.parts)}
        return {"student": self.whole.network, "optimiser": self.whole.optimiser, **optimisers}

    def begin(self, epoch: Epoch) -> list[int]:
        """What the epoch begins with; the confident images, most confident first."""
        config, u = self.config, (epoch.number - 1) / epoch.of
        self.count = domains_at(config.domains, epoch.number - 1, epoch.of)
        self.weight = regularisation_weight(u, config.regularisation)
        has_use = config.confident_pass or (config.share_confident and self.count > 1)
        share = confident_share(u, config.r_normal) if has_use else 0.0
        size = int(share * len(self.images) + 1e-9)  # .29 * 100 is 28.999...
        self.confident: list[int] = []
        if size or self.weight > 0 or (self.count > 2 and config.selection == "consensual"):
            self.confident = self.last.look(self.whole.network, config.batch_size)[:size]
        epoch.log(hc=size, r=share, **{"lambda": self.weight})
        return list(self.confident)

    def teach(self, epoch: Epoch) -> None:
        """Steps 2 to 4 of the epoch."""
        config = self.config
        order = self._shuffled(epoch, "images", range(len(self.images)))[: epoch.step_count * config.batch_size]
        sure = set(order).intersection(self.confident)
        domains = split_into_domains(order, sure if config.share_confident else (), self.count)
        alone = [self._batches(domain) for domain in domains]
        mixed: list[tuple[int, list[int]]] = []
        for k, domain in enumerate(domains if self.count > 1 else []):
            mixed += [(k, batch) for batch in self._batches(self._shuffled(epoch, f"images of domain {k}", domain))]
        last = self._batches(self._shuffled(epoch, "confident images", sure)) if config.confident_pass else []
        self._ticks = _ticks(epoch, sum(map(len, alone)) + len(mixed) + len(last))
        noise = epoch.generator("perturbation")
        if self.count == 1:
            self._from_teacher(epoch, "loss", self.whole, alone[0], self.weight, noise)
        for pupil, batches in zip(self.parts, alone if self.count > 1 else []):
            pupil.network.load_state_dict(self.whole.network.state_dict())
            if config.reset_optimisers:
                pupil.optimiser.state.clear()
            self._from_teacher(epoch, "domain", pupil, batches, self.weight)
        places: list[int] = torch.randperm(len(mixed), generator=epoch.generator("order of domains")).tolist()
        for place in places:
            self._from_others(epoch, *mixed[place], noise)
        self._from_teacher(epoch, "confident", self.whole, last)

    def _from_teacher(
        self,
        epoch: Epoch,
        name: str,
        pupil: Student,
        batches: list[list[int]],
        weight: float = 0.0,
        noise: torch.Generator | None = None,
    ) -> None:
        """A pupil learns batches from the teacher and, with ``weight``, from the last global student."""
        pupil.network.train()
        for indices in batches:
            features = self.teacher(self.images.batch(indices))
            wanted: list[tuple[float, Sequence[Tensor]]] = [(1.0, features)]
            if weight > 0:
                wanted.append((weight, self.last.maps(indices, features)))
            given = features if noise is None else jittered(features, self.noise, noise)
            losses = self._update(pupil, given, wanted)
            epoch.log(**dict(zip([name, "pull"], losses)))
        pupil.network.eval()

    def _from_others(self, epoch: Epoch, domain: int, indices: list[int], noise: torch.Generator) -> None:
        """The global student learns a batch of one domain from the students of the others."""
        features = self.teacher(self.images.batch(indices))
        selection = self.config.selection
        others = [(domain + step) % self.count for step in range(1, 2 if selection == "next" else self.count)]
        wanted = [outputs(self.parts[other].network, features, self.run) for other in others]
        if selection == "consensual" and len(wanted) > 1:
            wanted = [consensus(wanted, self.last.maps(indices, features))]
        self.whole.network.train()
        given = jittered(features, self.noise, noise)
        losses = self._update(self.whole, given, [(1 / len(wanted), maps) for maps in wanted])
        epoch.log(loss=torch.stack(losses).mean())

    def _update(
        self, pupil: Student, given: Sequence[Tensor], wanted: Sequence[tuple[float, Sequence[Tensor]]]
    ) -> list[Tensor]:
        """One update of the weights by the weighted sum of losses; these, detached."""
        with self.run.precision.autocast(self.run.device):
            found = pupil.network(given)
        losses = [LOSSES[self.config.loss](maps, found) for _, maps in wanted]
        total = torch.stack([weight * loss for (weight, _), loss in zip(wanted, losses)]).sum()
        pupil.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        pupil.optimiser.step()
        next(self._ticks)
        return [loss.detach() for loss in losses]

    def _shuffled(self, epoch: Epoch, which: str, chosen: Collection[int]) -> list[int]:
        """The chosen images, in a random order of the whole pile."""
        order: list[int] = torch.randperm(len(self.images), generator=epoch.generator(f"order of {which}")).tolist()
        wanted = set(chosen)
        return [image for image in order if image in wanted]

    def _batches(self, images: list[int]) -> list[list[int]]:
        size = self.config.batch_size
        return [images[start : start + size] for start in range(0, len(images), size)]


def confident_share(u: float, r_normal: float) -> float:
    """r: the share of confident images when ``u`` of the training, 0 to 1, is done."""
    return min(u, r_normal)


def regularisation_weight(u: float, form: Regularisation) -> float:
    """lambda: the weight of agreeing with the last global student when ``u`` of the training, 0 to 1, is done."""
    if form in ("none", "full"):
        return float(form == "full")
    return u if form == "linear" else u**4 / (u**4 + (1 - u) ** 4)


def domains_at(schedule: Sequence[int], done: int, epochs: int) -> int:
    """K after ``done`` of all epochs: each entry of the schedule serves an equal part of them."""
    return schedule[done * len(schedule) // epochs]


def split_into_domains(order: Sequence[int], confident: Collection[int], count: int) -> list[list[int]]:
    """Domains of equal size up to one image, each in the given order: confident images in all, others in one."""
    everywhere = set(confident)
    home = {image: place % count for place, image in enumerate(i for i in order if i not in everywhere)}
    return [[image for image in order if home.get(image, k) == k] for k in range(count)]


def _ticks(epoch: Epoch, updates: int) -> Iterator[None]:
    """Progress counts an epoch in reverse distillation's steps, over which this method's more updates are spread."""
    steps, told = epoch.steps(), 0
    next(steps, None)
    for done in range(1, updates + 1):
        while told < done * epoch.step_count // updates:
            next(steps, None)
            told += 1
        yield
