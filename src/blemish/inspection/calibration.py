"""Thresholds from good parts only: what their scores say of a new score.

The unit is the part. A part is rejected if any of its images is, so its score is the largest of theirs, ``n`` counts
parts, and what is promised is the share of good *parts* rejected, when new parts come with as many images as those
calibrated on. An image alone is rejected no more often than its part, so for images the bound holds too, with room.

Two ways lead to scores of parts that a model did not learn from (never use its own training images: a memory bank
knows them by heart, and their scores are nearly zero):

- ``holdout``: some parts are kept away from learning and the final model scores them. New good parts and held-out ones
  are then alike, and split conformal prediction gives a promise.
- ``crossfit``: every part is scored by a model fitted without its fold, and the final model learns from all. It differs
  from those that gave the scores, so this is an estimate. Models that learned from less score good parts higher as a
  rule, which errs towards fewer rejects; but no theorem says so of the model that is kept. (Cross-conformal prediction
  and CV+ ask every fold's model about a new image, and even they prove only about twice the rate: Barber et al.,
  Predictive inference with the jackknife+, Annals of Statistics 2021.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import CalibrationError, ConfigError, ModelFileError
from blemish.inspection import promises
from blemish.inspection.planning import Plan, Wanted, plan
from blemish.inspection.promises import Kind

Decision = Literal["ok", "review", "reject"]
Scores = NDArray[np.float64]

REVIEW = 5
"""A part goes to a person where p is at most this many times the rate."""

__all__ = [
    "Calibration",
    "Decision",
    "Plan",
    "Wanted",
    "calibrate",
    "count_rejected",
    "part_scores",
    "plan",
    "uncalibrated",
]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What scores of good parts say about a new score. Build it with ``calibrate`` or ``uncalibrated``.

    Attributes:
        kind: ``holdout``, ``crossfit`` or ``none``.
        scores: ``n`` part scores, ascending, float64; empty for ``none``.
        rate: the false-reject rate asked for, or the default one; None for ``none``.
        max_map_values: ``n`` largest map values, one a part, ascending; None for a method without maps.
        images: how many images the parts had.
        trusted: False if nobody has looked at the parts (an unlabelled pile).
    """

    kind: Kind
    scores: Scores
    rate: float | None
    max_map_values: Scores | None = None
    images: int = 0
    trusted: bool = True

    @property
    def n(self) -> int:
        """Calibration parts."""
        return len(self.scores)

    @property
    def rejects(self) -> int:
        """How many of the ``n + 1`` gaps between the scores lie above the threshold; 0 without calibration."""
        return 0 if self.rate is None else promises.allowed_rejects(self.rate, self.n)

    @property
    def reviews(self) -> int:
        """The same for the review threshold, rejects included; may exceed ``n``: then nothing is simply ok."""
        return 0 if self.rate is None else promises.allowed_rejects(REVIEW * self.rate, self.n)

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
        """Outlined are map values above it; None for a method without maps.

        The same quantile, of the parts' largest map values: a good part shows any region as rarely as it is rejected.
        """
        return None if self.max_map_values is None else _value_below_gaps(self.max_map_values, self.rejects)

    @property
    def expected_false_reject(self) -> float | None:
        """The share of good parts rejected, on average over calibrations; None without calibration."""
        return None if self.rate is None else promises.expected_rate(self.rejects, self.n)

    @property
    def false_reject_bound(self) -> float | None:
        """What the share stays below with 95 % confidence; None without calibration."""
        return None if self.rate is None else promises.rate_bound(self.rejects, self.n)

    def p_value(self, score: float) -> float:
        """The share of good parts at least as strange, the new one counted among them, in (0, 1].

        Raises:
            CalibrationError: there is no calibration.
        """
        return self._at_least_as_strange(score) / (self.n + 1)

    def decide(self, score: float) -> Decision:
        """``reject`` if p <= rate, ``review`` if p <= 5 rate, else ``ok``. For a part, give its largest score.

        A score that is not a number is rejected: nothing good is known to look like it.

        Raises:
            CalibrationError: there is no calibration; the message says how to make one.
        """
        # Counts, not p-values, are compared: 1/121 as a float must not fall on the wrong side of itself.
        strange = self._at_least_as_strange(score)
        if strange <= self.rejects:
            return "reject"
        return "review" if strange <= self.reviews else "ok"

    def _at_least_as_strange(self, score: float) -> int:
        if self.rate is None:
            raise CalibrationError(
                "this model was not calibrated, so it gives scores but neither p-values nor decisions: "
                "run `blemish calibrate MODEL GOOD_IMAGES -o MODEL` with good images that it did not learn from"
            )
        return 1 + self.n - int(np.searchsorted(self.scores, score, side="left"))

    def sentence(self) -> str:
        """The promise or estimate in plain words, with its bound and the number of parts it rests on."""
        return promises.promise(self.kind, self.rejects, self.n, self.images, self.trusted)

    def with_rate(self, false_reject: float) -> Calibration:
        """The same scores at another false-reject rate: nothing is refitted, nothing scored.

        Raises:
            CalibrationError: the scores cannot support the rate, or there are none.
            ConfigError: the rate is not between 0 and 1.
        """
        return replace(self, rate=promises.settle_rate(false_reject, self.n))

    def to_tensors(self) -> dict[str, Scores]:
        """Arrays for the model file: ``scores`` and, for a method with maps, ``peaks``. Empty for ``none``."""
        tensors = {} if self.rate is None else {"scores": self.scores.copy()}
        return tensors if self.max_map_values is None else {**tensors, "peaks": self.max_map_values.copy()}

    def meta(self) -> dict[str, Any]:
        """The rest, for JSON: ``kind``, ``rate``, ``images``, ``trusted``."""
        return {"kind": self.kind, "rate": self.rate, "images": self.images, "trusted": self.trusted}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, ArrayLike], meta: Mapping[str, Any]) -> Calibration:
        """The calibration that ``to_tensors`` and ``meta`` came from.

        Raises:
            ModelFileError: they do not fit together.
        """
        if meta.get("kind") == "none":
            return uncalibrated()
        try:
            scores = _ascending(tensors["scores"])
            max_map_values = _ascending(tensors["peaks"]) if "peaks" in tensors else None
            differs = max_map_values is not None and len(max_map_values) != len(scores)
            if meta["kind"] not in ("holdout", "crossfit") or differs:
                raise CalibrationError("its kind is unknown, or its arrays differ in length")
            rate = promises.settle_rate(float(meta["rate"]), len(scores))
            return cls(meta["kind"], scores, rate, max_map_values, int(meta["images"]), bool(meta["trusted"]))
        except (KeyError, TypeError, ValueError, ConfigError, CalibrationError) as error:
            raise ModelFileError(
                f"the model file's calibration is not whole ({error}): copy the file again or calibrate it anew"
            ) from error


def _value_below_gaps(values: Scores, gaps: int) -> float:
    """The value with ``gaps - 1`` of ``values`` (ascending) behind it: what lies above it lies in the last gaps."""
    return -float("inf") if gaps > len(values) else float(values[len(values) - gaps])


def _ascending(values: ArrayLike) -> Scores:
    ordered = np.sort(np.array(values, dtype=np.float64).reshape(-1))
    if not np.isfinite(ordered).all():
        raise CalibrationError(
            f"{np.count_nonzero(~np.isfinite(ordered))} of {len(ordered)} calibration scores are not finite: "
            "the model is broken, or its images are. Look at the images, then fit anew."
        )
    ordered.flags.writeable = False
    return ordered


def uncalibrated() -> Calibration:
    """No calibration: scores, but no decision."""
    return Calibration(kind="none", scores=np.empty(0), rate=None)


def calibrate(
    kind: Literal["holdout", "crossfit"],
    scores: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    max_map_values: ArrayLike | None = None,
    false_reject: float | None = None,
    trusted: bool = True,
) -> Calibration:
    """A calibration from scores of good images that the model which scored them did not learn from.

    Recalibrating an existing model is this with new images and ``kind="holdout"``: nothing is refitted.

    Args:
        kind: whether the final model scored them, or models fitted without their fold.
        scores: one an image.
        groups: the part that each image shows; None, for all or for one, makes an image a part of its own.
        max_map_values: the largest map value of each image, or None for a method without maps.
        false_reject: the share of good parts that may be rejected; None for the default.
        trusted: False if nobody has looked at the images.

    Raises:
        CalibrationError: the parts are too few for the rate, or scores are not finite.
        ConfigError: the rate is not between 0 and 1.
    """
    images = np.asarray(scores).size
    if max_map_values is not None and np.asarray(max_map_values).size != images:
        count = np.asarray(max_map_values).size
        raise CalibrationError(f"{images} scores and {count} map maxima: one each an image is needed")
    by_part = _ascending(part_scores(scores, groups))
    peaks_by_part = None if max_map_values is None else _ascending(part_scores(max_map_values, groups))
    return Calibration(kind, by_part, promises.settle_rate(false_reject, len(by_part)), peaks_by_part, images, trusted)


def part_scores(scores: ArrayLike, groups: Sequence[Hashable] | None = None) -> Scores:
    """One score a part, the largest of its images', in the order in which parts first appear.

    Raises:
        CalibrationError: there is not one group for each score.
    """
    values = np.array(scores, dtype=np.float64).reshape(-1)
    if groups is None:
        return values
    if len(groups) != len(values):
        raise CalibrationError(f"{len(values)} scores and {len(groups)} groups: one group a score is needed")
    numbers: dict[tuple[bool, Hashable], int] = {}
    part = [
        numbers.setdefault((group is None, image if group is None else group), len(numbers))
        for image, group in enumerate(groups)
    ]
    worst = np.full(len(numbers), -np.inf)
    np.maximum.at(worst, part, values)
    return worst


def count_rejected(rejected: ArrayLike, groups: Sequence[Hashable] | None = None) -> tuple[int, int]:
    """Parts with any image rejected, and all parts; the difference is the parts that pass, escapes among bad ones."""
    by_part = part_scores(np.asarray(rejected, dtype=bool), groups)
    return int(np.count_nonzero(by_part)), len(by_part)
