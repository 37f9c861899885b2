"""Thresholds from normal groups only: split conformal prediction, and the sentences it allows.

The unit is the group (people read "part"), rejected if any of its images is: its score is the largest of theirs. Sort
the scores of ``n`` normal groups that the model did not learn from and put the threshold at the ``k``-th smallest. A
further normal group is as likely to fall into any of the ``n + 1`` gaps between them, so it lands above the threshold
with probability ``(n + 1 - k) / (n + 1)``, whatever the method and the law of the scores, on average over calibrations.
The rate of the one calibration a user has follows ``Beta(n + 1 - k, k)``, whose 95 % quantile is the bound that is
named. Tied scores only lower both. Nothing holds once parts, camera or light change.

- ``holdout``: groups kept away from learning are scored by the final model: a promise.
- ``crossfit``: every group is scored by a model fitted without its fold, and the final model learns from all: an
  estimate. Models that learned from less score normal groups higher as a rule, which errs towards fewer rejects. Such
  groups are few, so the threshold is no single one of them but comes from a ``Tail`` fitted to the highest.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Vovk, ACML 2012 (the Beta law); Barber et al.,
Annals of Statistics 2021 (the jackknife+).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from blemish.errors import CalibrationError, ConfigError, ModelFileError
from blemish.inspection.thresholds import (
    Scores,
    Tail,
    allowed_rejects,
    exceeded_by,
    fit_tail,
    gaps_above,
    groups_needed,
    rate_bound,
)

Kind = Literal["holdout", "crossfit", "none"]
Wanted = Literal["auto", "holdout", "crossfit", "none"]
Decision = Literal["ok", "review", "reject"]

DEFAULT_RATE = 0.01
REVIEW = 2  # a person is sent this many times as many normal groups as are rejected ...
MOST_REVIEW = 0.10  # ... and at most this share of all
_OLD_REVIEW = 5  # files without a review share of their own: together with the rejected ones, so many times the rate
FEWEST = 5  # with fewer groups there are no five folds
FOLDS = 5
PROMISE_FROM = 150  # from so many groups on, enough can be spared from learning for a promise
_FULL_HOLDOUT = 99  # what the default rate needs
_LARGEST_HOLDOUT = 1000  # 1 % is then bounded by 1.6 %: more would cost learning and gain little
_BEYOND = 2  # a fitted tail is asked for rates this many times below 1 / (n + 1); at 3 the simulation strays too far
_SAME = 1e-6  # of the largest score: a spread below it is rounding
_UNCALIBRATED = (
    "this model was not calibrated, so it gives no p-values and no decisions: run `blemish calibrate MODEL "
    "GOOD_IMAGES -o NEW` with good images that it did not learn from"
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What scores of normal groups say about a new score: build it with ``calibrate``; as it is, there is none.

    Attributes:
        scores: ``n`` group scores, ascending.
        rate: the false-reject rate.
        max_map_values: ``n`` largest map values, one a group, ascending; None for a method without maps.
        images: how many images the groups had.
        trusted: False if nobody has looked at the groups (an unlabelled pile).
        review: the share of normal groups that goes to a person besides those rejected. None for a file from before it
            was a share of its own: five times the rate is then rejected or reviewed, and no tail is fitted.
    """

    kind: Kind = "none"
    scores: Scores = field(default_factory=lambda: np.empty(0))
    rate: float | None = None
    max_map_values: Scores | None = None
    images: int = 0
    trusted: bool = True
    review: float | None = None

    @property
    def n(self) -> int:
        """Calibration groups."""
        return len(self.scores)

    @cached_property
    def tail(self) -> Tail | None:
        """What the threshold of an estimate comes from."""
        return fit_tail(self.scores) if self.kind == "crossfit" and self.review is not None else None

    @property
    def threshold(self) -> float | None:
        """Rejected are scores above it; None without calibration."""
        return None if self.rate is None else exceeded_by(self.rate, self.scores, self.tail)

    @property
    def review_threshold(self) -> float | None:
        """For a person to look at are scores above it that are not rejected; None where there is no such limit."""
        if self.threshold is None or not -math.inf < self.review_limit < self.threshold:
            return None
        return self.review_limit

    @property
    def review_limit(self) -> float:
        """As ``review_threshold``, also where no score lies between it and the threshold; -inf: all are reviewed."""
        rate = self.rate or 0
        return exceeded_by(_OLD_REVIEW * rate if self.review is None else rate + self.review, self.scores, self.tail)

    @property
    def pixel_threshold(self) -> float | None:
        """Outlined are map values above it; a normal group shows any region as rarely as it is rejected."""
        if self.max_map_values is None or self.rate is None:
            return None
        return exceeded_by(self.rate, self.max_map_values, self.tail and fit_tail(self.max_map_values))

    @property
    def expected_false_reject(self) -> float | None:
        """The share of normal groups rejected, on average over calibrations."""
        return None if self.rate is None else self._expected(self.rate)

    @property
    def expected_false_review(self) -> float | None:
        """The share that goes to a person besides, on average; None without calibration or in files of before."""
        if self.rate is None or self.review is None:
            return None
        return self._expected(self.rate + self.review) - self._expected(self.rate)

    @property
    def false_reject_bound(self) -> float | None:
        """What the share rejected stays below with 95 % confidence."""
        if (rate := self.rate) is None:
            return None
        return tail.bound(rate) if (tail := self._tail_at(rate)) else rate_bound(gaps_above(rate, self.n), self.n)

    def _tail_at(self, share: float) -> Tail | None:
        return self.tail if self.tail is not None and share < self.tail.share else None

    def _expected(self, share: float) -> float:
        return share if self._tail_at(share) else gaps_above(share, self.n) / (self.n + 1)

    def p_value(self, score: float) -> float:
        """The share of normal groups at least as anomalous, in [0, 1]; the new one counts among them below a tail."""
        if self.rate is None:
            raise CalibrationError(_UNCALIBRATED)
        if self.tail is not None and not score <= self.tail.start:
            return self.tail.p_value(math.inf if math.isnan(score) else score)
        return (1 + self.n - int(np.searchsorted(self.scores, score))) / (self.n + 1)

    def decide(self, score: float) -> Decision:
        """Of a group's largest score: ``reject`` if p <= rate or it is NaN, ``review`` if p <= rate + review share."""
        # Scores are compared, not p-values: 1/121 as a float must not fall on the wrong side of itself.
        if self.threshold is None:
            raise CalibrationError(_UNCALIBRATED)
        if not score <= self.threshold:
            return "reject"
        return "review" if score > self.review_limit else "ok"

    def sentence(self, of_bad: str = "") -> str:
        """The promise or estimate in plain words, with its bound and the number of parts it rests on.

        ``of_bad`` is what is known of bad parts, such as "of painted defects it rejects 78 in 100": both errors then
        stand in one sentence.
        """
        if self.rate is None:
            return (
                "No promise: this model was not calibrated, so it gives scores and no decisions. "
                "`blemish calibrate MODEL GOOD_IMAGES -o NEW` adds them."
            )
        n, parts = self.n, "good parts" if self.trusted else "parts"
        average, bound = _in_words(self.expected_false_reject or 1), self.false_reject_bound or 1
        at_most = f"1 in {math.floor(1 / bound)}" if bound < 0.25 else f"{math.ceil(100 * bound)} in 100"
        words = f"On average {average} rejected; with 95 % confidence no more than {at_most}"
        if self.kind == "crossfit":
            words = f"About {average} rejected; probably no more than {at_most}"
        words += f"; {of_bad}." if of_bad else "."
        if share := self.expected_false_review:
            words += f" In addition, about {_in_words(share)} sent to review."
        words += (
            f" This promise rests on {n} {parts} that the model did not learn from, "
            "and holds while parts, camera and light stay as they were."
            if self.kind == "holdout"
            else f" This is an estimate, not a promise: it rests on {n} {parts}, each scored by a model "
            "that had learned from the others alone."
        )
        if self._tail_at(self.rate) is not None:
            words += (
                " The threshold is extrapolated from their highest scores, so that one odd part alone cannot set it."
            )
            if not allowed_rejects(self.rate, n):
                words += f" So low a rate is itself extrapolated: {n} parts alone support 1 in {n + 1} at best."
        if self.images > n:
            words += f" The parts had {self.images} images: a part is rejected if any of its images is."
        unseen = " Nobody has looked at them: bad ones raise the threshold, so that fewer good and more bad parts pass."
        return words if self.trusted else words + unseen

    def to_tensors(self) -> dict[str, Scores]:
        """Arrays for the model file."""
        arrays = {"scores": None if self.rate is None else self.scores, "peaks": self.max_map_values}
        return {name: values.copy() for name, values in arrays.items() if values is not None}

    def meta(self) -> dict[str, Any]:
        """The rest, for JSON."""
        return {name: getattr(self, name) for name in ("kind", "rate", "images", "trusted", "review")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, ArrayLike], meta: Mapping[str, Any]) -> Calibration:
        """What ``to_tensors`` and ``meta`` came from; a ModelFileError where they do not fit together."""
        if meta.get("kind") == "none":
            return cls()
        try:
            scores = _ascending(tensors["scores"])
            max_map_values = _ascending(tensors["peaks"]) if "peaks" in tensors else None
            differs = max_map_values is not None and len(max_map_values) != len(scores)
            if meta["kind"] not in ("holdout", "crossfit") or differs:
                raise CalibrationError("its kind is unknown, or its arrays differ in length")
            rate = choose_rate(float(meta["rate"]), len(scores), meta["kind"])
            review = None if meta.get("review") is None else choose_review(float(meta["review"]), rate)
            images, trusted = int(meta["images"]), bool(meta["trusted"])
            return cls(meta["kind"], scores, rate, max_map_values, images, trusted, review)
        except (KeyError, TypeError, ValueError, ConfigError, CalibrationError) as error:
            raise ModelFileError(
                f"the model file's calibration is not whole ({error}): copy the file again or calibrate it anew"
            ) from error


def calibrate(
    kind: Kind,
    scores: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    max_map_values: ArrayLike | None = None,
    false_reject: float | None = None,
    review: float | None = None,
    trusted: bool = True,
) -> Calibration:
    """A calibration from scores of normal images that the model which scored them did not learn from.

    ``scores`` and ``max_map_values`` are one an image, ``groups`` says which images belong together (None: each is a
    group); ``false_reject`` is the share of normal groups that may be rejected, ``review`` the share that may go to a
    person besides; None for the defaults.

    Raises:
        CalibrationError: the groups are too few for the rate, all score the same, or scores are not finite.
        ConfigError: a share is not between 0 and 1, or together they leave nothing to be simply ok.
    """
    images = np.asarray(scores).size
    if max_map_values is not None and (maxima := np.asarray(max_map_values).size) != images:
        raise CalibrationError(f"{images} scores and {maxima} map maxima: one each an image is needed")
    by_group = _ascending(group_scores(scores, groups))
    highest = None if max_map_values is None else _ascending(group_scores(max_map_values, groups))
    rate = choose_rate(false_reject, len(by_group), kind)
    if by_group[-1] - by_group[0] <= _SAME * np.abs(by_group).max():
        raise CalibrationError(
            f"all {len(by_group)} good parts score the same, {by_group[-1]:g}, so nothing can be said of how parts "
            "differ: give photographs of different parts, or fit without calibration"
        )
    return Calibration(kind, by_group, rate, highest, images, trusted, choose_review(review, rate))


def group_scores(scores: ArrayLike, groups: Sequence[str] | None = None) -> Scores:
    """The largest score of each group, in the order in which groups first appear; without groups, the scores."""
    values = np.array(scores, dtype=np.float64).reshape(-1)
    if groups is None:
        return values
    if len(groups) != len(values):
        raise CalibrationError(f"{len(values)} scores and {len(groups)} groups: one group a score is needed")
    largest: dict[str, float] = {}
    for group, value in zip(groups, values.tolist()):
        largest[group] = float(np.maximum(value, largest.get(group, -math.inf)))  # passes NaN on
    return np.array(list(largest.values()))


def _in_words(share: float) -> str:
    """``1 good part in 31 is``, or ``30 good parts in 100 are`` where that would be rounded by more than 5 %."""
    near = round(1 / share)
    return f"1 good part in {near} is" if abs(near * share - 1) <= 0.05 else f"{100 * share:.0f} good parts in 100 are"


def _ascending(values: ArrayLike) -> Scores:
    ordered = np.sort(np.array(values, dtype=np.float64).reshape(-1))
    if not np.isfinite(ordered).all():
        raise CalibrationError(
            f"{np.count_nonzero(~np.isfinite(ordered))} of {len(ordered)} calibration scores are not finite: "
            "the model is broken, or its images are. Look at the images, then fit anew."
        )
    ordered.flags.writeable = False
    return ordered


def check_rate(rate: float) -> None:
    """Refuse, as a ConfigError, a false-reject rate that is not strictly between 0 and 1."""
    if not 1e-12 < rate < 1 - _SAME:
        raise ConfigError(
            f"a false-reject rate of {rate:g} was asked for: it is the share of good parts that may be rejected, "
            "above 0 and below 1. For 1 good part in 100 give 0.01."
        )


def choose_rate(wanted: float | None, n: int, kind: Kind = "holdout") -> float:
    """The rate asked for, or the default one; a CalibrationError where ``n`` normal groups do not support it."""
    if wanted is not None:
        check_rate(wanted)
    beyond = _BEYOND if kind == "crossfit" else 1  # the tail reaches further than the groups by themselves
    if n < FEWEST or (wanted is not None and not allowed_rejects(beyond * wanted, n)):
        needed = FEWEST if wanted is None else max(FEWEST, groups_needed(beyond * wanted))
        asked = "calibration" if wanted is None else f"a false-reject rate of {wanted:g}"
        other = "fit without calibration"
        if n >= FEWEST:
            least = 1 / (beyond * (n + 1))
            digits = 2 - math.floor(math.log10(least))
            smallest = math.ceil(round(10**digits * least, 6)) / 10**digits  # rounded up, so that it can be asked for
            other = f"ask for {smallest:g} (1 good part in {beyond * (n + 1)}) or above"
        raise CalibrationError(
            f"{asked} needs at least {needed} good parts that the model did not learn from; "
            f"there are {n}. Add {needed - n} more, or {other}."
        )
    return max(DEFAULT_RATE, 1 / (n + 1)) if wanted is None else wanted


def choose_review(wanted: float | None, rate: float) -> float:
    """The share of normal groups for review asked for, or the default one: twice the rate, at most 10 %."""
    if wanted is None:
        return min(REVIEW * rate, MOST_REVIEW, (1 - rate) / 2)
    if not 0 <= wanted < 1 - rate - _SAME:
        raise ConfigError(
            f"a review share of {wanted:g} beside a false-reject rate of {rate:g} was asked for: it is the share of "
            "good parts sent to a person besides those rejected, 0 or above; both together must stay below 1"
        )
    return wanted


@dataclass(frozen=True)
class Plan:
    """How normal groups are used: held out, in ``FOLDS`` folds, or neither; how many are held out; and why."""

    kind: Kind
    held_out: int
    reason: str


def plan(
    n_groups: int, wanted: Wanted = "auto", false_reject: float | None = None, review: float | None = None
) -> Plan:
    """How to calibrate on ``n_groups`` normal groups.

    Held out are a third of the groups up to 99, the number that the default rate of 1 % needs; a fifth once that is
    more; and never above 1,000. A rate that needs more is served as long as half of the groups remain to learn from.

    Raises:
        CalibrationError: the groups cannot support what was asked for; the message says how many could.
        ConfigError: ``wanted``, ``false_reject`` or ``review`` is not a valid value.
    """
    if wanted not in ("auto", "holdout", "crossfit", "none"):
        raise ConfigError(f"calibration {wanted!r} is unknown: choose auto, holdout, crossfit or none")
    if false_reject is not None:
        check_rate(false_reject)
    if wanted == "none" and (false_reject, review) != (None, None):
        asked = "a false-reject rate" if false_reject is not None else "a share for review"
        raise ConfigError(f"{asked} needs a calibration: choose auto, holdout or crossfit, not none")
    if wanted == "none":
        return Plan("none", 0, "no calibration, as asked: scores without decisions")
    if review is not None and n_groups < FEWEST:
        raise CalibrationError(
            f"a review share needs a calibration, and for that {FEWEST} good parts: give more images"
        )
    if wanted == "auto" and false_reject is None and n_groups < FEWEST:
        return Plan("none", 0, f"{n_groups} good parts are too few to calibrate on: {FEWEST} are needed")
    needed = 0 if false_reject is None else groups_needed(false_reject)
    usual = min(max(min(n_groups // 3, _FULL_HOLDOUT), n_groups // 5, FEWEST), _LARGEST_HOLDOUT)
    held_out = max(usual, needed)
    leaves_half = held_out <= n_groups // 2
    if wanted == "holdout" and not leaves_half:
        least = max(FEWEST, needed)
        at_rate = "" if false_reject is None else f" with a false-reject rate of {false_reject:g}"
        raise CalibrationError(
            f"a promise{at_rate} needs at least {2 * least} good parts, {least} to hold out and as many to learn from; "
            f"there are {n_groups}. Add {2 * least - n_groups} more, ask for a larger rate, or cross-fit for an "
            "estimate."
        )
    if leaves_half and (wanted == "holdout" or (wanted == "auto" and n_groups >= PROMISE_FROM)):
        choose_review(review, choose_rate(false_reject, held_out))
        reason = f"{held_out} of {n_groups} good parts are held out from learning, for a promise"
        return Plan("holdout", held_out, reason)
    rate = choose_rate(false_reject, n_groups, "crossfit")
    choose_review(review, rate)
    if wanted == "crossfit":
        why = "as asked"
    elif n_groups < PROMISE_FROM:
        why = f"there are {n_groups} good parts, and from {PROMISE_FROM} on some are held out, for a promise"
    else:
        why = f"a promise of {rate:g} would keep more than half of the {n_groups} good parts from learning"
    return Plan("crossfit", 0, f"{FOLDS}-fold cross-fitting, for an estimate: {why}")
