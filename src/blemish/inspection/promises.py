"""How many good parts will be rejected: the arithmetic of split conformal prediction, and the sentences it allows.

Take ``n`` good parts that the model did not learn from, sort their scores, and put the threshold at the ``k``-th
smallest. A further good part is as likely to fall into any of the ``n + 1`` gaps between them, so it lands above
the threshold with probability ``(n + 1 - k) / (n + 1)``: whatever the method, whatever the law of the scores. That
holds on average over calibrations. The rate of one calibration, which is the one a user has, is random: it follows
the law ``Beta(n + 1 - k, k)``, and its 95 % quantile is the bound that the sentence names. Tied scores only lower
both. Nothing holds once parts, camera or light change.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; for the Beta law Vovk, Conditional validity
of inductive conformal predictors, ACML 2012.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy.special import betainc, betaincinv

from blemish.errors import CalibrationError, ConfigError

Kind = Literal["holdout", "crossfit", "none"]
"""A promise; an estimate; nothing."""

CONFIDENCE = 0.95
DEFAULT_RATE = 0.01
FEWEST = 5  # with fewer parts, five times the smallest rate is everything, and there are no five folds
_ROUNDING = 1e-9  # relative: 1/121 as a float, times 121, must count as 1


def check_rate(rate: float) -> None:
    """Refuse a false-reject rate that is not strictly between 0 and 1.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < rate < 1:
        raise ConfigError(
            f"a false-reject rate of {rate:g} was asked for: it is the share of good parts that may be rejected, "
            "above 0 and below 1. For 1 good part in 100 give 0.01."
        )


def allowed_rejects(rate: float, n: int) -> int:
    """How many of the ``n + 1`` gaps between ``n`` good scores may lie above the threshold: 0 if ``n`` is too small.

    The largest whole number not above ``rate * (n + 1)``, where a product that misses a whole number only by
    floating-point rounding counts as that number.
    """
    return math.floor(rate * (n + 1) * (1 + _ROUNDING))


def parts_needed(rate: float) -> int:
    """The smallest number of good parts that can support a false-reject rate: ``1 / rate - 1``, rounded up."""
    return math.ceil(1 / (rate * (1 + _ROUNDING))) - 1


def default_rate(n: int) -> float:
    """The rate used when none is asked for: 1 %, or the smallest that ``n`` good parts support if that is larger."""
    return max(DEFAULT_RATE, 1 / (n + 1))


def settle_rate(wanted: float | None, n: int) -> float:
    """The rate asked for, or the default one, after making sure that ``n`` good parts support it.

    Raises:
        CalibrationError: they do not; the message says how many are needed.
        ConfigError: the rate is not between 0 and 1.
    """
    if wanted is not None:
        check_rate(wanted)
    if n < FEWEST or (wanted is not None and not allowed_rejects(wanted, n)):
        raise CalibrationError(describe_refusal(wanted, n))
    return default_rate(n) if wanted is None else wanted


def expected_rate(rejects: int, n: int) -> float:
    """The share of good parts rejected, averaged over calibrations, with ``rejects`` gaps above the threshold."""
    return rejects / (n + 1)


def rate_bound(rejects: int, n: int, confidence: float = CONFIDENCE) -> float:
    """What the false-reject rate of one calibration stays below, with ``confidence``: a quantile of its Beta law."""
    return float(betaincinv(rejects, n + 1 - rejects, confidence))


def binomial_interval(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Clopper-Pearson interval of a rate that was seen ``k`` times in ``n`` parts: two-sided, exact, wide.

    ``n`` counts parts, not images: images of one part are one observation. Without any part it is (0, 1).

    Raises:
        ConfigError: not 0 <= k <= n.
    """
    _check_counts(k, n)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def binomial_bound(k: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The largest rate that ``k`` in ``n`` still allows, with ``confidence``: one-sided, so below the interval's end.

    0 missed of 10 still allows 26 %.

    Raises:
        ConfigError: not 0 <= k <= n.
    """
    _check_counts(k, n)
    return 1.0 if k == n else float(betaincinv(k + 1, n - k, confidence))


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ConfigError(f"{k} of {n} was given: an observed rate needs a count between 0 and the number of parts")


def promise(kind: Kind, rejects: int, n: int, images: int, trusted: bool = True) -> str:
    """What a calibration says of good parts, in plain words, with its bound and the number of parts it rests on.

    Args:
        kind: how the scores were come by.
        rejects: gaps above the threshold, as from ``allowed_rejects``.
        n: calibration parts.
        images: their images.
        trusted: False if nobody has looked at the parts.
    """
    if kind == "none":
        return (
            "No promise: this model was not calibrated, so it gives scores and no decisions. "
            "`blemish calibrate MODEL GOOD_IMAGES -o MODEL` adds them."
        )
    parts = "good parts" if trusted else "parts"
    bound = f"1 in {bound_in_words(rejects, n)}"
    if kind == "holdout":
        words = (
            f"On average {_average(rejects, n)} rejected; with 95 % confidence no more than {bound}. "
            f"This promise rests on {n} {parts} that the model did not learn from, "
            "and holds while parts, camera and light stay as they were."
        )
    else:
        words = (
            f"About {_average(rejects, n)} rejected; probably no more than {bound}. "
            f"This is an estimate, not a promise: it rests on {n} {parts}, each scored by a model "
            "that had not learned from it, but from fewer parts than this one."
        )
    if images > n:
        words += f" The parts had {images} images: a part is rejected if any of its images is."
    if not trusted:
        words += " Nobody has looked at them: bad ones raise the threshold, so that fewer good and more bad parts pass."
    return words


def _average(rejects: int, n: int) -> str:
    """``1 good part in 121 is``, or ``3 good parts in 301 (about 1 in 100) are``: exact either way."""
    if (n + 1) % rejects == 0:
        return f"1 good part in {(n + 1) // rejects} is"
    return f"{rejects} good parts in {n + 1} (about 1 in {(n + 1) / rejects:.0f}) are"


def bound_in_words(rejects: int, n: int) -> int:
    """The whole number N for "no more than 1 in N".

    The nearest to ``1 / rate_bound`` where the confidence of that statement still rounds to 95 % (at 1 in 41, with
    120 parts, it is 94.8 %); where rounding up would cost more, rounded down, to the safe side.
    """
    exact = 1 / rate_bound(rejects, n)
    nearest = round(exact)
    if nearest > exact and betainc(rejects, n + 1 - rejects, 1 / nearest) < CONFIDENCE - 0.005:
        return math.floor(exact)
    return nearest


def describe_refusal(rate: float | None, n: int) -> str:
    """Why ``n`` good parts cannot support ``rate`` (None: any rate), how many can, and what ``n`` supports."""
    needed = FEWEST if rate is None else max(FEWEST, parts_needed(rate))
    asked = "calibration" if rate is None else f"a false-reject rate of {rate:g}"
    other = "fit without calibration"
    if n >= FEWEST:
        other = f"ask for {supported_rate(n)} (1 good part in {n + 1}) or above"
    return (
        f"{asked} needs at least {needed} good parts that the model did not learn from; "
        f"there are {n}. Add {needed - n} more, or {other}."
    )


def supported_rate(n: int) -> str:
    """The smallest rate that ``n`` good parts support, in three digits, rounded up so that it can be asked for."""
    rate = 1 / (n + 1)
    digits = 2 - math.floor(math.log10(rate))
    return f"{math.ceil(round(rate * 10**digits, 6)) / 10**digits:g}"


def describe_observed(k: int, n: int, what: str) -> str:
    """An observed rate in words, such as "0 of 10 bad parts missed; with 95 % confidence at most 26 %"."""
    if n == 0:
        return f"0 of 0 {what}: this says nothing"
    return f"{k} of {n} {what}; with 95 % confidence at most {_percent(binomial_bound(k, n))}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %" if rate >= 0.095 else f"{100 * rate:.2g} %"
