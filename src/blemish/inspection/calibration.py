"""Thresholds from good parts only: what to hold out, and the calibration that turns scores into decisions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.inspection.promises import Kind

Wanted = Literal["auto", "holdout", "crossfit", "none"]
Decision = Literal["ok", "review", "reject"]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """How a set of good parts will be used.

    Attributes:
        kind: hold some out, cross-fit over all, or learn from all and calibrate nothing.
        held_out: parts (groups) to keep from learning; 0 unless ``holdout``.
        folds: 0 unless ``crossfit``; a part's images all fall into one fold.
        rate: the false-reject rate that this will give; None for ``none``.
        reason: why, for people.
    """

    kind: Kind
    held_out: int
    folds: int
    rate: float | None
    reason: str


def plan(n_groups: int, wanted: Wanted = "auto", false_reject: float | None = None) -> Plan:
    """How to calibrate on ``n_groups`` good parts.

    Raises:
        CalibrationError: the parts cannot support what was asked for; the message says how many could.
        ConfigError: ``wanted`` or ``false_reject`` is not a valid value.
    """
    raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Calibration:
    """What scores of good parts say about a new score. Build it with ``calibrate`` or ``uncalibrated``.

    Attributes:
        kind: ``holdout``, ``crossfit`` or ``none``.
        scores: ``n`` part scores, ascending, float64; empty for ``none``.
        rate: the false-reject rate asked for, or the default one; None for ``none``.
        peaks: ``n`` largest map values, one a part, ascending; None for a method without maps.
        images: how many images the parts had.
        trusted: False if nobody has looked at the parts (an unlabelled pile).
    """

    kind: Kind
    scores: Scores
    rate: float | None
    peaks: Scores | None = None
    images: int = 0
    trusted: bool = True

    @property
    def n(self) -> int:
        """Calibration parts."""
        return len(self.scores)

    @property
    def threshold(self) -> float | None:
        """Rejected are scores above it; None without calibration."""
        raise NotImplementedError

    @property
    def review_threshold(self) -> float | None:
        """For a person to look at are scores above it; -inf where five times the rate is everything."""
        raise NotImplementedError

    @property
    def pixel_threshold(self) -> float | None:
        """Outlined are map values above it: the share of good parts that show any region is that of rejects."""
        raise NotImplementedError

    @property
    def expected_false_reject(self) -> float | None:
        """The share of good parts rejected, on average over calibrations; None without calibration."""
        raise NotImplementedError

    @property
    def false_reject_bound(self) -> float | None:
        """What the share stays below with 95 % confidence; None without calibration."""
        raise NotImplementedError

    def p_value(self, score: float) -> float:
        """The share of good parts at least as strange, the new one counted among them, in (0, 1].

        Raises:
            CalibrationError: there is no calibration.
        """
        raise NotImplementedError

    def decide(self, score: float) -> Decision:
        """``reject`` if p <= rate, ``review`` if p <= 5 rate, else ``ok``. For a part, give its largest score.

        Raises:
            CalibrationError: there is no calibration; the message says how to make one.
        """
        raise NotImplementedError

    def sentence(self) -> str:
        """The promise or estimate in plain words, with its bound and the number of parts it rests on."""
        raise NotImplementedError

    def with_rate(self, false_reject: float) -> Calibration:
        """The same scores at another false-reject rate: nothing is refitted, nothing scored.

        Raises:
            CalibrationError: the scores cannot support the rate, or there are none.
            ConfigError: the rate is not between 0 and 1.
        """
        raise NotImplementedError

    def to_tensors(self) -> dict[str, Scores]:
        """Arrays for the model file: ``scores`` and, for a method with maps, ``peaks``. Empty for ``none``."""
        raise NotImplementedError

    def meta(self) -> dict[str, Any]:
        """The rest, for JSON: ``kind``, ``rate``, ``images``, ``trusted``."""
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, ArrayLike], meta: Mapping[str, Any]) -> Calibration:
        """The calibration that ``to_tensors`` and ``meta`` came from.

        Raises:
            ModelFileError: they do not fit together.
        """
        raise NotImplementedError


def uncalibrated() -> Calibration:
    """No calibration: scores, but no decision."""
    return Calibration(kind="none", scores=np.empty(0), rate=None)


def calibrate(
    kind: Literal["holdout", "crossfit"],
    scores: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    peaks: ArrayLike | None = None,
    false_reject: float | None = None,
    trusted: bool = True,
) -> Calibration:
    """A calibration from scores of good images that the model which scored them did not learn from.

    Recalibrating an existing model is this with new images and ``kind="holdout"``: nothing is refitted.

    Args:
        kind: whether the final model scored them, or models fitted without their fold.
        scores: one an image.
        groups: the part that each image shows; None if each is a part of its own.
        peaks: the largest map value of each image, or None for a method without maps.
        false_reject: the share of good parts that may be rejected; None for the default.
        trusted: False if nobody has looked at the images.

    Raises:
        CalibrationError: the parts are too few for the rate, or scores are not finite.
        ConfigError: the rate is not between 0 and 1.
    """
    raise NotImplementedError


def part_scores(scores: ArrayLike, groups: Sequence[Hashable] | None) -> Scores:
    """One score a part, the largest of its images', in the order in which parts first appear."""
    raise NotImplementedError


def count_rejected(rejected: Sequence[bool], groups: Sequence[Hashable] | None) -> tuple[int, int]:
    """Parts with any image rejected, and all parts: for ``binomial_interval``."""
    raise NotImplementedError
