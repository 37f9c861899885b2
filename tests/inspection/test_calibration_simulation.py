"""Simulated factories: promises hold on average and as often as stated, and two tempting shortcuts do not.

Scores are uniform (any continuous law gives the same ranks), so a threshold t rejects a share 1 - t of good parts.
"""

import numpy as np
import pytest
from scipy import stats

from blemish.inspection.calibration import FOLDS, calibrate, plan

REPEATS = 2000


def false_rejects(n, rate, seed):
    """The exact false-reject rate of each of many calibrations on ``n`` parts, and what they promise."""
    rng = np.random.default_rng(seed)
    made = [calibrate("holdout", rng.uniform(size=n), false_reject=rate) for _ in range(REPEATS)]
    return np.array([1 - one.threshold for one in made]), made[0]


@pytest.mark.parametrize(("n", "rate"), [(120, 1 / 121), (99, 0.01), (50, 0.02), (300, 0.05), (20, None)])
def test_the_promise_holds_on_average_and_as_often_as_stated(n, rate):
    rates, made = false_rejects(n, rate, seed=n)
    error = rates.std() / np.sqrt(REPEATS)
    assert abs(rates.mean() - made.expected_false_reject) < 4 * error
    assert made.expected_false_reject <= made.rate * (1 + 1e-9)
    broken = np.mean(rates > made.false_reject_bound)
    assert abs(broken - 0.05) < 4 * np.sqrt(0.05 * 0.95 / REPEATS)


def test_p_values_of_good_parts_are_uniform_on_the_ranks():
    rng = np.random.default_rng(5)
    p = np.array([calibrate("holdout", rng.normal(size=9)).p_value(rng.normal()) for _ in range(REPEATS)])
    seen = np.bincount(np.rint(10 * p).astype(int), minlength=11)[1:]
    assert seen.sum() == REPEATS
    assert np.all(np.abs(seen - REPEATS / 10) < 4.5 * np.sqrt(REPEATS * 0.09))


def test_coarse_scores_make_the_promise_safer_not_wrong():
    """Scores with few distinct values: ties count against rejecting."""
    rng = np.random.default_rng(6)
    rates = []
    for _ in range(REPEATS):
        made = calibrate("holdout", rng.integers(0, 40, size=50), false_reject=0.05)
        rates.append(np.mean(np.arange(40) > made.threshold))
    assert np.mean(rates) < made.expected_false_reject


def test_calibrated_by_group_the_promise_holds_for_parts_and_by_image_it_does_not():
    rng = np.random.default_rng(7)
    parts, shots, rate = 60, 8, 0.05

    def images_of(count):
        """What a part is shows in all of its images, and each adds a little of its own."""
        return rng.normal(size=(count, 1)) + 0.3 * rng.normal(size=(count, shots))

    new = images_of(20000)
    groups = np.repeat(np.arange(parts), shots).tolist()
    rows = []
    for _ in range(400):
        scores = images_of(parts).reshape(-1)
        by_part = calibrate("holdout", scores, groups, false_reject=rate)
        by_image = calibrate("holdout", scores, false_reject=rate)
        rejected, wrongly = new > by_part.threshold, new > by_image.threshold
        part, part_by_image = rejected.any(1).mean(), wrongly.any(1).mean()
        broken = part > by_part.false_reject_bound
        image_broken = wrongly.mean() > by_image.false_reject_bound
        rows.append((part, rejected.mean(), part_by_image, broken, image_broken))
    part, image, part_by_image, broken, image_broken = np.mean(rows, axis=0)
    error = np.std([row[0] for row in rows]) / np.sqrt(len(rows))
    assert abs(part - by_part.expected_false_reject) < 4 * error
    assert image < part  # what holds for a part holds for each of its images, with room
    assert broken < 0.10
    assert part_by_image > 1.5 * rate  # the images of a part are several chances to be rejected ...
    assert image_broken > 0.15  # ... and 480 images of 60 parts do not bear a bound for 480


def nearest(memory, queries):
    """Distance from each of ``queries`` to the nearest row of ``memory``: the score of a memory bank in small."""
    squared = (queries**2).sum(1)[:, None] - 2 * queries @ memory.T + (memory**2).sum(1)
    return np.sqrt(np.maximum(squared, 0).min(1))


def test_a_memory_bank_calibrated_on_its_own_training_images_rejects_everything():
    rng = np.random.default_rng(8)
    rate, honest, in_sample = 0.02, [], []
    for _ in range(60):
        good, new = rng.normal(size=(300, 6)), rng.normal(size=(500, 6))
        made = plan(len(good), false_reject=rate)
        held, memory = good[: made.held_out], good[made.held_out :]
        scores = nearest(memory, new)
        promised = calibrate("holdout", nearest(memory, held), false_reject=rate)
        wrong = calibrate("holdout", nearest(memory, memory), false_reject=rate)
        assert wrong.threshold < 1e-6  # each training image is its own nearest neighbour
        honest.append(np.mean([promised.decide(s) == "reject" for s in scores]))
        in_sample.append(np.mean([wrong.decide(s) == "reject" for s in scores]))
    assert np.mean(in_sample) == 1
    assert abs(np.mean(honest) - promised.expected_false_reject) < 4 * np.std(honest) / np.sqrt(len(honest))


def test_cross_fitted_scores_of_a_memory_bank_err_towards_fewer_rejects():
    """The kept model remembers more than those that gave the scores, so good parts are nearer to it."""
    rng = np.random.default_rng(9)
    rate, seen = 0.05, []
    for _ in range(80):
        good, new = rng.normal(size=(60, 4)), rng.normal(size=(400, 4))
        made = plan(len(good), false_reject=rate)
        assert made.kind == "crossfit"
        fold = rng.permutation(len(good)) % FOLDS
        scores = np.empty(len(good))
        for k in range(FOLDS):
            scores[fold == k] = nearest(good[fold != k], good[fold == k])
        estimated = calibrate("crossfit", scores, false_reject=rate)
        seen.append(np.mean(nearest(good, new) > estimated.threshold))
    assert 0.25 * rate < np.mean(seen) < estimated.expected_false_reject


LAWS = {
    "normal": stats.norm(10, 1),
    "gamma": stats.gamma(4),
    "lognormal": stats.lognorm(0.4),
    "heavier lognormal": stats.lognorm(0.6),
    "student": stats.t(5, 10),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [8, 30, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 20, 60, 100))])
def test_estimates_of_few_parts_hold_whatever_the_law_and_with_one_strange_photograph(law, n):
    """On average over factories; by the maximum, one strange photograph would leave almost nothing rejected."""
    clean = LAWS[law].rvs((1000, n), random_state=np.random.default_rng(n))
    strange = clean.copy()
    strange[:, 0] = LAWS[law].mean() + 24 * LAWS[law].std()
    for rate in {max(0.01, 1 / (n + 1)), *([0.05] if n >= 20 else [])}:
        for scores, least in ((clean, 0.5), (strange, 0.28)):
            met = [LAWS[law].sf(calibrate("crossfit", one, false_reject=rate).threshold) for one in scores]
            assert least * rate < np.mean(met) < 1.3 * rate
