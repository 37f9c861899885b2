"""Learning one job's model and judging the test set with it: once, at the end, unless the recipe names otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from blemish.bench.curves import Follower, look
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet
from blemish.errors import ConfigError
from blemish.inspection.inspector import Inspector
from blemish.run import Run
from blemish.training.evaluate import Evaluation, evaluate
from blemish.training.fit import FitSettings, fit


@dataclass(frozen=True)
class Outcome:
    """A job's model and figures.

    Attributes:
        inspector: as training left it.
        found: the figures that the row carries.
        test_openings: how often the test set was judged.
        epoch: the epoch that ``found`` is of, where the test set chose it; else None.
        last: the figures of the last epoch in that case, to show what choosing added.
    """

    inspector: Inspector
    found: Evaluation
    test_openings: int = 1
    epoch: int | None = None
    last: dict[str, Any] | None = None


def learn_and_judge(
    training: TrainingSet,
    test: TestSet,
    settings: FitSettings,
    configuration: dict[str, Any],
    run: Run,
    follower: Follower | None = None,
) -> Outcome:
    """Fit, then judge the test set as the configuration says.

    Args:
        training: to learn from.
        test: to judge.
        settings: how to learn.
        configuration: of the job.
        run: its seed, checkpoints and timer.
        follower: draws curves on the way; not with ``best_on_test``, which looks after each epoch by itself.

    Raises:
        BlemishError: whatever fitting and judging raise.
    """
    at, per_image = configuration["at"], configuration["per_image_pro"]
    if configuration["selection"] == "last":
        inspector = fit(training, settings, run, None if follower is None else follower.on_epoch)
        return Outcome(inspector, evaluate(inspector, test, run, at, per_image))
    watcher = _Watcher(test, run, configuration)
    inspector = fit(training, settings, run, watcher.on_epoch)
    last = evaluate(inspector, test, run, at, per_image)
    if watcher.best is None:
        raise ConfigError(
            f"{configuration['method']} ended without an epoch: best_on_test cannot choose one, use selection = 'last'"
        )
    return Outcome(inspector, watcher.best, watcher.openings + 1, watcher.epoch, last.as_dict())


def judge_again(outcome: Outcome, test: TestSet, configuration: dict[str, Any], run: Run) -> Outcome:
    """The same model judged on another test set."""
    found = evaluate(outcome.inspector, test, run, configuration["at"], configuration["per_image_pro"])
    return replace(outcome, found=found)


@dataclass
class _Watcher:
    """Judges the test set after each epoch and keeps the best figures: what honest training never does."""

    test: TestSet
    run: Run
    configuration: dict[str, Any]
    openings: int = 0
    epoch: int | None = None
    best: Evaluation | None = None
    _value: float = -math.inf

    def on_epoch(self, epoch: int, _: dict[str, float], inspector: Inspector) -> None:
        """Judge, and remember if better; the mean leaves out figures that this set cannot give."""
        inspector.method.finalize()
        found = look(inspector, self.test, self.run, self.configuration["at"], self.configuration["per_image_pro"])
        self.openings += 1
        values = [found.metrics[name] for name in self.configuration["select_by"]]
        known = [value for value in values if not math.isnan(value)]
        value = sum(known) / len(known) if known else -math.inf
        if value > self._value:
            self._value, self.best, self.epoch = value, found, epoch
