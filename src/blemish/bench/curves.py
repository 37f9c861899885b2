"""Judging a model now and then while it learns: to draw curves over epochs, or to choose the best epoch on test."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from blemish.bench.jobs import Configuration
from blemish.bench.recipe import LOWER_IS_BETTER, METRICS
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet
from blemish.inspection.inspector import Inspector
from blemish.run import Run, Timer, written_atomically
from blemish.training.evaluate import Evaluation, as_figures, evaluate

Point = dict[str, Any]  # ``epoch`` and what was found at its end; None for what the data cannot give


@dataclass
class Evaluations:
    """The evaluations of one training, which never change how it goes on.

    They lie in a file, so that a job that is killed and goes on still has them.
    """

    configuration: Configuration  # ``follow`` judges after every so many epochs, ``best_on_test`` after each
    tests: Mapping[str, TestSet]  # by the key of the row that they are for
    training: TrainingSet  # in the order that methods see
    planted: Collection[Path]  # training images that are bad; no method is told
    run: Run  # counts the seconds as ``looks``
    path: Path
    # The epoch with the highest mean of ``select_by``, and what was found there: what honest training never looks for.
    best: tuple[int, Evaluation] | None = None
    points: dict[str, list[Point]] = field(default_factory=dict)
    trusted: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.points = {key: [] for key in self.tests}
        if self.run.resume and self.path.is_file():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.points |= content["points"]
            self.trusted = content["trusted"]

    def on_epoch(self, epoch: int, _: Mapping[str, float], inspector: Inspector) -> None:
        """Evaluate where it is time; an epoch that was seen before a resumption is not looked at again."""
        confident = getattr(inspector.method, "confident", None)
        if confident is not None and self.planted and all(point["epoch"] < epoch for point in self.trusted):
            bad = sum(self.training.normal[index].path in self.planted for index in confident)
            self.trusted.append({"epoch": epoch, "images": len(confident), "bad": bad})
        options, chooses = self.configuration["options"], self.configuration["selection"] == "best_on_test"
        is_last = options["steps"] is None and epoch == options["epochs"]  # which is judged in any case after fitting
        if epoch % self.configuration.get("follow", 1) == 0 and (chooses or not is_last):
            inspector.method.finalize()
            for key, test in self.tests.items():
                if any(point["epoch"] >= epoch for point in self.points[key]):
                    continue
                with self.run.timer.stage("looks"):
                    apart = replace(self.run, timer=Timer())  # neither learning nor the final judging
                    how = self.configuration["at"], self.configuration["per_image_pro"], chooses
                    found = evaluate(inspector, test, apart, *how)
                self.points[key].append(self.point(epoch, found))
                if chooses and (self.best is None or self._worth(found) > self._worth(self.best[1])):
                    self.best = epoch, found
        with written_atomically(self.path) as temporary:
            temporary.write_text(json.dumps({"points": self.points, "trusted": self.trusted}), encoding="utf-8")

    def point(self, epoch: int, found: Evaluation) -> Point:
        figures = as_figures(found.metrics)
        return {"epoch": epoch, **{name: value for name, value in figures.items() if name in METRICS}}

    def trusted_columns(self, learned_from: int | None) -> dict[str, Any] | None:
        """Epoch by epoch, how many images the method took for good and how many of them are bad; ``share`` is of all.

        None if the method names no images. So it is where it did not learn from all (``learned_from`` of them), as some
        were held out or unreadable: it speaks of places among those that it learned from.
        """
        images = len(self.training.normal)
        if not self.trusted or learned_from != images:
            return None
        columns = {name: [point[name] for point in self.trusted] for name in ("epoch", "images", "bad")}
        return {**columns, "share": round(len(self.planted) / images, 5)}

    def _worth(self, found: Evaluation) -> float:
        signs = {name: -1 if name in LOWER_IS_BETTER else 1 for name in self.configuration["select_by"]}
        values = [sign * found.metrics.get(name, math.nan) for name, sign in signs.items()]
        return fmean([value for value in values if not math.isnan(value)] or [-math.inf])
