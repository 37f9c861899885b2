"""What is held out, when cross-fitting takes over, and what is refused."""

import pytest

from blemish.errors import CalibrationError, ConfigError
from blemish.inspection.planning import plan
from blemish.inspection.promises import allowed_rejects


@pytest.mark.parametrize(
    ("n", "held_out"), [(150, 50), (200, 66), (297, 99), (300, 99), (495, 99), (600, 120), (5000, 1000), (90000, 1000)]
)
def test_from_150_parts_on_some_are_held_out(n, held_out):
    made = plan(n)
    assert (made.kind, made.held_out, made.folds) == ("holdout", held_out, 0)
    assert made.rate == max(0.01, 1 / (held_out + 1))
    assert str(held_out) in made.reason


@pytest.mark.parametrize("n", [5, 30, 99, 149])
def test_below_150_parts_cross_fitting_over_five_folds(n):
    made = plan(n)
    assert (made.kind, made.held_out) == ("crossfit", 0)
    assert made.folds >= 5
    assert made.rate == max(0.01, 1 / (n + 1))
    assert "estimate" in made.reason


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_parts_give_no_calibration_and_say_why(n):
    made = plan(n)
    assert (made.kind, made.held_out, made.folds, made.rate) == ("none", 0, 0, None)
    assert "5 are needed" in made.reason


def test_a_rate_that_needs_more_gets_more_while_half_remain_to_learn_from():
    made = plan(400, false_reject=0.005)
    assert (made.kind, made.held_out, made.rate) == ("holdout", 199, 0.005)


def test_a_rate_that_a_promise_cannot_have_falls_back_to_an_estimate_with_its_reason():
    made = plan(150, false_reject=0.01)
    assert (made.kind, made.rate) == ("crossfit", 0.01)
    assert "more than half of the 150" in made.reason


def test_a_plan_can_always_be_kept():
    for n in range(10, 1500, 7):
        for wanted in ("auto", "holdout", "crossfit"):
            made = plan(n, wanted)
            assert allowed_rejects(made.rate, made.held_out or n) >= 1
            assert made.held_out <= n // 2


def test_an_explicit_rate_beyond_reach_is_refused_with_the_parts_needed():
    with pytest.raises(CalibrationError, match=r"needs at least 999 good parts .* there are 120\. Add 879 more"):
        plan(120, false_reject=0.001)
    with pytest.raises(CalibrationError, match="at least 198 good parts, 99 to hold out"):
        plan(150, "holdout", 0.01)
    with pytest.raises(CalibrationError, match=r"at least 10 good parts.*there are 7"):
        plan(7, "holdout")
    with pytest.raises(CalibrationError, match=r"calibration needs at least 5 .* there are 3"):
        plan(3, "crossfit")
    with pytest.raises(CalibrationError, match="at least 9"):
        plan(3, false_reject=0.1)


@pytest.mark.parametrize(("n", "wanted", "rate"), [(198, "holdout", 0.01), (10, "holdout", None), (999, "auto", 0.001)])
def test_the_numbers_named_in_refusals_are_enough(n, wanted, rate):
    assert plan(n, wanted, rate).kind in ("holdout", "crossfit")


def test_as_asked():
    assert plan(400, "none").kind == "none"
    assert plan(400, "crossfit").kind == "crossfit"
    assert (plan(40, "holdout").kind, plan(40, "holdout").held_out) == ("holdout", 13)


def test_wrong_values():
    with pytest.raises(ConfigError, match="choose auto, holdout, crossfit or none"):
        plan(100, "split")
    with pytest.raises(ConfigError, match="not none"):
        plan(100, "none", 0.01)
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        plan(100, "auto", 1.0)
