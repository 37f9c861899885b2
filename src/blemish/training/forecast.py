"""How long a training will take, told before it begins: from the time of its first steps."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from blemish.errors import Cancelled
from blemish.run import Run, RunLog, Silent, Timer
from blemish.run.progress import Title
from blemish.training.learner import Learner

T = TypeVar("T")

FEW_STEPS = 50  # of fewer, nobody needs to be told
SLOW, TIMED = 2, 4  # first steps that are not counted, and those after them that are
LONG = 600.0  # seconds; before longer trainings a person is asked


class _Enough(Exception):
    """Enough steps were seen."""


class _Watch(Silent):
    """Sees how many steps a training has, and when the first ones begin: its bar alone has a title that changes."""

    def __init__(self) -> None:
        self.steps, self.began = 0, list[float]()

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        for item in items:
            if callable(title):
                self.steps = total or 0
                self.began.append(time.monotonic())
                if self.steps < FEW_STEPS or len(self.began) > SLOW + TIMED:
                    raise _Enough
            yield item


def announce(learner: Learner, indices: Sequence[int], models: float, run: Run) -> None:
    """Say how long learning from the images at ``indices`` will take, ``models`` times over, if it is trained.

    Where a person watches (``run.confirm``) and it is long, they are asked; Cancelled where they decline.
    """
    if not learner.is_trained or run.resume or 0 < (getattr(learner.config, "steps", None) or 0) < FEW_STEPS:
        return
    watch = _Watch()
    quiet = dataclasses.replace(run, progress=watch, checkpoint=None, time_limit=None, timer=Timer(), log=RunLog())
    with contextlib.suppress(_Enough):
        learner.learn(indices, quiet.scoped("forecast"))
    if watch.steps < FEW_STEPS:
        return
    seconds = models * watch.steps * (watch.began[-1] - watch.began[SLOW]) / TIMED
    in_words = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else ""
    in_words = in_words or f"{seconds / 3600:.1f} h"
    times = f", {models:.3g} times over, for the model and what checks it" if models > 1 else ""
    about = "at least" if learner.cls.costs_more_later else "about"
    text = f"training takes {about} {in_words} on this machine ({watch.steps} steps{times})"
    run.progress.note(f"note: {text}")
    if seconds > LONG and run.confirm is not None and not run.confirm(f"{text}. Begin?"):
        raise Cancelled("nothing was begun; fewer --epochs or --calibration none make it shorter")
