"""What a few known-bad images changed: the same method with them and without, each judged on groups it has not seen.

Groups are halved. One model learns from a half's normal and anomalous images, its twin from the normal ones alone, and
both judge the other half; then the halves change places: four trainings on half of the images.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from blemish.data.loading import PreparedImages
from blemish.data.splits import folds_by_group, joined_groups
from blemish.errors import ConfigError
from blemish.metrics import auroc
from blemish.run import Run, Silent
from blemish.training.learner import Learner

FEW = 20  # known-bad images below which one more or less may be chance, and the sentence says so


def check_comparable(learner: Learner, seed: int) -> None:
    """Refuse before any work what has no twin that learns from normal images alone, or too few groups to halve."""
    if learner.cls.without_anomalous(learner.config) is None:
        problem = f"--compare learns with and without known-bad images, and {learner.name} as set learns from none"
        raise ConfigError(f"{problem}: use a weak one of `blemish methods`, or leave --compare out")
    groups = set(learner.anomalous.groups) if learner.anomalous is not None else set()
    if len(groups) < 2:
        raise ConfigError(f"--compare holds out half of the known-bad parts, and there are {len(groups)}: give two")
    if learner.anomalous is not None:
        _halves(learner.normal, learner.anomalous, seed)


def compare(learner: Learner, indices: Sequence[int], run: Run) -> dict[str, float]:
    """Learn from either half with and without known-bad images, judge the other; ``indices``: of normal images.

    ``auroc``: the share of pairs, an anomalous and a normal image of one held-out half, in the right order; ``above``:
    how many anomalous images, of ``images``, stand above every held-out normal one; ``..._without``: of the twin.
    """
    normal, anomalous = learner.normal, learner.anomalous
    if anomalous is None:
        raise ConfigError("--compare needs known-bad images, and there are none")
    halves, anomalous_halves = _halves(normal.subset(indices), anomalous, run.seed)
    halves = [[indices[i] for i in half] for half in halves]
    silent = dataclasses.replace(run, progress=Silent())
    change: dict[str, float] = {"images": len(anomalous)}
    for config, name in ((learner.config, ""), (learner.cls.without_anomalous(learner.config), "_without")):
        part = dataclasses.replace(learner, config=config)
        scope = f"comparison {name.strip('_') or 'with'} known-bad images, half"
        models = part.crossfit(halves, run, "comparing", anomalous_halves, scope)
        aurocs, above = [], 0
        # Scores of two models have no common scale, so each half is counted by itself.
        for (half, inspector), anomalous_half in zip(models, anomalous_halves):
            good, _ = inspector.scores(normal.subset(half), silent)
            bad, _ = inspector.scores(anomalous.subset(anomalous_half), silent)
            aurocs.append(auroc(np.concatenate([good, bad]), np.arange(len(good) + len(bad)) >= len(good)))
            above += int((bad > good.max()).sum())
        change[f"auroc{name}"] = float(np.average(aurocs, weights=[len(half) for half in anomalous_halves]))
        change[f"above{name}"] = above
    return change


def _halves(normal: PreparedImages, anomalous: PreparedImages, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Of either kind the images of both halves; a part's good and bad photographs, and copies, lie in one half."""
    samples = (*normal.samples, *anomalous.samples)
    groups = joined_groups([sample.group for sample in samples], [*normal.keys, *anomalous.keys])
    good, bad = groups[: len(normal)], groups[len(normal) :]
    anomalous_halves = folds_by_group(bad, 2, seed)
    half_of = {bad[index]: half for half, members in enumerate(anomalous_halves) for index in members}
    free = [index for index, group in enumerate(good) if group not in half_of]
    halves = [[index for index, group in enumerate(good) if half_of.get(group) == half] for half in (0, 1)]
    if len({good[index] for index in free}) > 1:
        for half, fold in zip(halves, folds_by_group([good[index] for index in free], 2, seed)):
            half += [free[index] for index in fold]
    elif free:
        min(halves, key=len).extend(free)
    if not all(halves):
        raise ConfigError("--compare halves the parts, and one half would have no good image: give more good parts")
    return [sorted(half) for half in halves], anomalous_halves


def change_in_words(change: Mapping[str, float]) -> str:
    doubt = "; of so few images one more or less may be chance" if change["images"] < FEW else ""
    return (
        f"what the known-bad images changed, each judged by models that had not seen it: {change['above']} of "
        f"{change['images']} stand above every held-out good image, {change['above_without']} without them; AUROC "
        f"{change['auroc']:.3f}, {change['auroc_without']:.3f} without{doubt}"
    )
