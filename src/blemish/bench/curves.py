"""Judging a model now and then while it learns: to draw curves over epochs, or to choose the best epoch on test."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from blemish.bench.recipe import METRICS
from blemish.bench.sets import Configuration
from blemish.contract import Method
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet
from blemish.inspection.inspector import Inspector
from blemish.run import Run, Timer, written_atomically
from blemish.training.evaluate import Evaluation, as_figures, evaluate

Point = dict[str, Any]
"""``epoch`` and what was found at its end; None for what the data cannot give."""


@dataclass
class Evaluations:
    """The evaluations of one training, which never change how it goes on.

    They lie in a file, so that a job that is killed and goes on still has them.

    Attributes:
        configuration: of the job. ``follow`` judges after every so many epochs, ``best_on_test`` after each.
        tests: by the key of the row that they are for.
        training: what is learned from, in the order that methods see.
        planted: training images that are bad; no method is told.
        run: reports progress and counts the seconds as ``looks``.
        path: of the file.
        best: the epoch with the highest mean of ``select_by``, and what was found there: what honest training never
            looks for.
    """

    configuration: Configuration
    tests: Mapping[str, TestSet]
    training: TrainingSet
    planted: Collection[Path]
    run: Run
    path: Path
    best: tuple[int, Evaluation] | None = None
    _points: dict[str, list[Point]] = field(default_factory=dict)
    _trusted: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take up the file of a training that goes on."""
        self._points = {key: [] for key in self.tests}
        if self.run.resume and self.path.is_file():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self._points |= content["points"]
            self._trusted = content["trusted"]

    def on_epoch(self, epoch: int, _: Mapping[str, float], inspector: Inspector) -> None:
        """Evaluate where it is time; an epoch that was seen before a resumption is not looked at again."""
        self._note_trusted(epoch, inspector.method)
        options, chooses = self.configuration["options"], self.configuration["selection"] == "best_on_test"
        is_last = options["steps"] is None and epoch == options["epochs"]  # which is judged in any case after fitting
        if epoch % self.configuration.get("follow", 1) == 0 and (chooses or not is_last):
            inspector.method.finalize()
            for key, test in self.tests.items():
                if all(point["epoch"] < epoch for point in self._points[key]):
                    with self.run.timer.stage("looks"):
                        apart = replace(self.run, timer=Timer())  # neither learning nor the final judging
                        found = judge(inspector, test, self.configuration, apart, kinds=chooses)
                    self._points[key].append(_point(epoch, found))
                    if chooses and (self.best is None or self._worth(found) > self._worth(self.best[1])):
                        self.best = epoch, found
        with written_atomically(self.path) as temporary:
            temporary.write_text(json.dumps({"points": self._points, "trusted": self._trusted}), encoding="utf-8")

    def count(self, key: str) -> int:
        """How often the test set of a row was opened."""
        return len(self._points[key])

    def points(self, key: str, epochs: int, final: Evaluation) -> list[Point]:
        """The curve of a row, up to the model as training left it."""
        return [*self._points[key], _point(epochs, final)]

    def trusted(self, learned_from: int | None) -> dict[str, Any] | None:
        """Epoch by epoch, how many images the method took for good and how many of them are bad; ``share`` is of all.

        None if the method names no images. So it is where it did not learn from all (``learned_from`` of them), as some
        were held out or unreadable: it speaks of places among those that it learned from.
        """
        images = len(self.training.normal)
        if not self._trusted or learned_from != images:
            return None
        columns = {name: [point[name] for point in self._trusted] for name in ("epoch", "images", "bad")}
        return {**columns, "share": round(len(self.planted) / images, 5)}

    def _note_trusted(self, epoch: int, method: Method) -> None:
        confident = getattr(method, "confident", None)
        if confident is not None and self.planted and all(point["epoch"] < epoch for point in self._trusted):
            samples = self.training.normal
            bad = sum(samples[index].path in self.planted for index in confident)
            self._trusted.append({"epoch": epoch, "images": len(confident), "bad": bad})

    def _worth(self, found: Evaluation) -> float:
        """The mean of the figures to choose by, without those that this set cannot give."""
        values = [found.metrics[name] for name in self.configuration["select_by"]]
        return fmean([value for value in values if not math.isnan(value)] or [-math.inf])


def judge(
    inspector: Inspector, test: TestSet, configuration: Configuration, run: Run, kinds: bool = True
) -> Evaluation:
    """Judge a test set as the configuration says."""
    return evaluate(inspector, test, run, configuration["at"], configuration["per_image_pro"], kinds)


def columns(curve: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """The logged values of a training, name by name, short enough for a row; None where an epoch has none."""

    def brief(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else float(f"{value:.5g}")

    names = dict.fromkeys(name for epoch in curve for name in epoch)
    return {name: [brief(epoch.get(name)) for epoch in curve] for name in names}


def _point(epoch: int, found: Evaluation) -> Point:
    figures = as_figures(found.metrics)
    return {"epoch": epoch, **{name: value for name, value in figures.items() if name in METRICS}}
