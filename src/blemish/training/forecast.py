"""How long a training will take, told before it begins: from the time of its first steps."""

import dataclasses
import time
from collections.abc import Sequence

from blemish.data.poses import copies
from blemish.errors import Cancelled
from blemish.run import Run, RunLog, Silent, Timer
from blemish.training.learner import Learner

FEW_STEPS = 50  # of fewer, nobody needs to be told
TRIED = (1, 1, 5)  # steps: the first of all is slow, and what four more take is not the cost of beginning
LONG = 600.0  # seconds; before longer trainings a person is asked


def announce(learner: Learner, indices: Sequence[int], models: float, run: Run) -> None:
    """Say how long learning from the images at ``indices`` will take, ``models`` times over, if it is trained.

    Where a person watches (``run.confirm``) and it is long, they are asked; Cancelled where they decline.
    """
    if not learner.is_trained or run.resume:
        return
    config = learner.config
    windows = len(learner.normal.subset(indices).windows) * copies(learner.poses)
    batches = -(-windows // getattr(config, "batch_size", 16))
    steps = config.steps or config.epochs * batches
    if steps < FEW_STEPS:
        return
    quiet = dataclasses.replace(run, progress=Silent(), checkpoint=None, time_limit=None, timer=Timer(), log=RunLog())
    quiet = quiet.scoped("forecast")
    taken = []
    for number in TRIED:
        began = time.monotonic()
        tried = dataclasses.replace(learner, config=dataclasses.replace(config, steps=number))
        tried.learn(indices[: 4 * getattr(config, "batch_size", 16)], quiet)
        taken.append(time.monotonic() - began)
    seconds = models * steps * (taken[-1] - taken[-2]) / (TRIED[-1] - TRIED[-2])
    in_words = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else ""
    in_words = in_words or f"{seconds / 3600:.1f} h"
    times = f", {models:.3g} times over for the calibration" if models > 1 else ""
    text = f"training takes about {in_words} on this machine ({steps} steps{times})"
    run.progress.note(f"note: {text}")
    if seconds > LONG and run.confirm is not None and not run.confirm(f"{text}. Begin?"):
        raise Cancelled("nothing was begun; fewer --epochs or --calibration none make it shorter")
