"""Decisions, p-values and thresholds against brute force; groups; saving."""

import json
from fractions import Fraction
from math import ceil, inf

import numpy as np
import pytest

from blemish.errors import CalibrationError, ConfigError, ModelFileError
from blemish.inspection.calibration import Calibration, calibrate, count_rejected, part_scores, uncalibrated


def brute_decision(scores, new, rate: Fraction):
    p = Fraction(1 + sum(s >= new for s in scores), len(scores) + 1)
    return "reject" if p <= rate else "review" if p <= 5 * rate else "ok"


@pytest.mark.parametrize("n", [5, 19, 20, 99, 100, 120, 333])
@pytest.mark.parametrize("rate", [None, Fraction(1, 20), Fraction(1, 100), Fraction(3, 10)])
@pytest.mark.parametrize("ties", [False, True])
def test_decisions_follow_exact_p_values_and_the_thresholds(n, rate, ties):
    rng = np.random.default_rng(n)
    scores = rng.integers(0, 8, n) / 4 if ties else rng.normal(size=n)
    exact = max(Fraction(1, 100), Fraction(1, n + 1)) if rate is None else rate
    if n < 1 / exact - 1:
        with pytest.raises(CalibrationError, match=f"at least {ceil(1 / exact) - 1} good parts"):
            calibrate("holdout", scores, false_reject=float(exact))
        return
    made = calibrate("holdout", scores, false_reject=None if rate is None else float(rate))
    assert made.threshold == sorted(scores)[ceil((n + 1) * (1 - exact)) - 1]
    for new in [*scores[:60], *(np.unique(scores)[:40] + 1e-9), scores.min() - 1, scores.max() + 1, scores.max()]:
        wanted = brute_decision(scores, new, exact)
        assert made.decide(new) == wanted
        assert (new > made.threshold) == (wanted == "reject")
        assert (new > made.review_threshold) == (wanted != "ok")
        assert made.p_value(new) == pytest.approx((1 + np.sum(scores >= new)) / (n + 1))


def test_p_value_counts_ties_as_at_least_as_strange():
    made = calibrate("holdout", [1, 2, 2, 3, 4, 5, 6, 7, 8])
    assert made.p_value(2) == 0.9
    assert made.p_value(8) == 0.2
    assert made.p_value(8.5) == 0.1
    assert made.p_value(-inf) == 1
    assert made.p_value(inf) == 0.1


def test_a_score_that_is_not_a_number_is_rejected():
    assert calibrate("holdout", np.arange(50.0)).decide(float("nan")) == "reject"


def test_few_parts_review_almost_everything_rather_than_pass_it():
    made = calibrate("crossfit", [1, 2, 3, 4, 5])
    assert [made.decide(s) for s in (0, 1, 1.5, 5, 5.5)] == ["ok", "ok", "review", "review", "reject"]
    generous = calibrate("crossfit", [1, 2, 3, 4, 5], false_reject=0.3)
    assert generous.review_threshold == -inf
    assert generous.decide(-100) == "review"


def test_the_unit_is_the_part():
    groups = ["a", "b", "a", "c", "b", "d", "e"]
    scores = [1, 5, 2, 3, 4, 0, 9]
    made = calibrate("holdout", scores, groups, max_map_values=[7, 1, 0, 2, 3, 4, 5])
    assert made.scores.tolist() == [0, 2, 3, 5, 9]
    assert made.max_map_values.tolist() == [2, 3, 4, 5, 7]
    assert (made.n, made.images) == (5, 7)
    assert made.rate == 1 / 6
    assert "The parts had 7 images" in made.sentence()
    assert part_scores(scores, groups).tolist() == [2, 5, 3, 0, 9]


def test_images_without_a_group_are_parts_of_their_own():
    assert part_scores([1, 2, 3, 4], [None, "a", None, "a"]).tolist() == [1, 4, 3]
    assert part_scores([1, 2, 3, 4], [0, "a", None, "a"]).tolist() == [1, 4, 3]
    assert part_scores([1, 2, 3], [2, None, 1]).tolist() == [1, 2, 3]  # the number 1 is not "the image at place 1"
    assert part_scores([3, 1, 2]).tolist() == [3, 1, 2]


def test_observed_rates_count_parts():
    assert count_rejected([True, False, False, True, True], ["a", "a", "b", "c", "c"]) == (2, 3)
    assert count_rejected([True, False, False, True, True]) == (3, 5)
    assert count_rejected([], []) == (0, 0)


def test_good_parts_show_a_region_as_rarely_as_they_are_rejected():
    rng = np.random.default_rng(0)
    scores, max_map_values = rng.normal(size=300), rng.gamma(2.0, size=300)
    made = calibrate("holdout", scores, max_map_values=max_map_values, false_reject=0.02)
    assert made.pixel_threshold == np.sort(max_map_values)[ceil(301 * 0.98) - 1]
    assert np.sum(max_map_values > made.pixel_threshold) == np.sum(scores > made.threshold) == 5
    assert calibrate("holdout", scores).pixel_threshold is None


def test_another_rate_without_fitting_or_scoring():
    made = calibrate("crossfit", np.arange(120.0), np.arange(120), max_map_values=np.arange(120.0) / 2, trusted=False)
    other = made.with_rate(0.05)
    assert made.rate == 0.01
    assert (other.kind, other.n, other.images, other.trusted, other.rate) == ("crossfit", 120, 120, False, 0.05)
    assert (made.threshold, other.threshold, other.pixel_threshold) == (119, 114, 57)
    with pytest.raises(CalibrationError, match="at least 999"):
        made.with_rate(0.001)
    with pytest.raises(ConfigError, match="above 0"):
        made.with_rate(0)
    with pytest.raises(CalibrationError, match="there are 0"):
        uncalibrated().with_rate(0.01)


def test_without_calibration_there_is_no_decision():
    none = uncalibrated()
    assert none.threshold is none.review_threshold is none.pixel_threshold is None
    assert none.expected_false_reject is none.false_reject_bound is None
    assert none.sentence().startswith("No promise")
    for ask in (none.decide, none.p_value):
        with pytest.raises(CalibrationError, match="blemish calibrate MODEL GOOD_IMAGES"):
            ask(1.0)


def test_promise_of_120_parts():
    made = calibrate("holdout", np.random.default_rng(1).normal(size=120))
    assert made.sentence().startswith(
        "On average 1 good part in 121 is rejected; with 95 % confidence no more than 1 in 41. "
        "This promise rests on 120 good parts"
    )
    assert made.expected_false_reject == 1 / 121
    assert made.false_reject_bound == pytest.approx(1 - 0.05 ** (1 / 120))


@pytest.mark.parametrize("max_map_values", [None, np.linspace(3, 4, 120)])
def test_saved_and_restored_it_decides_the_same(max_map_values):
    scores = np.random.default_rng(2).normal(size=120)
    made = calibrate("crossfit", scores, max_map_values=max_map_values, false_reject=1 / 121)
    tensors, meta = made.to_tensors(), json.loads(json.dumps(made.meta()))
    assert set(tensors) == ({"scores"} if max_map_values is None else {"scores", "peaks"})
    back = Calibration.from_tensors(tensors, meta)
    assert back.meta() == made.meta()
    assert np.array_equal(back.scores, made.scores)
    assert (back.threshold, back.review_threshold) == (made.threshold, made.review_threshold)
    assert back.pixel_threshold == made.pixel_threshold
    assert back.sentence() == made.sentence()


def test_no_calibration_is_saved_and_restored_too():
    none = uncalibrated()
    back = Calibration.from_tensors(none.to_tensors(), json.loads(json.dumps(none.meta())))
    assert (back.kind, back.n, back.rate) == ("none", 0, None)


@pytest.mark.parametrize(
    ("tensors", "changed"),
    [
        ({}, {}),
        ({"scores": np.arange(120.0), "peaks": np.arange(3.0)}, {}),
        ({"scores": np.full(120, np.nan)}, {}),
        ({"scores": np.arange(120.0)}, {"kind": "other"}),
        ({"scores": np.arange(120.0)}, {"rate": 0.0001}),
        ({"scores": np.arange(120.0)}, {"rate": None}),
        ({"scores": np.arange(120.0)}, {"rate": 2}),
    ],
)
def test_a_model_file_that_does_not_fit_together(tensors, changed):
    meta = {"kind": "holdout", "rate": 0.01, "images": 120, "trusted": True, **changed}
    with pytest.raises(ModelFileError, match="calibration is not whole"):
        Calibration.from_tensors(tensors, meta)


def test_scores_are_kept_sorted_in_double_precision_and_cannot_be_changed():
    given = np.array([3, 1, 2, 5, 4], dtype=np.float32)
    made = calibrate("holdout", given)
    given[:] = 0
    assert made.scores.dtype == np.float64
    assert made.scores.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="read-only"):
        made.scores[0] = 9
    made.to_tensors()["scores"][0] = 9  # a copy, so writable: torch warns of arrays that are not
    assert made.scores[0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite(bad):
    with pytest.raises(CalibrationError, match="1 of 21 calibration scores are not finite"):
        calibrate("holdout", [*range(20), bad])


def test_inputs_that_do_not_match():
    with pytest.raises(CalibrationError, match="6 scores and 2 groups"):
        calibrate("holdout", range(6), ["a", "b"])
    with pytest.raises(CalibrationError, match="6 scores and 2 map maxima"):
        calibrate("holdout", range(6), max_map_values=[1, 2])
    with pytest.raises(CalibrationError, match="at least 5 good parts"):
        calibrate("holdout", range(6), ["a"] * 6)  # six images, one part
