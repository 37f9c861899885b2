"""Metrics that depend on the order of the scores alone: AUROC, AP, best F1, accuracy there, FPR at a TPR.

All follow from one table: for every positive, how many negatives score higher, and how many at least as high. Only
negatives from the lowest positive upwards are sorted, and without labels: 13 million pixels take less than a second.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from blemish.errors import DataError

DRAWS = 10_000  # of the bootstrap

Scores = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Whole = NDArray[np.intp]


@dataclass(frozen=True)
class Ranking:
    """Where the positives stand among the negatives. Every metric is NaN where there is none of either.

    Of each of ``p`` positives, by ascending ``scores``: its index among the positives as they were given (``order``),
    and how many negatives score strictly higher (``above``) and at least as high (``at_or_above``).
    """

    scores: Scores
    order: Whole
    above: Whole
    at_or_above: Whole
    negatives: int
    sorted_negatives: int

    @property
    def has_both(self) -> bool:
        """Whether there is a positive and a negative."""
        return self.negatives > 0 and self.scores.size > 0

    def true_positives(self) -> Whole:
        """``p``, the number of positives that score at least as high as each positive."""
        return self.scores.size - np.searchsorted(self.scores, self.scores)

    def auroc(self) -> float:
        """Area under the ROC curve in [0, 1]: the chance that a positive scores higher, equals counting one half."""
        if not self.has_both:
            return math.nan
        # Whole numbers all the way: the sum is exact however many pairs there are.
        lost = int(self.above.sum()) + int(self.at_or_above.sum())
        return 1 - lost / (2 * self.scores.size * self.negatives)

    def average_precision(self) -> float:
        """Precision averaged over the positives, a step function without interpolation (scikit-learn's AP)."""
        hits = self.true_positives()
        return float(np.mean(hits / (hits + self.at_or_above))) if self.has_both else math.nan

    def fpr_at_tpr(self, tpr: float = 0.95) -> float:
        """The share of negatives flagged by the highest threshold that finds at least ``tpr`` (0 to 1) of positives."""
        if not 0 < tpr <= 1:
            raise DataError(f"tpr={tpr} given; a true-positive rate lies in (0, 1]: use for example 0.95")
        if not self.has_both:
            return math.nan
        total = self.scores.size
        # A product would round: the quotient is what "at least 95 % found" compares.
        needed = 1 + bisect_left(range(1, total + 1), tpr, key=lambda count: count / total)
        return int(self.at_or_above[total - needed]) / self.negatives

    def f1_max(self) -> tuple[float, float, float]:
        """The best F1 of all thresholds, its threshold (``score >= threshold`` is positive), the accuracy there.

        An oracle: labels choose the threshold, the highest of several as good. The accuracy is medical papers' ACC.
        """
        if not self.has_both:
            return math.nan, math.nan, math.nan
        total, hits = self.scores.size, self.true_positives()
        # The best threshold is always a positive's score: stopping at a negative's only adds a false alarm.
        f1 = 2 * hits / (hits + self.at_or_above + total)
        best = total - 1 - int(np.argmax(f1[::-1]))
        right = int(hits[best]) + self.negatives - int(self.at_or_above[best])
        return float(f1[best]), float(self.scores[best]), right / (total + self.negatives)


def rank_positives(scores: Scores, positives: Whole, floor: float | None = None) -> Ranking:
    """The standing of the positives, given by index, among ``n`` scores without NaN.

    With a ``floor`` lower positives are left out, and lower negatives are not sorted: the result then serves areas from
    the top of the curve, not `Ranking`'s own metrics.
    """
    theirs = scores[positives]
    order = np.argsort(theirs)
    theirs = theirs[order]
    left_out = 0 if floor is None else int(np.searchsorted(theirs, theirs.dtype.type(floor)))
    lowest = floor if left_out else next(iter(theirs[:1]), np.inf)
    order, theirs = order[left_out:], theirs[left_out:]
    is_sorted = scores >= scores.dtype.type(lowest)
    is_sorted[positives] = False
    negatives = scores[is_sorted]
    negatives.sort()
    below = np.searchsorted(negatives, theirs, side="left")
    not_above = below.copy()
    inside = np.flatnonzero(below < negatives.size)
    # Equal scores are rare among real maps: search a second time for those alone.
    tied = inside[negatives[below[inside]] == theirs[inside]]
    not_above[tied] = np.searchsorted(negatives, theirs[tied], side="right")
    above, at_or_above = negatives.size - not_above, negatives.size - below
    return Ranking(theirs, order, above, at_or_above, scores.size - positives.size, negatives.size)


def check_scores(
    scores: ArrayLike, labels: ArrayLike, what: str = "scores", truth: str = "labels"
) -> tuple[Scores, Flags]:
    """Both as arrays of equal shape, not empty: scores of a float type without NaN, labels bool; else a DataError."""
    values, flags = np.asarray(scores), np.asarray(labels)
    if values.shape != flags.shape:
        raise DataError(f"{what} of shape {values.shape} and {truth} of shape {flags.shape} given; they must match")
    if values.size == 0:
        raise DataError(f"no {what} given; metrics need at least one: check that the test set is not empty")
    if flags.dtype != np.bool_:
        raise DataError(f"{truth} of type {flags.dtype} given; they must be bool: pass `{truth} > 0`")
    if values.dtype.kind in "iub":
        values = values.astype(np.float64)
    if values.dtype.kind != "f":
        raise DataError(f"{what} of type {values.dtype} given; they must be real numbers")
    if np.isnan(values.max()):  # the maximum carries a NaN through, at a fraction of the cost of isnan
        raise DataError(f"NaN among the {what}; metrics need a number everywhere: look for the image that caused it")
    return values, flags


def rank(scores: ArrayLike, labels: ArrayLike) -> Ranking:
    """The ranking of ``n`` scores (higher is more anomalous) by ``n`` bool labels (True is anomalous).

    Raises:
        DataError: lengths differ, nothing given, NaN, other labels.
    """
    values, flags = check_scores(scores, labels)
    if values.ndim != 1:
        raise DataError(f"scores of shape {values.shape} given; one number an image is needed: flatten them first")
    return rank_positives(values, np.flatnonzero(flags))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve in [0, 1]; .5 for constant scores, NaN where one class is missing."""
    return rank(scores, labels).auroc()


def caught_at(scores: ArrayLike, labels: ArrayLike, rate: float) -> tuple[float, tuple[float, float]]:
    """The share of positives above the score that at most a share ``rate`` of negatives exceeds, and its 95 % interval.

    With ``g`` negatives that is the score that ``floor(rate * g)`` of them exceed: their maximum if ``g < 1 / rate``,
    and the interval is then too narrow. It is the bootstrap's, both classes drawn anew, computed without drawing them:
    the threshold's rank is a Beta variable times ``g``, the positives above are binomial. Where every draw catches all,
    or none, it is the exact binomial one. NaN without either class.
    """
    values, flags = check_scores(scores, labels)
    positives, negatives = values[flags], np.sort(values[~flags])[::-1]
    if not (positives.size and negatives.size):
        return math.nan, (math.nan, math.nan)
    allowed = math.floor(rate * negatives.size * (1 + 1e-9))
    found = positives.size - np.searchsorted(np.sort(positives), negatives, side="right")
    rng = np.random.default_rng(0)
    ranks = (negatives.size * rng.beta(allowed + 1, negatives.size - allowed, DRAWS)).astype(int)
    drawn = rng.binomial(positives.size, found[ranks] / positives.size) / positives.size
    low, high = np.quantile(drawn, (0.025, 0.975))
    if low == high:  # of all or none a bootstrap knows no doubt
        low, high = binomtest(int(low * positives.size), positives.size).proportion_ci()
    return float(found[allowed] / positives.size), (float(low), float(high))


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """``image_auroc image_ap image_f1_max_oracle accuracy_oracle`` of one test set, from one ranking."""
    ranking = rank(scores, labels)
    f1, _, accuracy = ranking.f1_max()
    return {
        "image_auroc": ranking.auroc(),
        "image_ap": ranking.average_precision(),
        "image_f1_max_oracle": f1,
        "accuracy_oracle": accuracy,
    }
