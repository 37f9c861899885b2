"""Score metrics against scikit-learn and figures worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score, roc_curve

from blemish.errors import DataError
from blemish.metrics import auroc, caught_at, image_metrics, rank


@st.composite
def scored(draw):
    """Scores with many, few or no equal values, and labels of both classes, in either float type."""
    size = draw(st.integers(2, 60))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = (rng.integers(0, levels, size) - levels // 2) * rng.choice([0.1, 7.0])
    labels = rng.random(size) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    labels[rng.choice(size, 2, replace=False)] = [True, False]
    return scores.astype(draw(st.sampled_from([np.float32, np.float64]))), labels


def brute_f1(scores, labels):
    """(F1, threshold, accuracy) of every threshold, from the highest down; the first best one."""
    thresholds = sorted(set(scores.tolist()), reverse=True)
    rows = [(f1_score(labels, scores >= t), t, accuracy_score(labels, scores >= t)) for t in thresholds]
    return max(rows, key=lambda row: round(row[0], 12))


@settings(deadline=None)
@given(scored(), st.sampled_from([0.05, 0.3, 1 / 3, 0.5, 0.8, 0.95, 1.0]))
def test_metrics_are_those_of_scikit_learn_and_auroc_counts_pairs(data, tpr):
    scores, labels = data
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert rank(scores, labels).average_precision() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)

    fprs, tprs, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert rank(scores, labels).fpr_at_tpr(tpr) == pytest.approx(fprs[np.argmax(tprs >= tpr)], abs=1e-12)
    assert rank(scores, labels).f1_max() == pytest.approx(brute_f1(scores, labels), abs=1e-12)
    assert image_metrics(scores, labels) == {
        "image_auroc": auroc(scores, labels),
        "image_ap": rank(scores, labels).average_precision(),
        "image_f1_max_oracle": rank(scores, labels).f1_max()[0],
        "accuracy_oracle": rank(scores, labels).f1_max()[2],
    }


@pytest.mark.parametrize("positives", [20, 40, 60, 100, 140, 1000])
def test_exactly_95_percent_found_is_enough(positives):
    scores = np.arange(positives + 1.0)
    labels = np.ones(positives + 1, dtype=bool)
    place = positives // 20  # 95 % of the positives lie above the only negative
    labels[place] = False
    assert rank(scores, labels).fpr_at_tpr(0.95) == 0.0
    assert rank(scores, labels).fpr_at_tpr(0.95 + 1e-9) == 1.0


@pytest.mark.parametrize(
    ("tpr", "total"),
    [(0.07, 100), (0.28, 25), (math.nextafter(1 / 3, 1), 3), (math.nextafter(1 / 6, 1), 6), (0.55, 20)],
)
def test_rounding_of_the_rate_moves_no_threshold(tpr, total):
    # One negative just below each positive, so that the rate tells how many positives were asked for.
    scores, labels = np.arange(2.0 * total), np.arange(2 * total) % 2 == 1
    needed = next(count for count in range(1, total + 1) if count / total >= tpr)
    assert rank(scores, labels).fpr_at_tpr(tpr) == (needed - 1) / total


def test_constant_scores_know_nothing():
    scores, labels = np.full(10, 3.0), np.arange(10) < 4
    assert auroc(scores, labels) == 0.5
    assert rank(scores, labels).average_precision() == pytest.approx(0.4)
    assert rank(scores, labels).fpr_at_tpr(0.95) == 1.0
    assert rank(scores, labels).f1_max() == (pytest.approx(8 / 14), 3.0, pytest.approx(0.4))


def test_infinite_scores_are_ranked():
    scores = np.array([-np.inf, -np.inf, 1.0, np.inf, np.inf])
    labels = np.array([True, False, False, True, False])
    assert auroc(scores, labels) == pytest.approx((0.5 + 0 + 0 + 1 + 1 + 0.5) / 6)


@pytest.mark.parametrize("label", [True, False])
def test_one_class_gives_nan_not_a_figure(label):
    scores, labels = np.array([1.0, 2.0, 2.0]), np.full(3, label)
    ranking = rank(scores, labels)
    figures = [auroc(scores, labels), ranking.average_precision(), ranking.fpr_at_tpr(0.95), *ranking.f1_max()]
    assert all(math.isnan(value) for value in (*figures, *image_metrics(scores, labels).values()))


def test_a_ranking_counts_the_negatives_around_each_positive():
    ranking = rank([1.0, 5.0, 2.0, 2.0, 3.0, 2.0], np.array([False, True, True, False, False, False]))
    np.testing.assert_array_equal(ranking.scores, [2.0, 5.0])
    np.testing.assert_array_equal(ranking.order, [1, 0])
    np.testing.assert_array_equal(ranking.above, [1, 0])
    np.testing.assert_array_equal(ranking.at_or_above, [3, 0])
    assert ranking.negatives == 4


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [True], "must match"),
        ([1.0, np.nan], [True, False], "NaN"),
        ([], [], "no scores"),
        ([1.0, 2.0], [0, 1], "must be bool"),
        ([[1.0, 2.0]], [[True, False]], "one number an image"),
        (["a", "b"], [True, False], "real numbers"),
    ],
)
def test_misuse_is_refused(scores, labels, message):
    labels = np.array(labels, dtype=bool) if not labels else np.array(labels)
    for metric in (auroc, rank, image_metrics):
        with pytest.raises(DataError, match=message):
            metric(np.array(scores), labels)


def test_caught_at_by_hand_and_its_interval_by_a_literal_bootstrap():
    scores, labels = np.array([*range(20), 18.5, 18, 19.5, 5, 17]), np.arange(25) >= 20
    assert caught_at(scores, labels, 0.05)[0] == 2 / 5  # one of twenty good may score higher than 18, which counts not
    assert caught_at(scores, labels, 0.01)[0] == 1 / 5  # none
    assert caught_at(scores, labels, 0.15)[0] == 4 / 5  # three
    assert np.isnan([*caught_at([1, 2], np.array([True, True]), 0.05)[1]]).all()
    apart = np.repeat([0, 1], 8)
    for flags, caught in ((apart == 1, 8), (apart == 0, 0)):  # eight of eight and none of eight are few
        assert caught_at(apart, flags, 0.05)[1] == pytest.approx((*binomtest(caught, 8).proportion_ci(),))
    rng = np.random.default_rng(1)
    good, bad = rng.normal(size=60), rng.normal(1.5, size=40)
    shares = []
    for _ in range(4000):
        limit = np.sort(rng.choice(good, 60))[-1 - 3]
        shares.append(np.mean(rng.choice(bad, 40) > limit))
    _, interval = caught_at(np.append(good, bad), np.arange(100) >= 60, 0.05)
    assert interval == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.026)  # one bad part


@pytest.mark.parametrize("tpr", [0.0, -1.0, 1.01, math.nan])
def test_an_impossible_rate_is_refused(tpr):
    with pytest.raises(DataError, match="tpr"):
        rank([1.0, 2.0], np.array([True, False])).fpr_at_tpr(tpr)


def test_a_share_that_floats_round_down_is_still_allowed_whole():
    assert 0.29 * 100 < 29
    good, bad = np.arange(100.0), np.array([70.5, 69.5])  # 29 good ones score higher than 70, which a bad one exceeds
    assert caught_at(np.append(good, bad), np.arange(102) >= 100, 0.29)[0] == 1 / 2
