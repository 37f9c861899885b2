"""Judging a model now and then while it learns, to draw curves over epochs. Nothing is chosen by them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blemish.bench.recipe import METRICS
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet
from blemish.inspection.inspector import Inspector
from blemish.run import Run, Timer, written_atomically
from blemish.training.evaluate import Evaluation, as_figures, evaluate

Point = dict[str, Any]
"""``epoch`` and what was found at its end; None for what the data cannot give."""


@dataclass
class Follower:
    """Judges the test sets after every so many epochs, and notes which training images a method trusts.

    Its notes lie in a file, so that a job that is killed and goes on still has them.

    Attributes:
        tests: by the key of the job that they are for.
        every: epochs from one look to the next.
        last: the last epoch, which is judged in any case by whoever fits; None where its number is not known.
        training: what is learned from, in the order that methods see.
        planted: names of training images that are bad; no method is told.
        run: reports progress.
        path: of the notes.
        at, per_image: as ``evaluate`` takes them.
    """

    tests: Mapping[str, TestSet]
    every: int
    last: int | None
    training: TrainingSet
    planted: Collection[Path]
    run: Run
    path: Path
    at: Any = "input"
    per_image: bool = False
    _points: dict[str, list[Point]] = field(default_factory=dict)
    _trusted: list[Point] = field(default_factory=list)

    def begin(self, goes_on: bool) -> None:
        """Take up the notes of the training that goes on, or forget those of another."""
        self._points, self._trusted = {key: [] for key in self.tests}, []
        if goes_on and self.path.is_file():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self._points |= found["points"]
            self._trusted = found["trusted"]

    def on_epoch(self, epoch: int, _: dict[str, float], inspector: Inspector) -> None:
        """Validation, where it is time. An epoch that was seen before a resumption is not looked at again."""
        confident = getattr(inspector.method, "confident", None)
        if confident is not None and self.planted and all(one["epoch"] < epoch for one in self._trusted):
            samples = self.training.normal
            bad = sum(samples[place].path in self.planted for place in confident)
            self._trusted.append({"epoch": epoch, "images": len(confident), "bad": bad})
        if epoch % self.every == 0 and epoch != self.last:
            inspector.method.finalize()
            for key, test in self.tests.items():
                if all(one["epoch"] < epoch for one in self._points[key]):
                    found = look(inspector, test, self.run, self.at, self.per_image, kinds=False)
                    self._points[key].append({"epoch": epoch, **_shown(found)})
        self._write()

    def looks(self, key: str) -> int:
        """How often the job's test set was opened."""
        return len(self._points[key])

    def points(self, key: str, epochs: int, final: Evaluation) -> list[Point]:
        """The curve of a job, up to the model as training left it."""
        return [*self._points[key], {"epoch": epochs, **_shown(final)}]

    def trusted(self, learned_from: int | None) -> dict[str, Any] | None:
        """Epoch by epoch, how many images the method took for good and how many of them are bad.

        ``share`` is that of bad images in all that it learned from.

        Args:
            learned_from: number of images that the method learned from. It speaks of places among these, which are
                places in the training set only if it learned from all: some may have been held out, or unreadable.

        Returns:
            None if the method names no images, or did not see all.
        """
        if not self._trusted or learned_from != len(self.training.normal):
            return None
        columns = {name: [one[name] for one in self._trusted] for name in ("epoch", "images", "bad")}
        return {**columns, "share": round(len(self.planted) / len(self.training.normal), 5)}

    def _write(self) -> None:
        with written_atomically(self.path) as temporary:
            temporary.write_text(json.dumps({"points": self._points, "trusted": self._trusted}), encoding="utf-8")


def look(inspector: Inspector, test: TestSet, run: Run, at: Any, per_image: bool, kinds: bool = True) -> Evaluation:
    """Judge a test set while the model still learns; the seconds count to a stage of their own."""
    with run.timer.stage("looks"):
        return evaluate(inspector, test, replace(run, timer=Timer()), at, per_image, kinds)


def columns(curve: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """The logged values of a training, name by name, short enough for a row; None where an epoch has none."""
    names = dict.fromkeys(name for epoch in curve for name in epoch)
    return {name: [_brief(epoch.get(name)) for epoch in curve] for name in names}


def _brief(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.5g}")


def _shown(found: Evaluation) -> Point:
    return {name: value for name, value in as_figures(found.metrics).items() if name in METRICS}
