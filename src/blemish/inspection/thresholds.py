"""Which score a share of normal groups exceeds: by counting gaps, or by a tail that no single group can spoil."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]

CONFIDENCE = 0.95
_ROUNDING = 1e-9  # relative: 1/121 as a float, times 121, must count as 1
_SUSPECT = 0.01 / 3  # how rarely a normal tail would set one, two or three groups so far apart: 1 % together


@dataclass(frozen=True)
class Tail:
    """An exponential law of how far the highest ``k`` of ``n`` normal scores exceed the one below them, ``start``.

    Of the highest of these it counts only that they are there (they are censored): a strange one weighs the same
    however strange it is. ``total`` sums the ``free`` other excesses and, for each censored one, the largest of these.
    A new normal score exceeds ``start + x`` with probability share * (1 + x / total) ** -free, exactly if excesses are
    exponential (Lawless, Technometrics 1971); ``docs/guides/reading-a-verdict.md`` says what happens if they are not.
    """

    start: float
    total: float
    free: int  # k minus the censored ones
    k: int
    n: int

    @property
    def share(self) -> float:
        """Of normal groups, those expected above ``start``."""
        return (self.k + 1) / (self.n + 1)

    def p_value(self, score: float) -> float:
        """Of a score above ``start``."""
        return float(self.share * (1 + (score - self.start) / self.total) ** -self.free)

    def threshold(self, rate: float) -> float:
        """What a share ``rate``, below ``share``, of normal groups is expected to exceed."""
        return float(self.start + self.total * ((self.share / rate) ** (1 / self.free) - 1))

    def bound(self, rate: float) -> float:
        """What the share above that threshold stays below with 95 % confidence, if excesses are exponential."""
        # That share is B exp(-c G): B ~ Beta(k + 1, n - k) lies above the start, G ~ Gamma(free) is the total.
        c = (self.share / rate) ** (1 / self.free) - 1
        shares = (np.arange(500) + 0.5) / 500
        growth = np.exp(c * _solved(lambda total: gamma_share(self.free, total), shares, 20.0 + 10 * self.free))

        def covered(limit: Scores) -> Scores:
            return np.asarray(beta_share(self.k + 1, self.n - self.k, np.minimum(1, limit * growth)).mean())

        return float(_solved(covered, CONFIDENCE, 1.0))


def fit_tail(ascending: Scores, censored: int | None = None) -> Tail | None:
    """The tail of the highest quarter of ``n`` scores, 3 to 12, a tenth of ``n``, 1 to 3, censored; None if all equal.

    With ``censored`` given, of the highest third. It takes the scores themselves: by their logarithms simulated and
    real rates were further off.
    """
    n, part = len(ascending), 4 if censored is None else 3
    k = min(max(round(n / part), 3), 12, n - 1)
    censored = min(max(round(n / 10), 1), 3) if censored is None else censored
    excesses = ascending[n - k : n - censored] - ascending[n - k - 1]
    total = float(excesses.sum() + censored * excesses[-1]) if censored < k else 0.0
    return Tail(float(ascending[n - k - 1]), total, k - censored, k, n) if total > 0 else None


def suspects(ascending: Scores) -> int:
    """How many of the highest scores, at most three, stand apart from all others."""
    apart = 0
    for j in (1, 2, 3):
        tail = fit_tail(ascending, j)
        if tail is not None and tail.free > 1:
            # The gap below the j highest of an exponential law is exponential, too, and j times as steep.
            gap = float(ascending[-j] - ascending[-j - 1])
            apart = j if (1 + j * gap / tail.total) ** -tail.free < _SUSPECT else apart
    return apart


def exceeded_by(share: float, values: Scores, tail: Tail | None) -> float:
    """What a share of normal groups is expected to exceed, at most; -inf for all of them."""
    if tail is not None and share < tail.share:
        return tail.threshold(share)
    gaps = gaps_above(share, len(values))
    return -math.inf if gaps > len(values) else float(values[len(values) - gaps])


def gaps_above(share: float, n: int) -> int:
    """How many of the ``n + 1`` gaps between scores lie above such a threshold; one where the share is too small."""
    return max(1, allowed_rejects(share, n))


def allowed_rejects(rate: float, n: int) -> int:
    """The largest whole number not above ``rate * (n + 1)``, up to rounding; 0 if ``n`` is too small for the rate."""
    return math.floor(rate * (n + 1) * (1 + _ROUNDING))


def groups_needed(rate: float) -> int:
    """The smallest number of normal groups that can support a rate: ``1 / rate - 1``, rounded up."""
    return math.ceil(1 / (rate * (1 + _ROUNDING))) - 1


def rate_bound(rejects: int, n: int) -> float:
    """What the false-reject rate of one calibration stays below with 95 % confidence: a quantile of its Beta law."""
    return float(_solved(lambda share: beta_share(rejects, n + 1 - rejects, share), CONFIDENCE, 1.0))


def beta_share(a: int, b: int, limit: ArrayLike) -> Scores:
    """How much of Beta(a, b), of whole numbers, lies below limits in (0, 1]: ``a`` of ``a + b - 1`` draws or more."""
    x, j = np.asarray(limit, np.float64)[..., None], np.arange(a)
    ways = np.cumsum(np.log(np.concatenate([[1], (a + b - j[1:]) / j[1:]])))
    with np.errstate(divide="ignore"):
        below: Scores = 1 - np.exp(ways + j * np.log(x) + (a + b - 1 - j) * np.log1p(-x)).sum(axis=-1)
    return below


def gamma_share(a: int, limit: ArrayLike) -> Scores:
    """How much of Gamma(a), of a whole number, lies below positive limits: ``a`` events or more in that time."""
    x, j = np.asarray(limit, np.float64)[..., None], np.arange(a)
    below: Scores = 1 - np.exp(j * np.log(x) - x - np.cumsum(np.log(np.maximum(j, 1)))).sum(axis=-1)
    return below


def _solved(rising: Callable[[Scores], Scores], wanted: Scores | float, most: float) -> Scores:
    """Where a rising function, from 0 to ``most``, is ``wanted``, by halving."""
    low = np.zeros_like(wanted, dtype=np.float64)
    high = np.full_like(low, most)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = rising(middle) < wanted
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return high
