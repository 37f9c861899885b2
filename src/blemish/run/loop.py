"""The loop over epochs that every trained method shares: order of images, progress, checkpoints, limits.

What a batch holds depends on seed and epoch alone, and torch's own random state is set anew at each epoch, so that a
killed training goes on from its last checkpoint to the same bits (for equal threads).
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blemish.errors import Cancelled, ConfigError, OutputError
from blemish.run.checkpoint import CheckpointManager, this_machine
from blemish.run.device import reproducible
from blemish.run.run import Run, derive_seed


class Epoch:
    """One pass over the training images: ``number`` (from 1) ``of`` all epochs, of ``step_count`` steps."""

    def __init__(
        self, run: Run, numbers: tuple[int, int], steps: int, images: int, size: int, on_step: Callable[[], object]
    ) -> None:
        (self.number, self.of), self.step_count = numbers, steps
        self._run, self._images, self._batch_size, self._on_step = run, images, size, on_step
        self._logged: dict[str, tuple[Tensor | float, int]] = {}

    def batches(self) -> Iterator[list[int]]:
        """Indices of the images of each step: every image once, the last batch of a whole epoch may be smaller."""
        order, size = self.permutation(self._images, "order of images"), self._batch_size
        for step in self.steps():
            yield order[step * size : (step + 1) * size]

    def steps(self) -> Iterator[int]:
        """The numbers of this epoch's steps from 0, for methods that make their own batches."""
        for step in range(self.step_count):
            yield step
            self._on_step()

    def cycle(self, count: int, size: int, purpose: str) -> Iterator[list[int]]:
        """Batches without end of ``min(size, count)`` indices: pass after pass over ``count``, each shuffled anew."""
        generator = self.generator(purpose)
        size, left = min(size, count), list[int]()
        while True:
            while len(left) < size:
                left += torch.randperm(count, generator=generator).tolist()
            yield left[:size]
            left = left[size:]

    def generator(self, purpose: str) -> torch.Generator:
        return self._run.generator(f"epoch {self.number}/{purpose}")

    def permutation(self, n: int, purpose: str) -> list[int]:
        return self._run.permutation(n, f"epoch {self.number}/{purpose}")

    def descend(
        self, loss: Tensor, /, *optimisers: torch.optim.Optimizer, clip: float = math.inf, **values: Tensor | float
    ) -> None:
        """Step down the gradient of ``loss``, of a norm of at most ``clip``, and leave none; ``values`` are logged."""
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            if clip < math.inf:
                nn.utils.clip_grad_norm_([one for group in optimiser.param_groups for one in group["params"]], clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.log(**values)

    def log(self, **values: Tensor | float) -> None:
        """Add scalars to the epoch's mean values, which progress and curves show."""
        for name, value in values.items():
            number = value.detach().double() if isinstance(value, Tensor) else float(value)
            total, count = self._logged.get(name, (0.0, 0))
            self._logged[name] = total + number, count + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / count for name, (total, count) in self._logged.items()}

    def __str__(self) -> str:
        shown = [f"{name} {mean:.4g}" for name, mean in list(self.means().items())[:3]]
        return ", ".join([f"epoch {self.number} of {self.of}", *shown])


class Schedule(Protocol):
    """How long to train, as a method's config says it: ``steps``, where given, may end within the last epoch."""

    @property
    def epochs(self) -> int: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...


def epochs(
    run: Run, title: str, state: Mapping[str, Any], schedule: Schedule, images: int = 0, epoch_steps: int | None = None
) -> Iterator[Epoch]:
    """The epochs of a training that are still to do: all of them, or those after the last checkpoint.

    Where a checkpoint is taken up, the states are put back before the first epoch is given, so build networks and
    optimisers first. A training whose last checkpoint is of its last epoch gives no epoch at all.
    ``state`` is everything that changes while training and is used after, every optimiser too. An epoch has
    ``ceil(images / batch_size)`` steps, or ``epoch_steps`` where the method makes its own batches.

    Raises ``Cancelled`` at the time limit, ``ModelFileError`` where the checkpoint to go on from is damaged or foreign,
    ``ConfigError`` where it belongs to other work or there is nothing to do.
    """
    asked = schedule.epochs if schedule.steps is None else schedule.steps
    length = f"{asked} {'epochs' if schedule.steps is None else 'steps'}"
    if epoch_steps is None:
        epoch_steps = math.ceil(images / max(schedule.batch_size, 1))
    if min(asked, epoch_steps, schedule.batch_size) < 1:
        shape = f"{images} images in batches of {schedule.batch_size}"
        raise ConfigError(f"{title}: {length} over {shape}: at least 1 of each is needed")
    total_steps = asked * epoch_steps if schedule.steps is None else asked
    of, name = math.ceil(total_steps / epoch_steps), f"{title} ({run.scope})" if run.scope else title
    curve = run.log.curves[name] = []
    manager, done = None, 0
    if run.checkpoint is not None:
        work = {"training": name, "length": length, "images in training": str(images)}
        work |= {"batch size": str(schedule.batch_size), "steps of an epoch": str(epoch_steps)}
        work |= {"seed": str(run.seed), "precision": run.precision.name, "device": run.device.type}
        file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".checkpoint"
        manager = CheckpointManager(run.checkpoint / file, state, {**run.work, **work})
        done = _resume(run, manager, name, of, curve)
    epoch: Epoch | None = None
    left = range(min(done * epoch_steps, total_steps), total_steps)
    ticks = iter(run.progress.track(left, lambda: name if epoch is None else f"{name}, {epoch}", len(left)))
    if left:
        next(ticks)  # a tracker counts an item when the next one is asked for, so it is always one ahead
    try:
        for number in range(done + 1, of + 1):
            began = time.monotonic()
            torch.manual_seed(derive_seed(run.seed, f"epoch {number}"))
            steps = min(epoch_steps, total_steps - (number - 1) * epoch_steps)
            epoch = Epoch(run, (number, of), steps, images, schedule.batch_size, lambda: next(ticks, None))
            run.log.at = f"epoch {number} of {of} of {name}"
            with reproducible(run.device):
                yield epoch
            curve.append(epoch.means())
            _finish(run, epoch, name, state, manager, began)
    finally:
        if hasattr(ticks, "close"):
            ticks.close()  # ends the bar, whether all went well or not


def _resume(run: Run, manager: CheckpointManager, name: str, of: int, curve: list[dict[str, float]]) -> int:
    """How many epochs are done, their states put back."""
    path, note = manager.path, run.progress.note
    if not run.resume:
        if path.exists():
            note(f"note: {path} is of an earlier training; without --resume it begins anew")
        return 0
    checkpoint = manager.restore()
    if checkpoint is None:
        return 0
    curve.extend(checkpoint.curve)
    run.log.kept = f"epoch {checkpoint.epoch} of {of} of {name}"
    note(f"{name}: goes on after epoch {checkpoint.epoch} of {of}")
    for what, here in this_machine().items():
        if (before := checkpoint.machine.get(what)) != here:
            note(
                f"warning: {path.name} was made with {what} {before}, now {here}: "
                "the result may differ in its last bits from an uninterrupted training"
            )
    for fact, before in checkpoint.facts.items():
        if (now := run.log.facts.get(fact, before)) != before:
            note(f"note: {fact} was {before!r} before, now {now!r}")
    return checkpoint.epoch


def _finish(
    run: Run, epoch: Epoch, name: str, state: Mapping[str, Any], manager: CheckpointManager | None, began: float
) -> None:
    """What follows an epoch: the caller's hook, which disturbs nothing, a checkpoint, the time limit."""
    number, means, curve = epoch.number, epoch.means(), run.log.curves[name]
    seconds = time.monotonic() - began
    if wrong := [value for value, mean in means.items() if not math.isfinite(mean)]:
        run.progress.note(f"warning: {name}, epoch {number}: {', '.join(wrong)} is not finite")
    if run.on_epoch is not None:
        modules = list(nn.ModuleList(value for value in state.values() if isinstance(value, nn.Module)).modules())
        modes = [module.training for module in modules]
        with torch.random.fork_rng(devices=()):
            run.on_epoch(number, means)
        for module, mode in zip(modules, modes):
            module.training = mode
    is_last = number == epoch.of
    # One epoch is always done, so that limited calls one after the other come to an end.
    is_late = not is_last and run.time_limit is not None and run.timer.elapsed() + seconds > run.time_limit
    if manager is not None and (is_last or is_late or manager.is_due()):
        try:
            manager.write(number, curve, run.log.facts)
            run.log.kept = f"epoch {number} of {epoch.of} of {name}"
        except OutputError as error:  # hours of training are worth more than the means to interrupt it
            run.progress.note(f"warning: no checkpoint of epoch {number}: {error}")
    if is_late:
        raise Cancelled(f"stopped at the time limit of {run.time_limit:g} s; {run.log.way_on(run.checkpoint)}")
