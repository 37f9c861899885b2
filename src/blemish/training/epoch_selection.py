"""How long to train, chosen without a test image: by defects painted on normal images that were held out.

A student that learns for too short a time misses normal detail, one that learns for too long gives back defects, too.
So a fifth of the groups is held out, each of its images is painted with a defect of each kind, and a model that learns
from the others is judged at epochs about 1.4 times apart: how well does it tell the painted images from the same ones
unpainted, and outline what was painted? After ``PATIENCE`` of them without a better one, at four times the length,
nothing is expected any more. The epoch that did best is the length; what was learned here is thrown away.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish.data.loading import PreparedImages
from blemish.data.splits import split_by_group
from blemish.data.synthetic import SIDE, Surface, paint
from blemish.errors import ConfigError, OutputError
from blemish.inspection.detection import KINDS
from blemish.inspection.inspector import Inspector
from blemish.metrics import aupro, auroc
from blemish.run import Run, derive_seed, written_atomically
from blemish.training.learner import Learner

AUTO = "auto"
SHARE, MOST_GROUPS, FEWEST_GROUPS = 0.2, 40, 10  # held out of the groups, at most so many; and needed in all
PATIENCE = 4
JUDGED = frozenset(round(2 ** (half / 2)) for half in range(40))
FIGURES = ("image_auroc", "aupro")
FILE = "curve.checkpoint"  # lies among the checkpoints and is forgotten with them; JSON
Point = dict[str, Any]  # ``epoch`` and, of the model at its end, the ``FIGURES``; None for what cannot be given


class _EnoughError(Exception):
    """Ends a training from within: nothing better is expected of it."""


def choose_length(learner: Learner, indices: Sequence[int], run: Run) -> tuple[dict[str, Any], str]:
    """Which of at most the learner's ``epochs`` did best, as plain values and in words.

    The figures lie beside the run's checkpoints, so that a run that was stopped and goes on still has them.
    """
    of_all, most = learner.groups, int(learner.config.epochs)
    groups = [of_all[i] for i in indices]
    if (parts := len(set(groups))) < FEWEST_GROUPS:
        needed = f"give {FEWEST_GROUPS} good parts or a number of epochs"
        raise ConfigError(f"--epochs auto paints defects on held-out parts, and {parts} are too few: {needed}")
    height, width = learner.normal.preparation.input_size
    if min(height, width) <= SIDE:
        needed = "use a larger --size or a number of epochs"
        raise ConfigError(f"--epochs auto paints defects {SIDE} pixels wide, more than {height} x {width}: {needed}")
    number = min(MOST_GROUPS, max(2, round(SHARE * parts)))
    kept, held = ([indices[i] for i in part] for part in split_by_group(groups, number, run.seed))
    images, masks = _painted(learner.normal.subset(held), derive_seed(run.seed, "painted defects"))
    run = run.scoped("choosing the length")
    path = None if run.checkpoint is None else run.checkpoint / FILE
    work = {**learner.work(kept), "seed": str(run.seed)}
    points = _kept_points(path, work) if run.resume else []
    run = replace(run, resume=bool(points))  # a training whose points are lost is of no use

    def is_over() -> bool:
        since_best = len(points) - 1 - points.index(max(points, key=_value)) if points else 0
        return bool(points) and (points[-1]["epoch"] == most or since_best >= PATIENCE)

    def on_epoch(epoch: int, _: dict[str, float], inspector: Inspector) -> None:
        if (epoch in JUDGED or epoch == most) and all(point["epoch"] < epoch for point in points):
            inspector.method.finalize()
            with run.timer.stage("looks"):
                scored = list(inspector.stream(images, lambda image: image, batch_size=1 + len(KINDS)))
                maps = [image.map for image in scored if image.map is not None]
                image_auroc = auroc(np.array([image.score for image in scored]), masks.any(axis=(1, 2)))
                outlined = float(aupro(np.stack(maps), masks)) if maps else None
            points.append({"epoch": epoch, "image_auroc": image_auroc, "aupro": outlined})
            if path is not None:
                # Where this fails, a resumed run has fewer points and begins anew.
                with contextlib.suppress(OutputError), written_atomically(path) as temporary:
                    temporary.write_text(json.dumps({"work": work, "points": points}), encoding="utf-8")
        if is_over():
            raise _EnoughError

    if not is_over():
        with contextlib.suppress(_EnoughError):
            learner.learn(kept, run, on_epoch)
    return described(points, most, len(held))


def described(points: Sequence[Point], most: int, held_out: int) -> tuple[dict[str, Any], str]:
    """The choice as plain values, the figures in a column each, and in words."""
    best = max(points, key=_value)  # the first of equal ones
    looks = {name: [point[name] and round(point[name], 4) for point in points] for name in ("epoch", *FIGURES)}
    outlines = "" if best["aupro"] is None else f", AU-PRO {best['aupro']:.3f}"
    others = ", ".join(f"{point['epoch']}: {_value(point):.3f}" for point in points)
    late = "; it was still getting better: allow more" if best["epoch"] == most else ""
    return {"epochs": best["epoch"], "most": most, "held_out": held_out, "looks": looks}, (
        f"length: {best['epoch']} of at most {most} epochs, by defects painted on {held_out} held-out good images "
        f"(image AUROC {best['image_auroc']:.3f}{outlines}; by epoch {others}){late}"
    )


def _value(point: Point) -> float:
    """What decides: the mean of the figures that there are."""
    return float(np.mean([point[name] for name in FIGURES if point[name] is not None]))


def _kept_points(path: Path | None, work: Mapping[str, str]) -> list[Point]:
    """Those of the run that goes on; none of another's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        return list(content["points"]) if content["work"] == work else []
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not ours
        return []


def _painted(images: PreparedImages, seed: int) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Each image, or its middle tile, unpainted and with a defect of each kind: tensors ``3 h w``, masks ``n h w``."""
    rng = np.random.default_rng(seed)
    painted, masks = [], []
    for index in range(len(images)):
        place = images.middle(index)
        image, inside = images.at([place]).images[0], images.preparation.inside(place[1])
        picture = image.permute(1, 2, 0).numpy().astype(np.float64)
        pictures = [(picture, np.zeros(picture.shape[:2], bool))]
        surface = Surface(picture)
        pictures += [paint(surface, kind, rng, inside=inside) for kind in KINDS]
        painted += [torch.from_numpy(pixels).permute(2, 0, 1).float() for pixels, _ in pictures]
        masks += [mask for _, mask in pictures]
    return painted, np.stack(masks)
