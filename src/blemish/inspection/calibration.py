"""Thresholds from normal groups only: split conformal prediction, and the sentences it allows.

The unit is the group (people read "part"), rejected if any of its images is: its score is the largest of theirs. Sort
the scores of ``n`` normal groups that the model did not learn from and put the threshold at the ``k``-th smallest. A
further normal group is as likely to fall into any of the ``n + 1`` gaps between them, so it lands above the threshold
with probability ``(n + 1 - k) / (n + 1)``, whatever the method and the law of the scores, on average over calibrations.
The rate of the one calibration a user has follows ``Beta(n + 1 - k, k)``, whose 95 % quantile is the bound that is
named. Tied scores only lower both. Nothing holds once parts, camera or light change.

- ``holdout``: groups kept away from learning are scored by the final model: a promise.
- ``crossfit``: every group is scored by a model fitted without its fold, and the final model learns from all: an
  estimate. Models that learned from less score normal groups higher as a rule, which errs towards fewer rejects.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Vovk, ACML 2012 (the Beta law); Barber et al.,
Annals of Statistics 2021 (the jackknife+).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv

from blemish.errors import CalibrationError, ConfigError, ModelFileError

Kind = Literal["holdout", "crossfit", "none"]
Wanted = Literal["auto", "holdout", "crossfit", "none"]
Decision = Literal["ok", "review", "reject"]
Scores = NDArray[np.float64]

CONFIDENCE = 0.95
DEFAULT_RATE = 0.01
REVIEW = 5  # a group goes to a person where p is at most this many times the rate
FEWEST = 5  # with fewer groups, five times the smallest rate is everything, and there are no five folds
FOLDS = 5
PROMISE_FROM = 150  # from so many groups on, enough can be spared from learning for a promise
_FULL_HOLDOUT = 99  # what the default rate needs
_LARGEST_HOLDOUT = 1000  # 1 % is then bounded by 1.6 %: more would cost learning and gain little
_ROUNDING = 1e-9  # relative: 1/121 as a float, times 121, must count as 1


@dataclass(frozen=True, eq=False)
class Calibration:
    """What scores of normal groups say about a new score: build it with ``calibrate``; as it is, there is none.

    Attributes:
        scores: ``n`` group scores, ascending.
        rate: the false-reject rate.
        max_map_values: ``n`` largest map values, one a group, ascending; None for a method without maps.
        images: how many images the groups had.
        trusted: False if nobody has looked at the groups (an unlabelled pile).
    """

    kind: Kind = "none"
    scores: Scores = field(default_factory=lambda: np.empty(0))
    rate: float | None = None
    max_map_values: Scores | None = None
    images: int = 0
    trusted: bool = True

    @property
    def n(self) -> int:
        """Calibration groups."""
        return len(self.scores)

    @property
    def rejects(self) -> int:
        """How many of the ``n + 1`` gaps between the scores lie above the threshold; 0 without calibration."""
        return 0 if self.rate is None else allowed_rejects(self.rate, self.n)

    @property
    def reviews(self) -> int:
        """The same for the review threshold, rejects included; may exceed ``n``: then nothing is simply ok."""
        return 0 if self.rate is None else allowed_rejects(REVIEW * self.rate, self.n)

    @property
    def threshold(self) -> float | None:
        """Rejected are scores above it; None without calibration."""
        return None if self.rate is None else _value_below_gaps(self.scores, self.rejects)

    @property
    def review_threshold(self) -> float | None:
        """For a person to look at are scores above it; -inf where five times the rate is everything."""
        return None if self.rate is None else _value_below_gaps(self.scores, self.reviews)

    @property
    def pixel_threshold(self) -> float | None:
        """Outlined are map values above it; a normal group shows any region as rarely as it is rejected."""
        return None if self.max_map_values is None else _value_below_gaps(self.max_map_values, self.rejects)

    @property
    def expected_false_reject(self) -> float | None:
        """The share of normal groups rejected, on average over calibrations."""
        return None if self.rate is None else self.rejects / (self.n + 1)

    @property
    def false_reject_bound(self) -> float | None:
        """What the share stays below with 95 % confidence."""
        return None if self.rate is None else rate_bound(self.rejects, self.n)

    def p_value(self, score: float) -> float:
        """The share of normal groups at least as anomalous, the new one counted among them, in (0, 1]."""
        if self.rate is None:
            raise CalibrationError(
                "this model was not calibrated, so it gives no p-values and no decisions: run `blemish calibrate MODEL "
                "GOOD_IMAGES -o MODEL` with good images that it did not learn from"
            )
        return (1 + self.n - int(np.searchsorted(self.scores, score))) / (self.n + 1)

    def decide(self, score: float) -> Decision:
        """Of a group's largest score: ``reject`` if p <= rate or it is NaN, ``review`` if p <= 5 rate, else ``ok``."""
        # Counts, not p-values, are compared: 1/121 as a float must not fall on the wrong side of itself.
        count = round(self.p_value(score) * (self.n + 1))
        return "reject" if count <= self.rejects else "review" if count <= self.reviews else "ok"

    def sentence(self) -> str:
        """The promise or estimate in plain words, with its bound and the number of parts it rests on."""
        if self.kind == "none":
            return (
                "No promise: this model was not calibrated, so it gives scores and no decisions. "
                "`blemish calibrate MODEL GOOD_IMAGES -o MODEL` adds them."
            )
        n, rejects, parts = self.n, self.rejects, "good parts" if self.trusted else "parts"
        # The nearest whole number whose confidence still rounds to 95 %, else rounded down.
        exact = 1 / rate_bound(rejects, n)
        holds = betainc(rejects, n + 1 - rejects, 1 / round(exact)) >= CONFIDENCE - 0.005
        bound = f"1 in {round(exact) if holds else math.floor(exact)}"
        average = f"1 good part in {(n + 1) // rejects} is"
        if (n + 1) % rejects:
            average = f"{rejects} good parts in {n + 1} (about 1 in {(n + 1) / rejects:.0f}) are"
        words = (
            f"On average {average} rejected; with 95 % confidence no more than {bound}. "
            f"This promise rests on {n} {parts} that the model did not learn from, "
            "and holds while parts, camera and light stay as they were."
        )
        if self.kind == "crossfit":
            words = (
                f"About {average} rejected; probably no more than {bound}. "
                f"This is an estimate, not a promise: it rests on {n} {parts}, each scored by a model "
                "that had not learned from it, but from fewer parts than this one."
            )
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
        return {"kind": self.kind, "rate": self.rate, "images": self.images, "trusted": self.trusted}

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
            rate = settle_rate(float(meta["rate"]), len(scores))
            return cls(meta["kind"], scores, rate, max_map_values, int(meta["images"]), bool(meta["trusted"]))
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
    trusted: bool = True,
) -> Calibration:
    """A calibration from scores of normal images that the model which scored them did not learn from.

    ``scores`` and ``max_map_values`` are one an image, ``groups`` says which images belong together (None: each is a
    group); ``false_reject`` is the share of normal groups that may be rejected, None for the default.

    Raises:
        CalibrationError: the groups are too few for the rate, or scores are not finite.
        ConfigError: the rate is not between 0 and 1.
    """
    images = np.asarray(scores).size
    if max_map_values is not None and (maxima := np.asarray(max_map_values).size) != images:
        raise CalibrationError(f"{images} scores and {maxima} map maxima: one each an image is needed")
    by_group = _ascending(group_scores(scores, groups))
    highest = None if max_map_values is None else _ascending(group_scores(max_map_values, groups))
    return Calibration(kind, by_group, settle_rate(false_reject, len(by_group)), highest, images, trusted)


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


def _value_below_gaps(values: Scores, gaps: int) -> float:
    return -math.inf if gaps > len(values) else float(values[len(values) - gaps])


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
    if not 0 < rate < 1:
        raise ConfigError(
            f"a false-reject rate of {rate:g} was asked for: it is the share of good parts that may be rejected, "
            "above 0 and below 1. For 1 good part in 100 give 0.01."
        )


def allowed_rejects(rate: float, n: int) -> int:
    """The largest whole number not above ``rate * (n + 1)``, up to rounding; 0 if ``n`` is too small for the rate."""
    return math.floor(rate * (n + 1) * (1 + _ROUNDING))


def groups_needed(rate: float) -> int:
    """The smallest number of normal groups that can support a rate: ``1 / rate - 1``, rounded up."""
    return math.ceil(1 / (rate * (1 + _ROUNDING))) - 1


def settle_rate(wanted: float | None, n: int) -> float:
    """The rate asked for, or the default one; a CalibrationError where ``n`` normal groups do not support it."""
    if wanted is not None:
        check_rate(wanted)
    if n < FEWEST or (wanted is not None and not allowed_rejects(wanted, n)):
        needed = FEWEST if wanted is None else max(FEWEST, groups_needed(wanted))
        asked = "calibration" if wanted is None else f"a false-reject rate of {wanted:g}"
        other = "fit without calibration"
        if n >= FEWEST:
            digits = 2 - math.floor(math.log10(1 / (n + 1)))
            smallest = math.ceil(round(10**digits / (n + 1), 6)) / 10**digits  # rounded up, so that it can be asked for
            other = f"ask for {smallest:g} (1 good part in {n + 1}) or above"
        raise CalibrationError(
            f"{asked} needs at least {needed} good parts that the model did not learn from; "
            f"there are {n}. Add {needed - n} more, or {other}."
        )
    return max(DEFAULT_RATE, 1 / (n + 1)) if wanted is None else wanted


def rate_bound(rejects: int, n: int) -> float:
    """What the false-reject rate of one calibration stays below with 95 % confidence: a quantile of its Beta law."""
    return float(betaincinv(rejects, n + 1 - rejects, CONFIDENCE))


@dataclass(frozen=True)
class Plan:
    """How normal groups are used: held out, in ``FOLDS`` folds, or neither; how many are held out; and why."""

    kind: Kind
    held_out: int
    reason: str


def plan(n_groups: int, wanted: Wanted = "auto", false_reject: float | None = None) -> Plan:
    """How to calibrate on ``n_groups`` normal groups.

    Held out are a third of the groups up to 99, the number that the default rate of 1 % needs; a fifth once that is
    more; and never above 1,000. A rate that needs more is served as long as half of the groups remain to learn from.

    Raises:
        CalibrationError: the groups cannot support what was asked for; the message says how many could.
        ConfigError: ``wanted`` or ``false_reject`` is not a valid value.
    """
    if wanted not in ("auto", "holdout", "crossfit", "none"):
        raise ConfigError(f"calibration {wanted!r} is unknown: choose auto, holdout, crossfit or none")
    if false_reject is not None:
        check_rate(false_reject)
        if wanted == "none":
            raise ConfigError("a false-reject rate needs a calibration: choose auto, holdout or crossfit, not none")
    if wanted == "none":
        return Plan("none", 0, "no calibration, as asked: scores without decisions")
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
        reason = f"{held_out} of {n_groups} good parts are held out from learning, for a promise"
        return Plan("holdout", held_out, reason)
    rate = settle_rate(false_reject, n_groups)
    if wanted == "crossfit":
        why = "as asked"
    elif n_groups < PROMISE_FROM:
        why = f"{n_groups} good parts are fewer than the {PROMISE_FROM} from which on some can be spared for a promise"
    else:
        why = f"a promise of {rate:g} would keep more than half of the {n_groups} good parts from learning"
    return Plan("crossfit", 0, f"{FOLDS}-fold cross-fitting, for an estimate: {why}")
