"""CDD: cross-domain distillation; from a pile that nobody has looked at, students of its parts teach one another.

Idea: bad images are few and differ from each other. In each epoch the pile is split at random into K domains, and a
student learns each by reverse distillation. The global student learns an image not from the teacher, but from what
students of other domains make of it: they hardly know its defect. Each epoch e of E, u = e / E (``DomainTrainer``):
1. The last global student judges every image; the min(u, .5) N on which it agrees best with the teacher are confident:
   they belong to every domain.
2. Each domain's student starts from its weights and learns from the teacher and, with weight lambda(u), from it.
3. The global student, given the teacher's features with Gaussian noise, learns image by image what that one of the
   OTHER domains' students gives that agrees best with the last global student.
4. It learns the confident images from the teacher, without noise.
Loss: 1 - cosine of whole maps, summed over the levels, in each of the three trainings.
Score: reverse distillation's, of the global student alone: an image's is the highest value of its smoothed map.
No code of the authors was found. What the text leaves open is OUR READING, listed in docs/methods/cdd.md. With
``domains=(1,)``, no noise, no regularisation and no confident pass this is reverse distillation, to the bit.

Liu, Wang, Leng, Zhang: Fence off Anomaly Interference: Cross-Domain Distillation for Fully Unsupervised Anomaly
Detection, arXiv 2508.18007, 2025.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages
from blemish.ops.agreement import PreviousStudent, consensus, jitter_deviations, jittered, outputs
from blemish.ops.config import LATER, Count, DistillationLoss, Share, StudentConfig, Weight
from blemish.ops.cosine import LOSSES, anomaly_map, map_score
from blemish.ops.norms import precise_batchnorm
from blemish.ops.residual import initialise
from blemish.ops.reverse import ReverseStudent, build_reverse_student
from blemish.run import Epoch, Run, Step, epochs

Regularisation = Literal["none", "full", "linear", "s-shape"]
Selection = Literal["all", "next", "consensual"]


@dataclass(frozen=True)
class CDDConfig(StudentConfig):
    """The paper's settings, for whatever backbone."""

    steps: Annotated[
        Count | None, Field(description="in place of epochs: batches as rd counts them, with about three updates each")
    ] = None
    loss: DistillationLoss = "layer"
    domains: Annotated[
        tuple[Count, ...], Field(min_length=1, description="how many domains, over equal parts of the epochs; 1: none")
    ] = (2, 3, 3, 2)
    r_normal: Annotated[Share, Field(description="of all images, at most how many are confident")] = 0.5
    share_confident: Annotated[bool, Field(description="confident images belong to every domain")] = True
    confident_pass: Annotated[
        bool, Field(description="the global student learns confident images from the teacher at an epoch's end")
    ] = True
    regularisation: Annotated[
        Regularisation,
        Field(description="weight of agreeing with the last global student: 0 (none), 1 (full), u (linear), s-shape"),
    ] = "s-shape"
    selection: Annotated[
        Selection,
        Field(
            description="which of the other domains' students teach the global one: all, the next, or for each image "
            "the one that agrees best with the last global student (consensual)"
        ),
    ] = "consensual"
    perturbation: Annotated[
        Weight, Field(description="standard deviation of the noise for ResNets; elsewhere scaled with the levels' own")
    ] = 0.2
    reset_optimisers: Annotated[bool, Field(description="a fresh Adam for the domains' students each epoch")] = False
    memory: Annotated[
        Weight, Field(description="gigabytes for the last global student's features; beyond it they are recomputed")
    ] = 2.0
    p: Annotated[
        float, Field(gt=0, le=100, description="exponent of the s-shape, which is the steeper the larger it is"), LATER
    ] = 4.0
    settle: Annotated[
        bool, Field(description="a domain's student takes BatchNorm's statistics anew before it teaches"), LATER
    ] = False


class CDD(Method):
    """Cross-domain distillation of the global ``student``; ``confident``: the images that the epoch took for good."""

    Config = CDDConfig
    regimes = frozenset({"contaminated"})
    has_schedule = True
    config: CDDConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: CDDConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = build_reverse_student(backbone, size)
        self.confident: list[int] = []

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        initialise(self.student, run.generator("student"))
        noise = jitter_deviations(self.backbone, config.perturbation, images, teacher, config.batch_size)
        run.log.facts["noise on features"] = ", ".join(f"{deviation:.3g}" for deviation in noise)
        trainer = DomainTrainer(self.student, config, noise, images, teacher, run)
        for epoch in epochs(run, "cdd", trainer.state(), config, len(images)):
            self.confident = trainer.begin(epoch)
            trainer.train(epoch)

    def predict(self, images: Tensor) -> Prediction:
        features = self.backbone(images)
        with self.autocast(images):
            student = self.student(features)
        map_ = anomaly_map(features, student, images.shape[-2:], self.config.sigma)
        return Prediction(map_, map_score(map_, self.config.score))


class Student(NamedTuple):
    """A network that learns, its optimiser and its updates."""

    network: ReverseStudent
    optimiser: torch.optim.Optimizer
    step: Step


class DomainTrainer:
    """All students, and one epoch of teaching them."""

    def __init__(
        self, student: ReverseStudent, config: CDDConfig, noise: list[float], images: Images, teacher: Teacher, run: Run
    ) -> None:
        self.config, self.noise, self.images, self.teacher, self.run = config, noise, images, teacher, run
        most = max(config.domains)
        networks = [student, *(copy.deepcopy(student) for _ in range(most if most > 1 else 0))]
        rate, betas = config.learning_rate, config.betas
        adams = [torch.optim.Adam(network.parameters(), lr=rate, betas=betas, fused=True) for network in networks]
        steps = [Step(run, [adam], self._losses_of(network)) for network, adam in zip(networks, adams)]
        self.whole, *self.of_domains = map(Student, networks, adams, steps)
        self.previous = PreviousStudent(student, images, teacher, run, int(1e9 * config.memory))

    def state(self) -> dict[str, Any]:
        """What an epoch hands to the next: not the domains' weights, which begin as copies of the global student's."""
        optimisers = {f"optimiser of domain {k}": student.optimiser for k, student in enumerate(self.of_domains)}
        return {"student": self.whole.network, "optimiser": self.whole.optimiser, **optimisers}

    def begin(self, epoch: Epoch) -> list[int]:
        """Step 1 of the epoch; the confident images, most confident first."""
        config, u = self.config, (epoch.number - 1) / epoch.of
        self.count = domains_at(config.domains, epoch.number - 1, epoch.of)
        self.weight = regularisation_weight(u, config.regularisation, config.p)
        has_use = config.confident_pass or (config.share_confident and self.count > 1)
        share = min(u, config.r_normal) if has_use else 0.0
        size = int(share * len(self.images) + 1e-9)  # .29 * 100 is 28.999...
        self.confident: list[int] = []
        if size or self.weight > 0 or (self.count > 2 and config.selection == "consensual"):
            self.confident = self.previous.look(self.whole.network, config.batch_size)[:size]
        epoch.log(hc=size, r=share, **{"lambda": self.weight})
        return list(self.confident)

    def train(self, epoch: Epoch) -> None:
        """Steps 2 to 4 of the epoch."""
        config = self.config
        order = epoch.permutation(len(self.images), "order of images")[: epoch.step_count * config.batch_size]
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
        for student, domain, batches in zip(self.of_domains, domains, alone if self.count > 1 else []):
            student.network.load_state_dict(self.whole.network.state_dict())
            if config.reset_optimisers:
                student.optimiser.state.clear()
                student.step.forget()
            self._from_teacher(epoch, "domain", student, batches, self.weight)
            if config.settle and domain:
                precise_batchnorm(student.network, self.images, config.batch_size, self.run, domain, self.teacher)
        for place in epoch.permutation(len(mixed), "order of domains"):
            self._from_others(epoch, *mixed[place], noise)
        self._from_teacher(epoch, "confident", self.whole, last)

    def _from_teacher(
        self,
        epoch: Epoch,
        name: str,
        student: Student,
        batches: list[list[int]],
        weight: float = 0.0,
        noise: torch.Generator | None = None,
    ) -> None:
        """A student learns batches from the teacher and, with ``weight``, from the last global student."""
        student.network.train()
        for indices in batches:
            features = self.teacher(self.images.batch(indices))
            targets: list[tuple[float, Sequence[Tensor]]] = [(1.0, features)]
            if weight > 0:
                targets.append((weight, self.previous.maps(indices, features)))
            inputs = features if noise is None else jittered(features, self.noise, noise)
            losses = self._update(student, inputs, targets)
            epoch.log(**dict(zip([name, "pull"], losses)))
        student.network.eval()

    def _from_others(self, epoch: Epoch, domain: int, indices: list[int], noise: torch.Generator) -> None:
        """The global student learns a batch of one domain from the students of the others."""
        features = self.teacher(self.images.batch(indices))
        selection = self.config.selection
        others = [(domain + step) % self.count for step in range(1, 2 if selection == "next" else self.count)]
        targets = [outputs(self.of_domains[other].network, features, self.run) for other in others]
        if selection == "consensual" and len(targets) > 1:
            targets = [consensus(targets, self.previous.maps(indices, features))]
        self.whole.network.train()
        inputs = jittered(features, self.noise, noise)
        losses = self._update(self.whole, inputs, [(1 / len(targets), maps) for maps in targets])
        epoch.log(loss=torch.stack(losses).mean())

    def _update(
        self, student: Student, inputs: Sequence[Tensor], targets: Sequence[tuple[float, Sequence[Tensor]]]
    ) -> list[Tensor]:
        """One update of the weights by the weighted sum of the losses to all targets; these losses, detached."""
        weights = torch.tensor([weight for weight, _ in targets])
        towards = chain.from_iterable(maps for _, maps in targets)
        ((_, *losses),) = student.step([*inputs, *towards, weights.to(self.run.device)])
        next(self._ticks)
        return losses

    def _losses_of(self, network: ReverseStudent) -> Callable[..., list[Tensor]]:
        """A network's weighted loss and the losses: of its inputs, the maps of one target after the other, weights."""
        levels = len(self.noise)

        def losses_of(*tensors: Tensor) -> list[Tensor]:
            with self.run.precision.autocast(self.run.device):
                made = network(tensors[:levels])
            targets = [tensors[start : start + levels] for start in range(levels, len(tensors) - 1, levels)]
            losses = [LOSSES[self.config.loss](maps, made) for maps in targets]
            return [(tensors[-1] * torch.stack(losses)).sum(), *losses]

        return losses_of

    def _shuffled(self, epoch: Epoch, which: str, chosen: Collection[int]) -> list[int]:
        """The chosen images, in a random order of the whole pile."""
        chosen = set(chosen)
        return [image for image in epoch.permutation(len(self.images), f"order of {which}") if image in chosen]

    def _batches(self, images: list[int]) -> list[list[int]]:
        size = self.config.batch_size
        return [images[start : start + size] for start in range(0, len(images), size)]


def regularisation_weight(u: float, form: Regularisation, p: float = 4.0) -> float:
    """lambda: the weight of agreeing with the last global student when ``u`` of the training, 0 to 1, is done."""
    if form in ("none", "full"):
        return float(form == "full")
    return u if form == "linear" else u**p / (u**p + (1 - u) ** p)


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
