"""How many good parts will be rejected: the arithmetic of split conformal prediction, and the sentences it allows.

Take ``n`` good parts that the model did not learn from, sort their scores, and put the threshold at the ``k``-th
smallest. A further good part is as likely to fall into any of the ``n + 1`` gaps between them, so it lands above
the threshold with probability ``(n + 1 - k) / (n + 1)``: whatever the method, whatever the law of the scores. That
holds on average over calibrations. The rate of one calibration, which is the one a user has, is random: it follows
the law ``Beta(n + 1 - k, k)``, and its 95 % quantile is the bound that the sentence names. Tied scores only lower
both. Nothing holds once parts, camera or light change.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; for the Beta law Vovk, Conditional validity
of inductive conformal predictors, ACML 2012. The table of NEEDS.md section 5 follows from it.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy.special import betainc, betaincinv

from blemish.errors import ConfigError

Kind = Literal["holdout", "crossfit", "none"]
"""A promise; an estimate; nothing."""

CONFIDENCE = 0.95
DEFAULT_RATE = 0.01
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


def promise(kind: Kind, rejects: int, n: int, images: int, trusted: bool) -> str:
    """What a calibration says of good parts, in plain words, with its bound and the number of parts it rests on.

    Args:
        kind: how the scores were come by.
        rejects: gaps above the threshold, as from ``allowed_rejects``.
        n: calibration parts.
        images: their images.
        trusted: False if nobody has looked at the parts.
    """
    raise NotImplementedError


def describe_refusal(rate: float, n: int) -> str:
    """Why ``n`` good parts cannot support ``rate``, how many can, and what ``n`` supports."""
    raise NotImplementedError


def describe_observed(k: int, n: int, what: str) -> str:
    """An observed rate in words, such as "0 of 10 bad parts missed; with 95 % confidence at most 26 %"."""
    raise NotImplementedError


__all__ = ["betainc"]
