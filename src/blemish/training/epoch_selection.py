"""How long to train, chosen without a test image: by defects painted on normal images that were held out.

A student that learns for too short a time misses normal detail, one that learns for too long gives back defects, too,
and which of both comes first depends on the images. So a fifth of the groups is held out, each of its images is painted
with a defect of each kind, and a model that learns from the others is judged now and then: how well does it tell the
painted images from the same ones unpainted, and outline what was painted? The epoch that does best is the length.
Whoever asked then learns from all of the images for as many epochs; what was learned here is thrown away.

Judged epochs lie further apart the longer the training, as do the lengths that make a difference: each about 1.4 times
the one before. After ``PATIENCE`` of them without a better one, at four times the length, nothing is expected any more.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish.contract import Images
from blemish.data.splits import split_by_group
from blemish.data.synthetic import SIDE, paint
from blemish.errors import ConfigError, OutputError
from blemish.inspection.inspector import Inspector
from blemish.metrics import aupro, auroc
from blemish.run import Run, derive_seed, written_atomically
from blemish.training.learner import Learner

AUTO = "auto"
"""In place of a number of epochs."""
KINDS = ("scratch", "stain", "hole", "missing")
"""What is painted: defects that can be seen on any ground."""
SHARE, MOST_GROUPS, FEWEST_GROUPS = 0.2, 40, 10
"""Of the groups, how many are held out, at most so many; and how many there must be in all."""
PATIENCE = 4
JUDGED = frozenset(round(2 ** (half / 2)) for half in range(40))
FIGURES = ("image_auroc", "aupro")
FILE = "curve.checkpoint"
"""Lies among the checkpoints and is forgotten with them; JSON."""

Point = dict[str, Any]
"""``epoch``, and figures of the model at its end by name; None for what cannot be given."""


@dataclass
class Curve:
    """Judges a model that still learns at the end of some epochs; with a file, its points outlive a stopped run.

    Attributes:
        measure: figures of the model, by name.
        is_due: whether a model is judged at the end of an epoch.
        path: of the file; None keeps none.
        work: what is learned from what: points of other work are not taken up.
        points: in the order of their epochs.
    """

    measure: Callable[[Inspector], Mapping[str, float | None]]
    is_due: Callable[[int], bool]
    path: Path | None = None
    work: Mapping[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)

    def resume(self) -> None:
        """Take up the points of the run that goes on; none of another's."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, or not ours
            content = json.loads(self.path.read_text(encoding="utf-8")) if self.path is not None else {}
            self.points = content["points"] if content["work"] == self.work else []

    def on_epoch(self, epoch: int, means: Mapping[str, float], inspector: Inspector) -> None:
        """Judge the model where it is time; an epoch that was seen before a resumption is not judged again."""
        if not self.is_due(epoch) or any(point["epoch"] >= epoch for point in self.points):
            return
        inspector.method.finalize()
        self.points.append({"epoch": epoch, **self.measure(inspector)})
        if self.path is not None:
            # Where this fails, a resumed run has fewer points and begins anew.
            with contextlib.suppress(OutputError), written_atomically(self.path) as temporary:
                temporary.write_text(json.dumps({"work": self.work, "points": self.points}), encoding="utf-8")


def mean_figure(point: Point, names: Sequence[str] = FIGURES) -> float:
    """The mean of the figures that the data can give, by which epochs are compared; -inf without any."""
    known = [point[name] for name in names if point[name] is not None]
    return sum(known) / len(known) if known else -math.inf


class _EnoughError(Exception):
    """Ends a training from within: nothing better is expected of it."""


def choose_length(learner: Learner, indices: Sequence[int], run: Run) -> tuple[dict[str, Any], str]:
    """Learn from most of the images, judge now and then, and say which epoch did best.

    Args:
        learner: of a method that is trained; its ``epochs`` are the most that are tried.
        indices: of the normal images that may be learned from.
        run: seed, progress, time limit, checkpoints. The figures lie beside these, so that a run that was stopped and
            goes on still has them.

    Returns:
        Plain values for a model's provenance, with the chosen ``epochs``, and the choice in words.

    Raises:
        ConfigError: the groups are too few, or the images too small to paint on.
        Cancelled: the time limit is reached.
    """
    groups = [learner.groups[i] for i in indices]
    if len(set(groups)) < FEWEST_GROUPS:
        raise ConfigError(
            f"--epochs auto paints defects on held-out parts, and {len(set(groups))} are too few to hold out some: "
            f"give {FEWEST_GROUPS} good parts or a number of epochs"
        )
    height, width = learner.normal.preparation.input_size
    if min(height, width) <= SIDE:
        raise ConfigError(
            f"--epochs auto paints defects {SIDE} pixels wide, and images of {height} x {width} are too small for "
            "that: use a larger --size or a number of epochs"
        )
    most = int(learner.config.epochs)
    number = min(MOST_GROUPS, max(2, round(SHARE * len(set(groups)))))
    kept, held = ([indices[i] for i in part] for part in split_by_group(groups, number, run.seed))
    images, masks = _painted(learner.normal.subset(held), derive_seed(run.seed, "painted defects"))
    run = run.scoped("choosing the length")

    def measure(inspector: Inspector) -> dict[str, float | None]:
        with run.timer.stage("looks"):
            scored = list(inspector.stream(images, lambda image: image, batch_size=1 + len(KINDS)))
            maps = [one.map for one in scored if one.map is not None]
            outlined = float(aupro(np.stack(maps), masks)) if maps else None
            scores = np.array([one.score for one in scored])
            return {"image_auroc": auroc(scores, masks.any(axis=(1, 2))), "aupro": outlined}

    path = None if run.checkpoint is None else run.checkpoint / FILE
    work = {**learner.work(kept), "seed": str(run.seed)}
    curve = Curve(measure, lambda epoch: epoch in JUDGED or epoch == most, path, work)
    if run.resume:
        curve.resume()
    run = replace(run, resume=run.resume and bool(curve.points))  # a training whose points are lost is of no use

    def stop_where_nothing_better_is_expected() -> None:
        best = curve.points.index(max(curve.points, key=mean_figure)) if curve.points else 0
        if curve.points and (curve.points[-1]["epoch"] == most or len(curve.points) - 1 - best >= PATIENCE):
            raise _EnoughError

    def on_epoch(epoch: int, means: dict[str, float], inspector: Inspector) -> None:
        curve.on_epoch(epoch, means, inspector)
        stop_where_nothing_better_is_expected()

    with contextlib.suppress(_EnoughError):
        stop_where_nothing_better_is_expected()
        learner.learn(kept, run, on_epoch)
    return described(curve.points, most, len(held))


def described(points: Sequence[Point], most: int, held_out: int) -> tuple[dict[str, Any], str]:
    """The choice as plain values, the figures in a column each, and in words."""
    best = max(points, key=mean_figure)  # the first of equal ones
    looks = {name: [point[name] and round(point[name], 4) for point in points] for name in ("epoch", *FIGURES)}
    outlines = "" if best["aupro"] is None else f", AU-PRO {best['aupro']:.3f}"
    others = ", ".join(f"{point['epoch']}: {mean_figure(point):.3f}" for point in points)
    late = "; it was still getting better: allow more" if best["epoch"] == most else ""
    return {"epochs": best["epoch"], "most": most, "held_out": held_out, "looks": looks}, (
        f"length: {best['epoch']} of at most {most} epochs, by defects painted on {held_out} held-out good images "
        f"(image AUROC {best['image_auroc']:.3f}{outlines}; by epoch {others}){late}"
    )


def _painted(images: Images, seed: int) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Each image unpainted and then with a defect of each kind: tensors ``3 h w``, and masks ``n h w``."""
    rng = np.random.default_rng(seed)
    painted, masks = [], []
    for index in range(len(images)):
        good = images.batch([index]).images[0]
        picture = good.permute(1, 2, 0).numpy().astype(np.float64)
        painted.append(good)
        masks.append(np.zeros(picture.shape[:2], bool))
        for kind in KINDS:
            whole, mask = paint(picture, kind, rng)
            painted.append(torch.from_numpy(whole).permute(2, 0, 1).float())
            masks.append(mask)
    return painted, np.stack(masks)
