"""The loop over epochs that every trained method shares: order of images, progress, checkpoints, limits.

The method's own file keeps the training in plain sight: it goes through the epochs and batches given here. What a
batch holds depends on the seed and the epoch's number alone, and torch's own random state is set anew at each epoch,
so a training that was killed goes on from its last checkpoint to the same bits (for equal threads).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from blemish.errors import Cancelled, ConfigError, OutputError
from blemish.run.checkpoint import CheckpointManager, Stateful, this_machine
from blemish.run.seeds import derive_seed

if TYPE_CHECKING:
    from pathlib import Path

    from blemish.run.run import Run


@dataclass(frozen=True)
class Length:
    """How long to train: in epochs, or in steps (an update of the weights), which may end within the last epoch.

    Raises:
        ConfigError: neither or both are given, or less than 1.
    """

    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = [count for count in (self.epochs, self.steps) if count is not None]
        if len(given) != 1:
            raise ConfigError(f"epochs={self.epochs}, steps={self.steps}: one of both is needed")
        if given[0] < 1:
            raise ConfigError(f"a training of {self}: at least 1 is needed")

    def count(self, epoch_steps: int) -> tuple[int, int]:
        """Epochs, the last perhaps cut short, and steps of a training whose whole epochs have ``epoch_steps``."""
        if self.steps is not None:
            return math.ceil(self.steps / epoch_steps), self.steps
        epochs = self.epochs or 0
        return epochs, epochs * epoch_steps

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.epochs} epochs"


class Epoch:
    """One pass over the training images.

    Attributes:
        number: counted from 1.
        of: how many epochs there are.
        first_step: steps of all epochs before this one.
        step_count: steps of this one; fewer than of the others where a length in steps ends in it.
        total_steps: of the whole training.
    """

    def __init__(self, loop: _Loop, number: int) -> None:
        self.number, self.of = number, loop.of
        self.first_step = (number - 1) * loop.plan.epoch_steps
        self.step_count = min(loop.plan.epoch_steps, loop.total_steps - self.first_step)
        self.total_steps = loop.total_steps
        self._loop = loop
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def batches(self) -> Iterator[list[int]]:
        """Indices of the images of each step, every image once in an order fixed by seed and epoch.

        The last batch of a whole epoch may be smaller.
        """
        images, size = self._loop.plan.images, self._loop.plan.batch_size
        if images is None or size is None:
            raise TypeError("a training that names no images makes its own batches: go through epoch.steps()")
        order: list[int] = torch.randperm(images, generator=self.generator("order of images")).tolist()
        for step in self.steps():
            yield order[step * size : (step + 1) * size]

    def steps(self) -> Iterator[int]:
        """The numbers of this epoch's steps from 0, for methods that make their own batches."""
        for step in range(self.step_count):
            yield step
            self._loop.tick()

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the CPU for one purpose within this epoch."""
        seed = derive_seed(self._loop.run.seed, f"epoch {self.number}/{purpose}")
        return torch.Generator().manual_seed(seed)

    def log(self, **values: Tensor | float) -> None:
        """Add to the epoch's mean values, which progress and curves show; scalars, detached."""
        for name, value in values.items():
            number = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each logged value so far."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def __str__(self) -> str:
        shown = [f"{name} {mean:.4g}" for name, mean in list(self.means().items())[:3]]
        return ", ".join([f"epoch {self.number} of {self.of}", *shown])


@dataclass(frozen=True)
class Plan:
    """What a training goes through.

    Attributes:
        length: in epochs or steps.
        title: its name.
        images: how many there are, or None: the method makes its own batches.
        batch_size: images in a step.
        epoch_steps: steps of a whole epoch.
    """

    length: Length
    title: str
    images: int | None
    batch_size: int | None
    epoch_steps: int


def train(run: Run, plan: Plan, keep: Mapping[str, Stateful]) -> Iterator[Epoch]:
    """The epochs still to do; documented at ``Run.epochs``."""
    if plan.epoch_steps < 1 or (plan.batch_size is not None and plan.batch_size < 1):
        raise ConfigError(f"{plan.title}: {plan.images} images in batches of {plan.batch_size}: at least 1 is needed")
    loop = _Loop(run, plan, keep)
    try:
        yield from loop.epochs()
    finally:
        loop.close()


class _Loop:
    """The bookkeeping of one training."""

    def __init__(self, run: Run, plan: Plan, keep: Mapping[str, Stateful]) -> None:
        self.run, self.plan, self.keep = run, plan, keep
        self.of, self.total_steps = plan.length.count(plan.epoch_steps)
        self.name = f"{plan.title} ({run.scope})" if run.scope else plan.title
        self.curve: list[dict[str, float]] = []
        self.keeper: CheckpointManager | None = None
        if run.checkpoint is not None:
            self.keeper = CheckpointManager(_file(run.checkpoint, self.name), keep, self._work())
        self._epoch: Epoch | None = None
        self._ticks: Iterator[int] = iter(())

    def _work(self) -> dict[str, str]:
        run, plan = self.run, self.plan
        ours = {
            "training": self.name,
            "length": str(plan.length),
            "images in training": str(plan.images),
            "batch size": str(plan.batch_size),
            "steps of an epoch": str(plan.epoch_steps),
            "seed": str(run.seed),
            "precision": run.precision.name,
            "device": run.device.type,
        }
        return {**run.work, **ours}

    def epochs(self) -> Iterator[Epoch]:
        done = self._restore()
        self.run.log.curves[self.name] = self.curve
        remaining = range(min(done * self.plan.epoch_steps, self.total_steps), self.total_steps)
        self._ticks = iter(self.run.progress.track(remaining, self._caption, len(remaining)) if remaining else ())
        self.tick()  # a tracker counts an item when the next one is asked for, so it is always one ahead
        for number in range(done + 1, self.of + 1):
            began = time.monotonic()
            torch.manual_seed(derive_seed(self.run.seed, f"epoch {number}"))
            self._epoch = Epoch(self, number)
            self.run.log.at = f"epoch {number} of {self.of} of {self.name}"
            yield self._epoch
            self._finish(self._epoch, time.monotonic() - began)

    def tick(self) -> None:
        """Tell progress that a step is done."""
        next(self._ticks, None)

    def close(self) -> None:
        """End the progress, whether all went well or not."""
        if hasattr(self._ticks, "close"):
            self._ticks.close()

    def _caption(self) -> str:
        return self.name if self._epoch is None else f"{self.name}, {self._epoch}"

    def _restore(self) -> int:
        """How many epochs are done, their states put back."""
        run = self.run
        if self.keeper is None:
            return 0
        path = self.keeper.path
        if not run.resume:
            if path.exists():
                run.progress.note(f"note: {path} is of an earlier training; without --resume it begins anew")
            return 0
        found = self.keeper.restore()
        if found is None:
            return 0
        self.curve.extend(found.curve)
        run.log.kept = f"epoch {found.epoch} of {self.of} of {self.name}"
        run.progress.note(f"{self.name}: goes on after epoch {found.epoch} of {self.of}")
        here = this_machine()
        for what in here:
            if found.machine.get(what) != here[what]:
                run.progress.note(
                    f"warning: {path.name} was made with {what} {found.machine.get(what)}, now {here[what]}: "
                    "the result may differ in its last bits from an uninterrupted training"
                )
        self._compare_facts(found.facts)
        return found.epoch

    def _compare_facts(self, facts: Mapping[str, str]) -> None:
        for name, then in facts.items():
            now = self.run.log.facts.get(name, then)
            if now != then:
                self.run.progress.note(f"note: {name} was {then!r} before, now {now!r}")

    def _finish(self, epoch: Epoch, seconds: float) -> None:
        run, means = self.run, epoch.means()
        self.curve.append(means)
        wrong = [name for name, mean in means.items() if not math.isfinite(mean)]
        if wrong:
            run.progress.note(f"warning: {self.name}, epoch {epoch.number}: {', '.join(wrong)} is not finite")
        if run.on_epoch is not None:
            with _undisturbed(self.keep):
                run.on_epoch(epoch.number, means)
        is_last = epoch.number == self.of
        # One epoch is always done, so that limited calls one after the other come to an end.
        is_late = not is_last and run.time_limit is not None and run.timer.elapsed() + seconds > run.time_limit
        self._keep(epoch.number, must=is_last or is_late)
        if is_late:
            raise Cancelled(f"stopped at the time limit of {run.time_limit:g} s; {run.log.way_on(run.checkpoint)}")

    def _keep(self, done: int, must: bool) -> None:
        if self.keeper is None or not (must or self.keeper.is_due()):
            return
        try:
            self.keeper.write(done, self.curve, self.run.log.facts)
        except OutputError as error:  # hours of training are worth more than the means to interrupt it
            self.run.progress.note(f"warning: no checkpoint of epoch {done}: {error}")
        else:
            self.run.log.kept = f"epoch {done} of {self.of} of {self.name}"


class _undisturbed:  # noqa: N801 (reads as a word after ``with``)
    """A block after which networks are in the mode they were in, and torch's random state where it was."""

    def __init__(self, keep: Mapping[str, Stateful]) -> None:
        self.networks = [held for held in keep.values() if isinstance(held, nn.Module)]

    def __enter__(self) -> None:
        self.random = torch.get_rng_state()
        self.modes = {module: module.training for network in self.networks for module in network.modules()}

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.random)
        for module, mode in self.modes.items():
            module.training = mode


def _file(folder: Path, name: str) -> Path:
    return folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".checkpoint")
