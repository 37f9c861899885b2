"""How long to train, chosen without a test image: by defects painted on good images that were held out.

A student that learns for too short a time misses normal detail, one that learns for too long gives back defects, too,
and which of both comes first depends on the images. So a fifth of the parts is held out, each of its images is painted
with a defect of each kind, and a model that learns from the others is looked at now and then: how well does it tell the
painted images from the same ones unpainted, and outline what was painted? The epoch that does best is the length.
Whoever asked then learns from all of the images for as many epochs; what was learned here is thrown away.

Looks lie further apart the longer the training, as do the lengths that make a difference: each about 1.4 times the
epoch before. After ``PATIENCE`` looks without a better one, at four times the length, nothing is expected any more.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish.contract import Images, Method
from blemish.data.splits import split_by_group
from blemish.data.synthetic import SIDE, paint
from blemish.errors import ConfigError, OutputError
from blemish.inspection.inspector import Inspector
from blemish.metrics import aupro, auroc
from blemish.run import Run, Silent, derive_seed, written_atomically
from blemish.training.learner import Learner

AUTO = "auto"
"""In place of a number of epochs."""
KINDS = ("scratch", "stain", "hole", "missing")
"""What is painted: defects that can be seen on any ground."""
SHARE, MOST_PARTS, FEWEST_PARTS = 0.2, 40, 10
"""Of the parts, how many are held out, at most so many; and how many there must be in all."""
PATIENCE = 4
NOTES = "looks.checkpoint"
"""Lies among the checkpoints and is forgotten with them; JSON."""

_LOOKS = {round(2 ** (half / 2)) for half in range(40)}


@dataclass(frozen=True)
class Validation:
    """What a model that still learns made of the painted images.

    Attributes:
        epoch: at whose end it was looked at.
        image_auroc: of painted images against the same ones unpainted.
        aupro: of what was painted; None for a method without maps.
    """

    epoch: int
    image_auroc: float
    aupro: float | None

    @property
    def value(self) -> float:
        """What decides: the mean of both."""
        return self.image_auroc if self.aupro is None else (self.image_auroc + self.aupro) / 2


@dataclass(frozen=True)
class ChosenLength:
    """The length that painted defects speak for.

    Attributes:
        most: epochs that were allowed.
        held_out: images that were painted.
        looks: in order.
    """

    most: int
    held_out: int
    looks: tuple[Validation, ...]

    @property
    def best(self) -> Validation:
        """The first of the best looks."""
        return max(self.looks, key=lambda look: look.value)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a model's provenance: the looks as a column each."""
        figures = [{name: value and round(value, 4) for name, value in asdict(look).items()} for look in self.looks]
        looks = {name: [one[name] for one in figures] for name in asdict(self.best)}
        return {"epochs": self.best.epoch, "most": self.most, "held_out": self.held_out, "looks": looks}

    def sentence(self) -> str:
        """The choice in words."""
        others = ", ".join(f"{look.epoch}: {look.value:.3f}" for look in self.looks)
        best = self.best
        outlines = "" if best.aupro is None else f", AU-PRO {best.aupro:.3f}"
        late = "; it was still getting better: allow more" if best.epoch == self.most else ""
        return (
            f"length: {best.epoch} of at most {self.most} epochs, by defects painted on {self.held_out} held-out good "
            f"images (image AUROC {best.image_auroc:.3f}{outlines}; by epoch {others}){late}"
        )


def choose_length(
    learner: Learner, indices: Sequence[int], inspector: Callable[[Method], Inspector], run: Run
) -> ChosenLength:
    """Learn from most of the images, look, and say which epoch did best.

    Args:
        learner: of a method that is trained; its ``epochs`` are the most that are tried.
        indices: of the normal images that may be learned from.
        inspector: from a method to what judges with it.
        run: seed, progress, time limit, checkpoints. What was looked at lies beside these, so that a run that was
            stopped and goes on still has it.

    Raises:
        ConfigError: the parts are too few, or the images too small to paint on.
        Cancelled: the time limit is reached.
    """
    most = _check(learner, indices)
    groups = [learner.images.groups[i] for i in indices]
    held_parts = min(MOST_PARTS, max(2, round(SHARE * len(set(groups)))))
    kept, held = ([indices[i] for i in part] for part in split_by_group(groups, held_parts, run.seed))
    run = run.scoped("choosing the length")
    images, masks = _painted(learner.images.normal.subset(held), derive_seed(run.seed, "painted defects"))
    notes = _Notes(run, learner.work(kept))
    looks = notes.read()
    run = replace(run, resume=run.resume and bool(looks))  # a training whose looks are lost is of no use
    judged: list[Inspector] = []

    def on_epoch(epoch: int, _: dict[str, float]) -> None:
        if (epoch in _LOOKS or epoch == most) and all(look.epoch < epoch for look in looks):
            judged[0].method.finalize()
            looks.append(_look(judged[0], epoch, images, masks, replace(run, progress=Silent())))
            notes.write(looks)
        if _is_over(looks, most):
            raise _EnoughError

    if not _is_over(looks, most):
        with contextlib.suppress(_EnoughError):
            learner.learn(kept, replace(run, on_epoch=on_epoch), lambda method: judged.append(inspector(method)))
    return ChosenLength(most, len(held), tuple(looks))


class _EnoughError(Exception):
    """Ends a training from within: nothing better is expected of it."""


class _Notes:
    """What was looked at, on disk beside the checkpoints where there are any."""

    def __init__(self, run: Run, work: dict[str, str]) -> None:
        self.path: Path | None = None if run.checkpoint is None else run.checkpoint / NOTES
        self.resume, self.work = run.resume, {**work, "seed": str(run.seed)}

    def read(self) -> list[Validation]:
        """The looks of the run that goes on; none of another's."""
        if self.path is None or not self.resume:
            return []
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return [Validation(**look) for look in found["looks"]] if found["work"] == self.work else []
        except (OSError, ValueError, KeyError, TypeError):  # absent, or not ours
            return []

    def write(self, looks: Sequence[Validation]) -> None:
        """Keep the looks in the place of those before; where that fails, a resumed run has fewer and begins anew."""
        if self.path is None:
            return
        content = {"work": self.work, "looks": [asdict(look) for look in looks]}
        with contextlib.suppress(OutputError), written_atomically(self.path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def _check(learner: Learner, indices: Sequence[int]) -> int:
    parts = len({learner.images.groups[i] for i in indices})
    if parts < FEWEST_PARTS:
        raise ConfigError(f"--epochs auto paints defects on held-out parts, and {parts} are too few to hold out some: "
                          f"give {FEWEST_PARTS} good parts or a number of epochs")  # fmt: skip
    height, width = learner.images.preparation.input_size
    if min(height, width) <= SIDE:
        raise ConfigError(f"--epochs auto paints defects {SIDE} pixels wide, and images of {height} x {width} are too "
                          "small for that: use a larger --size or a number of epochs")  # fmt: skip
    return int(learner.config.epochs)


def _is_over(looks: Sequence[Validation], most: int) -> bool:
    if not looks or looks[-1].epoch == most:
        return bool(looks)
    best = max(range(len(looks)), key=lambda place: looks[place].value)
    return len(looks) - 1 - best >= PATIENCE


def _painted(images: Images, seed: int) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Each image unpainted and with a defect of each kind: ``n`` stacks of ``5 3 h w``, and ``n * 5 h w`` masks."""
    rng = np.random.default_rng(seed)
    stacks, masks = [], []
    for index in range(len(images)):
        good = images.batch([index]).images[0]
        picture = good.permute(1, 2, 0).numpy().astype(np.float64)
        stack, outlines = [good], [np.zeros(picture.shape[:2], bool)]
        for kind in KINDS:
            whole, mask = paint(picture, kind, rng)
            stack.append(torch.from_numpy(whole).permute(2, 0, 1).float())
            outlines.append(mask)
        stacks.append(torch.stack(stack))
        masks.append(np.stack(outlines))
    return stacks, np.concatenate(masks)


def _look(inspector: Inspector, epoch: int, images: Sequence[Tensor], masks: NDArray[np.bool_], run: Run) -> Validation:
    with run.timer.stage("looks"):
        predictions = [inspector.predict(stack) for stack in images]
        scores = torch.cat([one.score for one in predictions]).numpy()
        maps = [one.map for one in predictions if one.map is not None]
        outlined = float(aupro(torch.cat(maps).numpy(), masks)) if maps else None
        return Validation(epoch, auroc(scores, masks.any(axis=(1, 2))), outlined)
