"""Decisions and promises against brute force, exact fractions, scipy.stats and known values; plans; saving."""

import json
import re
from fractions import Fraction
from math import ceil, floor, inf

import numpy as np
import pytest
from scipy import special, stats

from blemish.errors import CalibrationError, ConfigError, ModelFileError
from blemish.inspection import calibration
from blemish.inspection.calibration import Calibration, calibrate, group_scores, plan
from blemish.inspection.thresholds import beta_share, gamma_share, suspects


def brute_decision(scores, new, rate: Fraction):
    p = Fraction(1 + sum(s >= new for s in scores), len(scores) + 1)
    review = min(2 * rate, Fraction(1, 10), (1 - rate) / 2)
    return "reject" if p <= rate else "review" if p <= rate + review else "ok"


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
        limit = made.threshold if made.review_threshold is None else made.review_threshold
        assert (new > limit) == (wanted != "ok")
        assert made.p_value(new) == pytest.approx((1 + np.sum(scores >= new)) / (n + 1))


def test_scores_beyond_all_others_and_few_parts():
    made = calibrate("holdout", np.arange(9.0))
    assert (made.p_value(-inf), made.p_value(inf), made.decide(float("nan"))) == (1, 0.1, "reject")
    # As files from before say it: no review share, so five times the rate, the maximum alone, and no tail.
    old = Calibration.from_tensors({"scores": [1, 2, 3, 4, 5]}, {"kind": "crossfit", "rate": 1 / 6} | OF_OLD)
    assert [old.decide(s) for s in (0, 1, 1.5, 5, 5.5)] == ["ok", "ok", "review", "review", "reject"]
    old = Calibration.from_tensors({"scores": [1, 2, 3, 4, 5]}, {"kind": "crossfit", "rate": 0.3} | OF_OLD)
    assert (old.threshold, old.review_threshold, old.decide(-100)) == (5, None, "review")


OF_OLD = {"images": 5, "trusted": True}


# Worked by hand. Eight parts: the highest 3 of 8 exceed 5, the highest of them is censored, so that T = 1 + 3 + 3 = 7,
# and P(> 5 + x) = 4/9 (1 + x/7)^-2; 12 is exceeded by 1/9, and what stays below 5 is counted.
@pytest.mark.parametrize(
    ("scores", "rate", "threshold", "p_values"),
    [
        ([1, 2, 3, 4, 5, 6, 8, 9], 1 / 9, 12, {12: 1 / 9, 5: 5 / 9, 2.5: 7 / 9, 5 + 1e-9: 4 / 9, inf: 0}),
        ([1, 2, 3, 4, 5, 6, 8, 1e6], 1 / 9, 12, {1e6: 4 / 9 / (1 + 999995 / 7) ** 2}),
        ([1, 2, 3, 4, 5, 6, 8, 9], 1 / 16, 5 + 7 * (8 / 3 - 1), {}),  # half of 1 in 8 and beyond: extrapolated
        ([1, 2, 3, 4, 5, 6, 8, 9], 5 / 9, 4, {}),  # above 4/9 by counting
        ([*range(1, 9), 9, 10, 12, 50], 0.05, 9 + (1 + 3 + 3) * ((4 / 13 / 0.05) ** (1 / 2) - 1), {}),
    ],
)
def test_the_threshold_of_few_parts_comes_from_a_fitted_tail(scores, rate, threshold, p_values):
    made = calibrate("crossfit", scores, false_reject=rate, max_map_values=[10 * s for s in scores])
    assert made.threshold == pytest.approx(threshold)
    assert made.pixel_threshold == pytest.approx(10 * threshold)
    for score, p in p_values.items():
        assert made.p_value(score) == pytest.approx(p)
    p = [made.p_value(s) for s in np.linspace(0, 30, 999)]
    assert np.all(np.diff(p) <= 0)
    for s in np.linspace(0, 30, 999):
        wanted = "reject" if made.p_value(s) <= rate else "review" if made.p_value(s) <= rate + made.review else "ok"
        assert made.decide(s) == wanted
    assert made.decide(float("nan")) == "reject"


def test_the_bound_of_an_estimate_is_broken_in_five_of_a_hundred_exponential_factories():
    made = [calibrate("crossfit", scores) for scores in np.random.default_rng(1).exponential(size=(2000, 30))]
    bound = made[0].false_reject_bound
    assert np.mean([np.exp(-one.threshold) > bound for one in made]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("top", "apart"), [([12], 0), ([60], 1), ([60, 61], 2), ([60, 61, 62], 3), ([60, 61, 62, 63], 0), ([10, 400], 1)]
)
def test_parts_that_stand_out_are_counted(top, apart):
    assert suspects(np.array([*np.log(np.arange(2, 28)) * 3, *top], dtype=float)) == apart


def test_the_unit_is_the_part():
    groups, scores = ["a", "b", "a", "c", "b", "d", "e"], [1, 5, 2, 3, 4, 0, 9]
    made = calibrate("holdout", scores, groups, max_map_values=[7, 1, 0, 2, 3, 4, 5])
    assert made.scores.tolist() == [0, 2, 3, 5, 9]
    assert made.max_map_values.tolist() == [2, 3, 4, 5, 7]
    assert (made.n, made.images, made.rate) == (5, 7, 1 / 6)
    assert "The parts had 7 images" in made.sentence()
    assert group_scores(scores, groups).tolist() == [2, 5, 3, 0, 9]
    assert group_scores([3, 1, 2]).tolist() == [3, 1, 2]


def test_good_parts_show_a_region_as_rarely_as_they_are_rejected():
    rng = np.random.default_rng(0)
    scores, max_map_values = rng.normal(size=300), rng.gamma(2.0, size=300)
    made = calibrate("holdout", scores, max_map_values=max_map_values, false_reject=0.02)
    assert made.pixel_threshold == np.sort(max_map_values)[ceil(301 * 0.98) - 1]
    assert np.sum(max_map_values > made.pixel_threshold) == np.sum(scores > made.threshold) == 5
    assert calibrate("holdout", scores).pixel_threshold is None


def test_without_calibration_there_is_no_decision():
    none = Calibration()
    limits = none.threshold, none.review_threshold, none.pixel_threshold
    assert {*limits, none.expected_false_reject, none.false_reject_bound} == {None}
    for ask in (none.decide, none.p_value):
        with pytest.raises(CalibrationError, match="blemish calibrate MODEL GOOD_IMAGES"):
            ask(1.0)
    back = Calibration.from_tensors(none.to_tensors(), json.loads(json.dumps(none.meta())))
    assert (back.kind, back.n, back.rate) == ("none", 0, None)


def test_saved_and_restored_it_decides_the_same():
    scores = np.random.default_rng(2).normal(size=120)
    for max_map_values in (None, np.linspace(3, 4, 120)):
        made = calibrate("crossfit", scores, max_map_values=max_map_values, false_reject=1 / 121)
        tensors, meta = made.to_tensors(), json.loads(json.dumps(made.meta()))
        assert (meta["review"], made.tail is None) == (2 / 121, False)
        assert set(tensors) == ({"scores"} if max_map_values is None else {"scores", "peaks"})
        back = Calibration.from_tensors(tensors, meta)
        assert np.array_equal(back.scores, made.scores) and back.meta() == made.meta()
        for name in ("threshold", "review_threshold", "pixel_threshold"):
            assert getattr(back, name) == getattr(made, name)
        assert back.sentence() == made.sentence()


@pytest.mark.parametrize(
    ("tensors", "changed"),
    [
        ({}, {}),
        ({"scores": np.arange(120.0), "peaks": np.arange(3.0)}, {}),
        ({"scores": np.full(120, np.nan)}, {}),
        *(({"scores": np.arange(120.0)}, {"rate": rate}) for rate in (1e-4, None, 2)),
        ({"scores": np.arange(120.0)}, {"kind": "other"}),
        *(({"scores": np.arange(120.0)}, {"review": review}) for review in (-0.1, 0.99, np.nan, "much")),
    ],
)
def test_a_model_file_that_does_not_fit_together(tensors, changed):
    meta = {"kind": "holdout", "rate": 0.01, "images": 120, "trusted": True, **changed}
    with pytest.raises(ModelFileError, match="calibration is not whole"):
        Calibration.from_tensors(tensors, meta)


def test_scores_are_kept_sorted_in_double_precision_and_cannot_be_changed():
    unsorted = np.array([3, 1, 2, 5, 4], dtype=np.float32)
    made = calibrate("holdout", unsorted)
    unsorted[:] = 0
    assert (made.scores.dtype, made.scores.tolist()) == (np.float64, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="read-only"):
        made.scores[0] = 9
    made.to_tensors()["scores"][0] = 9  # a copy, so writable: torch warns of arrays that are not
    assert made.scores[0] == 1


@pytest.mark.parametrize(
    ("scores", "more", "message"),
    [
        ([*range(20), np.nan], {}, "1 of 21 calibration scores are not finite"),
        ([*range(20), np.inf], {}, "1 of 21 calibration scores are not finite"),
        # The NaN stands beside a finite score of its part.
        ([np.nan, *range(10)], {"groups": [i // 2 for i in range(11)]}, "1 of 6 calibration scores are not finite"),
        (range(6), {"groups": ["a", "b"]}, "6 scores and 2 groups"),
        (range(6), {"max_map_values": [1, 2]}, "6 scores and 2 map maxima"),
        (range(6), {"groups": ["a"] * 6}, "at least 5 good parts"),
        ([7] * 6, {}, "all 6 good parts score the same, 7, "),
        ([7 + 1e-7 * i for i in range(6)], {}, "all 6 good parts score the same"),
    ],
)
def test_scores_that_no_threshold_can_rest_on(scores, more, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate("holdout", scores, **more)


@pytest.mark.parametrize("kind", ["holdout", "crossfit"])
@pytest.mark.parametrize(
    ("rate", "review", "share"),
    [(None, None, 2 / 41), (0.05, None, 0.1), (0.2, None, 0.1), (0.9, None, 0.05), (0.05, 0.3, 0.3), (0.1, 0, 0)],
)
def test_review_has_a_share_of_its_own(kind, rate, review, share):
    scores = np.random.default_rng(3).gamma(4, size=40)
    made = calibrate(kind, scores, false_reject=rate, review=review)
    assert made.review == pytest.approx(share)
    assert made.decide(scores.min() - 1) == "ok"  # some band is always simply ok
    assert (made.review_threshold is None) == (review == 0)
    assert made.expected_false_review == pytest.approx(share, abs=1.01 / 41)
    json.dumps([made.meta(), made.threshold, made.review_threshold, made.false_reject_bound], allow_nan=False)


@pytest.mark.parametrize(("rate", "review"), [(0.05, 0.95), (0.05, -0.1), (0.05, np.nan), (None, 1), (0.5, np.inf)])
def test_a_review_share_that_leaves_nothing_ok_is_refused(rate, review):
    for call in (lambda: calibrate("holdout", range(40), false_reject=rate, review=review), lambda: plan(40, review=1)):
        with pytest.raises(ConfigError, match=r"a review share of .* both together must stay below 1"):
            call()


# n, target -> (average, 95 % bound) in percent, or the parts needed where n cannot support the target.
TABLE = {
    20: {0.05: (4.8, 13.9), 0.02: 49, 0.01: 99, 0.001: 999},
    50: {0.05: (3.9, 9.1), 0.02: (2.0, 5.8), 0.01: 99, 0.001: 999},
    100: {0.05: (5.0, 8.9), 0.02: (2.0, 4.7), 0.01: (1.0, 3.0), 0.001: 999},
    300: {0.05: (5.0, 7.2), 0.02: (2.0, 3.5), 0.01: (1.0, 2.1), 0.001: 999},
    1000: {0.05: (5.0, 6.2), 0.02: (2.0, 2.8), 0.01: (1.0, 1.6), 0.001: (0.1, 0.3)},
}


def test_table_of_what_n_parts_support():
    for n, row in TABLE.items():
        for rate, wanted in row.items():
            rejects = calibration.allowed_rejects(rate, n)
            if isinstance(wanted, int):
                assert (rejects, calibration.groups_needed(rate)) == (0, wanted)
            else:
                shares = rejects / (n + 1), calibration.rate_bound(rejects, n)
                assert shares[1] == pytest.approx(stats.beta(rejects, n + 1 - rejects).ppf(0.95), rel=1e-9)
                assert tuple(round(100 * value, 1) for value in shares) == wanted


@pytest.mark.parametrize("target", ["smallest", Fraction(1, 100), Fraction(1, 20), Fraction(1, 1000), Fraction(3, 10)])
def test_float_rates_count_like_exact_fractions(target):
    for n in range(1, 2001):
        exact = Fraction(1, n + 1) if target == "smallest" else target
        k = ceil((n + 1) * (1 - exact))  # the rank of the threshold, by definition
        rejects = calibration.allowed_rejects(float(exact), n)
        assert rejects == n + 1 - k == floor(exact * (n + 1))
        assert (rejects >= 1) == (n >= 1 / exact - 1) == (calibration.groups_needed(float(exact)) <= n)


def test_a_written_rate_just_below_what_n_supports_is_not_rounded_up():
    assert [calibration.allowed_rejects(rate, 120) for rate in (0.00826, 0.00827)] == [0, 1]  # 1/121 is .0082645


def test_default_rate_is_the_larger_of_one_percent_and_what_n_supports():
    assert [calibration.choose_rate(None, n) for n in (20, 99, 5000)] == [1 / 21, 0.01, 0.01]
    assert all(calibration.allowed_rejects(calibration.choose_rate(None, n), n) >= 1 for n in range(5, 3000))


def sentence(kind, rejects, n, images=None, trusted=True, review=None, of_bad=""):
    rate = rejects / (n + 1) if n else None
    made = Calibration(kind, np.arange(float(n)), rate, images=images or n, trusted=trusted, review=review)
    return made.sentence(of_bad)


@pytest.mark.slow
def test_stated_bounds_hold_with_a_confidence_of_95_percent():
    for n in (*range(5, 400), 1000, 1500):
        for rejects in {1, 2, 5, n // 20, n // 5} & set(range(1, n)):
            law = stats.beta(rejects, n + 1 - rejects)
            words = sentence("holdout", rejects, n)
            (number, of) = re.search(r"no more than (\d+) in (\d+)", words).groups()
            assert law.cdf(int(number) / int(of)) >= 0.95
            tighter = 1 / (int(of) + 1) if number == "1" else (int(number) - 1) / 100
            assert law.cdf(tighter) < 0.95  # and it is not needlessly loose


def test_promises_and_estimates_in_words():
    assert sentence("holdout", 1, 120) == (
        "On average 1 good part in 121 is rejected; with 95 % confidence no more than 1 in 40. "
        "This promise rests on 120 good parts that the model did not learn from, "
        "and holds while parts, camera and light stay as they were."
    )
    assert sentence("crossfit", 1, 45) == (
        "About 1 good part in 46 is rejected; probably no more than 1 in 15. "
        "This is an estimate, not a promise: it rests on 45 good parts, each scored by a model "
        "that had learned from the others alone."
    )
    assert sentence("crossfit", 0.5, 45, review=0.02, of_bad="of painted defects it rejects 78 in 100") == (
        "About 1 good part in 92 is rejected; probably no more than 1 in 26; of painted defects it rejects 78 in 100. "
        "In addition, about 1 good part in 50 is sent to review. "
        "This is an estimate, not a promise: it rests on 45 good parts, each scored by a model "
        "that had learned from the others alone. "
        "The threshold is extrapolated from their highest scores, so that one odd part alone cannot set it. "
        "So low a rate is itself extrapolated: 45 parts alone support 1 in 46 at best."
    )
    assert "On average 1 good part in 100 is rejected" in sentence("holdout", 3, 300)
    assert "On average 30 good parts in 100 are rejected; with 95 % confidence no more" in sentence("holdout", 30, 99)
    assert "On average 1 good part in 20 is rejected" in sentence("holdout", 5, 99)
    pile = sentence("holdout", 1, 120, images=360, trusted=False)
    assert "The parts had 360 images: a part is rejected if any of its images is." in pile
    assert "120 parts that the model" in pile and "Nobody has looked at them" in pile
    assert sentence("none", 0, 0).startswith("No promise") and "blemish calibrate" in sentence("none", 0, 0)


def test_a_refusal_names_the_parts_needed_and_what_n_supports():
    with pytest.raises(CalibrationError) as refused:
        calibration.choose_rate(0.001, 120)
    assert str(refused.value) == (
        "a false-reject rate of 0.001 needs at least 999 good parts that the model did not learn from; "
        "there are 120. Add 879 more, or ask for 0.00827 (1 good part in 121) or above."
    )
    assert calibration.choose_rate(0.005, 120, "crossfit") == 0.005  # a tail reaches twice as far
    with pytest.raises(CalibrationError, match=r"at least 124 .* ask for 0\.00414 \(1 good part in 242\) or above"):
        calibration.choose_rate(0.004, 120, "crossfit")
    with pytest.raises(CalibrationError, match=r"needs at least 9 (?!.*ask for)"):  # 3 parts support no rate
        calibration.choose_rate(0.1, 3)


def test_the_rate_offered_in_a_refusal_is_accepted():
    for n in range(calibration.FEWEST, 3000):
        with pytest.raises(CalibrationError) as refused:
            calibration.choose_rate(1e-5, n)
        offered = float(re.search(r"ask for (\S+) ", str(refused.value)).group(1))
        assert calibration.choose_rate(offered, n) == offered == pytest.approx(1 / (n + 1), rel=0.01)


@pytest.mark.parametrize("rate", [0.3, 0.1, 0.07, 0.05, 0.02, 0.01, 0.003, 0.001, 1 / 121])
def test_the_number_of_parts_named_in_a_refusal_is_enough_and_one_less_is_not(rate):
    needed = max(calibration.groups_needed(rate), calibration.FEWEST)
    assert calibration.choose_rate(rate, needed) == rate
    with pytest.raises(CalibrationError, match=f"needs at least {needed} good parts"):
        calibration.choose_rate(rate, needed - 1)


@pytest.mark.parametrize("rate", [0, 1, 1 - 1e-12, -0.1, 5, float("nan")])
def test_impossible_rates(rate):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        calibration.choose_rate(rate, 1000)


@pytest.mark.parametrize(
    ("n", "wanted", "rate", "kind", "held_out", "reason"),
    [
        (150, "auto", None, "holdout", 50, "50 of 150 good parts"),
        (297, "auto", None, "holdout", 99, "for a promise"),
        (600, "auto", None, "holdout", 120, "for a promise"),
        (90000, "auto", None, "holdout", 1000, "for a promise"),
        (
            149,
            "auto",
            None,
            "crossfit",
            0,
            "there are 149 good parts, and from 150 on some are held out, for a promise",
        ),
        (5, "auto", None, "crossfit", 0, "estimate"),
        (4, "auto", None, "none", 0, "5 are needed"),
        (400, "none", None, "none", 0, "as asked"),
        (400, "crossfit", None, "crossfit", 0, "as asked"),
        (40, "holdout", None, "holdout", 13, "promise"),
        (400, "auto", 0.005, "holdout", 199, "promise"),  # a rate that needs more gets more while half remain
        (150, "auto", 0.01, "crossfit", 0, "more than half of the 150"),
        (198, "holdout", 0.01, "holdout", 99, "promise"),  # what a refusal below names is enough
        (10, "holdout", None, "holdout", 5, "promise"),
        (999, "auto", 0.001, "crossfit", 0, "estimate"),
        (
            60,
            "auto",
            0.01,
            "crossfit",
            0,
            "from 150 on some are held out, for a promise",
        ),  # 1 in 61 by themselves, half of that by their tail
    ],
)
def test_plans(n, wanted, rate, kind, held_out, reason):
    made = plan(n, wanted, rate)
    assert (made.kind, made.held_out) == (kind, held_out)
    assert reason in made.reason


def test_a_plan_can_always_be_kept():
    for n in range(10, 1500, 7):
        for wanted in ("auto", "holdout", "crossfit"):
            made = plan(n, wanted)
            assert made.held_out <= n // 2
            calibration.choose_rate(None, made.held_out or n)


@pytest.mark.parametrize(
    ("n", "wanted", "rate", "error", "message"),
    [
        (120, "auto", 0.001, CalibrationError, r"needs at least 499 good parts .* there are 120\. Add 379 more"),
        (150, "holdout", 0.01, CalibrationError, "at least 198 good parts, 99 to hold out"),
        (7, "holdout", None, CalibrationError, r"at least 10 good parts.*there are 7"),
        (3, "crossfit", None, CalibrationError, r"calibration needs at least 5 .* there are 3"),
        (3, "auto", 0.1, CalibrationError, "at least 5"),
        (100, "split", None, ConfigError, "choose auto, holdout, crossfit or none"),
        (100, "none", 0.01, ConfigError, "not none"),
        (100, "auto", 1.0, ConfigError, "above 0 and below 1"),
    ],
)
def test_plans_that_cannot_be_kept_are_refused_with_what_is_needed(n, wanted, rate, error, message):
    with pytest.raises(error, match=message):
        plan(n, wanted, rate)
    with pytest.raises(CalibrationError, match="a review share needs a calibration, and for that 5 good parts"):
        plan(4, review=0.05)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 99), (3, 7), (13, 288), (50, 951), (1000, 99_001)])
def test_shares_of_beta_and_gamma_laws_are_scipy_s(a, b):
    limits = np.array([1e-9, 1e-4, 0.003, 0.05, 0.3, 0.9, 1 - 1e-9, 1])
    np.testing.assert_allclose(beta_share(a, b, limits), special.betainc(a, b, limits), atol=1e-11)
    totals = np.array([1e-6, 0.1, 1, 3, 12, 100])
    np.testing.assert_allclose(gamma_share(a, totals), special.gammainc(a, totals), atol=1e-11)
