"""What a few known-bad images changed: the same method with them and without, each judged on parts it has not seen.

A model rejects the bad images it has learned from; that says nothing of the next ones. So parts are halved, the good
and the known-bad ones. One model learns from a half's good and bad images, its twin from the good ones alone, and both
judge the other half; then the halves change places. Four trainings on half of the images take about as long as two on
all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blemish.contract import Method
from blemish.data.loading import PreparedImages
from blemish.data.splits import folds_by_group
from blemish.errors import ConfigError
from blemish.inspection.inspector import Inspector
from blemish.registry import DEFAULT_METHOD
from blemish.run import Run, Silent
from blemish.training.learner import Learner

FEW = 20
"""Known-bad images below which one more or less may be chance, and the sentence says so."""


@dataclass(frozen=True)
class Change:
    """How known-bad images stand among held-out good ones, judged with and without such images to learn from.

    Attributes:
        images: how many known-bad images were judged.
        auroc: with: the share of pairs, a bad and a good image of one held-out half, in the right order.
        auroc_without: the same without.
        above: with: how many bad images stand above every held-out good one.
        above_without: the same without.
    """

    images: int
    auroc: float
    auroc_without: float
    above: int
    above_without: int

    def sentence(self) -> str:
        """The change in words, with what so few images allow to say."""
        doubt = "; of so few images one more or less may be chance" if self.images < FEW else ""
        return (
            f"what the known-bad images changed, each judged by models that had not seen it: {self.above} of "
            f"{self.images} stand above every held-out good image, {self.above_without} without them (recon); AUROC "
            f"{self.auroc:.3f}, {self.auroc_without:.3f} without{doubt}"
        )


def check_comparable(learner: Learner) -> None:
    """Refuse before any work what cannot be compared.

    Raises:
        ConfigError: the method has no twin that learns from good images alone, or there are fewer than two parts.
    """
    if learner.cls.without_anomalous(learner.config) is None:
        weak = DEFAULT_METHOD["weak"]
        raise ConfigError(f"--compare shows what known-bad images change in {weak}; {learner.name} as set has no twin")
    bad = _groups(learner.images.anomalous)
    if len(set(bad)) < 2:
        raise ConfigError(f"--compare holds out half of the known-bad parts, and there are {len(set(bad))}: give two")


def compare(
    learner: Learner, indices: Sequence[int], inspector: Callable[[Method], Inspector], run: Run
) -> Change:
    """Learn with and without the known-bad images from either half, and judge the other.

    Args:
        learner: of a set with known-bad images, which ``check_comparable`` has passed.
        indices: of the good images that take part.
        inspector: from a method to what scores images with it.
        run: seed, progress, checkpoints.
    """
    bad_images = learner.images.anomalous
    if bad_images is None:
        raise ConfigError("--compare needs known-bad images, and there are none")
    groups = [learner.images.groups[i] for i in indices]
    bad_halves = folds_by_group(_groups(bad_images), 2, run.seed)
    halves = zip(folds_by_group(groups, 2, run.seed), bad_halves)
    silent = dataclasses.replace(run, progress=Silent())
    ours: list[tuple[float, int]] = []
    twins: list[tuple[float, int]] = []
    for number, (good_half, bad_half) in enumerate(halves, start=1):
        held = [indices[i] for i in good_half]
        kept = sorted(set(indices) - set(held))
        kept_bad = bad_images.subset([i for i in range(len(bad_images)) if i not in bad_half])
        images = dataclasses.replace(learner.images, anomalous=kept_bad)
        twin = learner.cls.without_anomalous(learner.config)
        for found, config, which in ((ours, learner.config, "with"), (twins, twin, "without")):
            part = dataclasses.replace(learner, images=images, config=config)
            judge = inspector(part.learn(kept, run.scoped(f"comparison, half {number}, {which} known-bad images")))
            good, _ = judge.scores(learner.images.normal.subset(held), silent)
            bad, _ = judge.scores(bad_images.subset(bad_half), silent)
            found.append(_standing(good, bad))
    weights = [len(half) for half in bad_halves]
    auroc, above = _joined(ours, weights)
    auroc_without, above_without = _joined(twins, weights)
    return Change(len(bad_images), auroc, auroc_without, above, above_without)


def _groups(images: PreparedImages | None) -> list[str]:
    return [sample.group for sample in images.samples] if images is not None else []


def _standing(good: NDArray[np.float64], bad: NDArray[np.float64]) -> tuple[float, int]:
    """Share of pairs in order, ties half, and how many bad ones stand above every good one."""
    order = np.sign(bad[:, None] - good[None])
    return float((order.mean() + 1) / 2), int((bad > good.max()).sum())


def _joined(halves: Sequence[tuple[float, int]], weights: Sequence[int]) -> tuple[float, int]:
    # Scores of two models have no common scale, so each half is counted by itself.
    return float(np.average([auroc for auroc, _ in halves], weights=weights)), sum(above for _, above in halves)
