"""The arithmetic against exact fractions, scipy.stats and a table of known values; the sentences word by word."""

from fractions import Fraction
from math import ceil, floor

import pytest
from scipy import stats

from blemish.errors import CalibrationError, ConfigError
from blemish.inspection import promises

# n, target -> (average, 95 % bound) in percent, or the parts needed where n cannot support the target.
TABLE = {
    20: {0.05: (4.8, 13.9), 0.02: 49, 0.01: 99, 0.001: 999},
    50: {0.05: (3.9, 9.1), 0.02: (2.0, 5.8), 0.01: 99, 0.001: 999},
    100: {0.05: (5.0, 8.9), 0.02: (2.0, 4.7), 0.01: (1.0, 3.0), 0.001: 999},
    300: {0.05: (5.0, 7.2), 0.02: (2.0, 3.5), 0.01: (1.0, 2.1), 0.001: 999},
    1000: {0.05: (5.0, 6.2), 0.02: (2.0, 2.8), 0.01: (1.0, 1.6), 0.001: (0.1, 0.3)},
}


@pytest.mark.parametrize(("n", "rate", "wanted"), [(n, a, w) for n, row in TABLE.items() for a, w in row.items()])
def test_table_of_what_n_parts_support(n, rate, wanted):
    rejects = promises.allowed_rejects(rate, n)
    if isinstance(wanted, int):
        assert rejects == 0
        assert promises.parts_needed(rate) == wanted
    else:
        found = promises.expected_rate(rejects, n), promises.rate_bound(rejects, n)
        assert tuple(round(100 * value, 1) for value in found) == wanted


@pytest.mark.parametrize("target", ["smallest", Fraction(1, 100), Fraction(1, 20), Fraction(1, 1000), Fraction(3, 10)])
def test_float_rates_count_like_exact_fractions(target):
    for n in range(1, 2001):
        exact = Fraction(1, n + 1) if target == "smallest" else target
        k = ceil((n + 1) * (1 - exact))  # the rank of the threshold, by definition
        rejects = promises.allowed_rejects(float(exact), n)
        assert rejects == n + 1 - k == floor(exact * (n + 1))
        assert (rejects >= 1) == (n >= 1 / exact - 1) == (promises.parts_needed(float(exact)) <= n)


def test_a_written_rate_just_below_what_n_supports_is_not_rounded_up():
    assert promises.allowed_rejects(0.00826, 120) == 0  # 1/121 is .0082645
    assert promises.allowed_rejects(0.00827, 120) == 1


def test_default_rate_is_the_larger_of_one_percent_and_what_n_supports():
    assert promises.default_rate(20) == 1 / 21
    assert promises.default_rate(99) == pytest.approx(0.01)
    assert promises.default_rate(5000) == 0.01
    assert all(promises.allowed_rejects(promises.default_rate(n), n) >= 1 for n in range(1, 3000))


@pytest.mark.parametrize(("n", "rejects"), [(5, 1), (20, 1), (120, 1), (300, 3), (1000, 50)])
def test_bound_is_the_quantile_of_the_beta_law(n, rejects):
    k = n + 1 - rejects
    assert promises.rate_bound(rejects, n) == pytest.approx(stats.beta(n + 1 - k, k).ppf(0.95), rel=1e-9)


def test_stated_bounds_hold_with_a_confidence_that_rounds_to_95_percent_or_more():
    for n in (*range(5, 400), 1000, 1500):
        for rejects in {1, 2, 5, n // 20, n // 5} & set(range(1, n)):
            law = stats.beta(rejects, n + 1 - rejects)
            stated = promises.bound_in_words(rejects, n)
            assert law.cdf(1 / stated) >= 0.945
            assert law.cdf(1 / (stated + 1)) < 0.95  # and it is not needlessly loose


def test_promise_in_words():
    assert promises.promise("holdout", 1, 120, images=120) == (
        "On average 1 good part in 121 is rejected; with 95 % confidence no more than 1 in 41. "
        "This promise rests on 120 good parts that the model did not learn from, "
        "and holds while parts, camera and light stay as they were."
    )


def test_estimate_says_so_and_names_its_parts():
    words = promises.promise("crossfit", 1, 45, images=45)
    assert words.startswith("About 1 good part in 46 is rejected; probably no more than 1 in 16.")
    assert "estimate, not a promise" in words
    assert "45 good parts" in words
    assert "confidence" not in words


def test_rates_that_are_no_simple_fraction_are_given_exactly():
    assert "On average 3 good parts in 301 (about 1 in 100) are rejected" in promises.promise("holdout", 3, 300, 300)
    assert "On average 1 good part in 20 is rejected" in promises.promise("holdout", 5, 99, 99)


def test_words_for_several_images_a_part_and_for_an_unlabelled_pile():
    words = promises.promise("holdout", 1, 120, images=360, trusted=False)
    assert "The parts had 360 images: a part is rejected if any of its images is." in words
    assert "120 parts that the model" in words
    assert "Nobody has looked at them" in words


def test_no_calibration_in_words():
    words = promises.promise("none", 0, 0, images=0)
    assert words.startswith("No promise")
    assert "blemish calibrate" in words


def test_refusal_names_the_parts_needed_and_what_n_supports():
    assert promises.describe_refusal(0.001, 120) == (
        "a false-reject rate of 0.001 needs at least 999 good parts that the model did not learn from; "
        "there are 120. Add 879 more, or ask for 0.00827 (1 good part in 121) or above."
    )
    assert "needs at least 9 " in promises.describe_refusal(0.1, 3)
    assert "ask for" not in promises.describe_refusal(0.1, 3)  # 3 parts support no rate that would be accepted


def test_the_rate_offered_in_a_refusal_is_accepted():
    for n in range(promises.FEWEST, 3000):
        offered = float(promises.supported_rate(n))
        assert promises.settle_rate(offered, n) == offered
        assert offered == pytest.approx(1 / (n + 1), rel=0.01)


def test_the_number_of_parts_named_in_a_refusal_is_enough_and_one_less_is_not():
    for rate in (0.3, 0.1, 0.07, 0.05, 0.02, 0.01, 0.003, 0.001, 1 / 121):
        needed = max(promises.parts_needed(rate), promises.FEWEST)
        assert promises.settle_rate(rate, needed) == rate
        with pytest.raises(CalibrationError, match=f"needs at least {needed} good parts"):
            promises.settle_rate(rate, needed - 1)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, float("nan")])
def test_impossible_rates(rate):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        promises.settle_rate(rate, 1000)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 120), (7, 50), (500, 1000), (0, 1)])
def test_interval_of_an_observed_rate_is_clopper_pearson(k, n):
    wanted = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert promises.binomial_interval(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    wanted = stats.binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact")
    assert promises.binomial_bound(k, n) == pytest.approx(wanted.high, abs=1e-9)


def test_none_missed_of_ten_still_allows_26_percent():
    assert promises.binomial_bound(0, 10) == pytest.approx(1 - 0.05**0.1)
    assert promises.describe_observed(0, 10, "bad parts missed") == (
        "0 of 10 bad parts missed; with 95 % confidence at most 26 %"
    )
    assert promises.describe_observed(3, 1000, "good parts rejected").endswith("at most 0.77 %")


def test_nothing_observed_says_nothing():
    assert promises.binomial_interval(0, 0) == (0, 1)
    assert promises.binomial_bound(0, 0) == 1
    assert "says nothing" in promises.describe_observed(0, 0, "bad parts missed")
    with pytest.raises(ConfigError, match="3 of 2"):
        promises.binomial_interval(3, 2)
