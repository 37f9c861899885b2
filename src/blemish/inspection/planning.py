"""How many good parts to hold out from learning, or whether to cross-fit instead.

The unit is the part (``group``): all images of a part are held out together, or fall into one fold together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blemish.errors import CalibrationError, ConfigError
from blemish.inspection import promises
from blemish.inspection.promises import FEWEST, Kind

Wanted = Literal["auto", "holdout", "crossfit", "none"]

PROMISE_FROM = 150
"""From this many good parts on, enough can be spared from learning."""

FOLDS = 5
_FULL_HOLDOUT = promises.parts_needed(promises.DEFAULT_RATE)  # 99: what the default rate needs
_LARGEST_HOLDOUT = 1000  # 1 % is then bounded by 1.6 %: more would cost learning and gain little


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

    Held out are a third of the parts up to 99, the number that the default rate of 1 % needs; a fifth once that is
    more; and never above 1,000. A rate that needs more is served as long as half of the parts remain to learn from.

    Raises:
        CalibrationError: the parts cannot support what was asked for; the message says how many could.
        ConfigError: ``wanted`` or ``false_reject`` is not a valid value.
    """
    if wanted not in ("auto", "holdout", "crossfit", "none"):
        raise ConfigError(f"calibration {wanted!r} is unknown: choose auto, holdout, crossfit or none")
    if false_reject is not None:
        promises.check_rate(false_reject)
    if wanted == "none":
        if false_reject is not None:
            raise ConfigError("a false-reject rate needs a calibration: choose auto, holdout or crossfit, not none")
        return Plan("none", 0, 0, None, "no calibration, as asked: scores without decisions")
    if wanted == "auto" and false_reject is None and n_groups < FEWEST:
        return Plan("none", 0, 0, None, f"{n_groups} good parts are too few to calibrate on: {FEWEST} are needed")
    held_out = _parts_to_hold_out(n_groups, false_reject)
    if wanted == "holdout" and held_out is None:
        raise CalibrationError(_holdout_refusal(n_groups, false_reject))
    if held_out is not None and (wanted == "holdout" or (wanted == "auto" and n_groups >= PROMISE_FROM)):
        rate = promises.default_rate(held_out) if false_reject is None else false_reject
        reason = f"{held_out} of {n_groups} good parts are held out from learning, for a promise"
        return Plan("holdout", held_out, 0, rate, reason)
    rate = promises.settle_rate(false_reject, n_groups)
    if wanted == "crossfit":
        why = "as asked"
    elif n_groups < PROMISE_FROM:
        why = f"{n_groups} good parts are fewer than the {PROMISE_FROM} from which on some can be spared for a promise"
    else:
        why = f"a promise of {rate:g} would keep more than half of the {n_groups} good parts from learning"
    return Plan("crossfit", 0, FOLDS, rate, f"{FOLDS}-fold cross-fitting, for an estimate: {why}")


def _parts_to_hold_out(n_groups: int, false_reject: float | None) -> int | None:
    """How many parts to hold out, or None if that would leave less than half to learn from."""
    usual = min(max(min(n_groups // 3, _FULL_HOLDOUT), n_groups // 5, FEWEST), _LARGEST_HOLDOUT)
    needed = 0 if false_reject is None else promises.parts_needed(false_reject)
    held_out = max(usual, needed)
    return held_out if held_out <= n_groups // 2 else None


def _holdout_refusal(n_groups: int, false_reject: float | None) -> str:
    needed = FEWEST if false_reject is None else max(FEWEST, promises.parts_needed(false_reject))
    rate = "" if false_reject is None else f" with a false-reject rate of {false_reject:g}"
    return (
        f"a promise{rate} needs at least {2 * needed} good parts, {needed} to hold out and as many to learn from; "
        f"there are {n_groups}. Add {2 * needed - n_groups} more, ask for a larger rate, or cross-fit for an estimate."
    )
