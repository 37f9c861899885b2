"""What a model would find, told before there is a defect: scores of painted ones, and the sentence they allow.

Painted defects are not a factory's. They say whether a model sees anything at all of a certain size, and which of two
models sees more; how many real defects are found they cannot promise.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blemish.inspection.calibration import Calibration

PAINTED, UNPAINTED = "painted", "unpainted"  # in the provenance: what was painted, its scores, and those without it
KNOWN_BAD, SEEN = "known_bad_scores", "known_bad_learned"  # in the provenance: scores, and whether it learned from them
RATES = (0.02, 0.05, 0.1, 0.2)  # of good parts rejected, at which known-bad images are counted
FEW = 0.2  # found of all: below it a person is warned
KINDS = {"scratch": "scratches", "stain": "stains", "hole": "holes", "missing": "missing pieces"}
"""Defects that can be seen on any ground, by their painter's name, and what people call several of them."""


@dataclass(frozen=True)
class Painted:
    """A defect painted on a good image that the model did not learn from."""

    kind: str  # of ``blemish.data.synthetic``
    share: float  # of the image's shorter side: the square that it was painted into
    width: float  # the side of a square of its area, in original pixels
    score: float  # the painted image's
    unpainted: float | None = None  # and the same one's before; older models do not have it


def estimate_detection(painted: Sequence[Painted], calibration: Calibration) -> dict[str, Any]:
    """What ``calibration`` decides of painted defects: shares rejected and reviewed, by kind and size, and in words.

    Those on images that are not ok without them say nothing of the defect, and are left out. Empty without calibration
    or painted defects.
    """
    if calibration.kind == "none":
        return {}
    painted = [one for one in painted if one.unpainted is None or calibration.decide(one.unpainted) == "ok"]
    if not painted:
        return {}
    decisions = [calibration.decide(defect.score) for defect in painted]
    rejected, reviewed = (float(np.mean([decided == which for decided in decisions])) for which in ("reject", "review"))
    kinds = {}
    for kind in dict.fromkeys(defect.kind for defect in painted):
        kinds[kind] = _found(decisions, [defect.kind == kind for defect in painted])
    shares = {defect.share for defect in painted}
    usual = {share: round(float(np.median([one.width for one in painted if one.share == share]))) for share in shares}
    widths = [  # in small images two shares may be of one width
        (width, _found(decisions, [usual[defect.share] == width for defect in painted]))
        for width in sorted(set(usual.values()))
    ]
    sizes = ", ".join(f"{found:.0%} of those about {width} pixels wide" for width, found in widths)
    by_kind = ", ".join(f"{KINDS.get(kind, kind)} {found:.0%}" for kind, found in kinds.items())
    return {
        "rejected": round(rejected, 3),
        "reviewed": round(reviewed, 3),
        "defects": len(painted),
        "kinds": kinds,
        "widths": [list(pair) for pair in widths],
        "of_bad": f"of defects painted on good parts {rejected:.0%} are rejected and {reviewed:.0%} sent to review",
        "sentence": (
            f"Of the painted defects it rejects or sends to review {sizes} ({by_kind}); real ones may be easier or "
            "harder to see."
        ),
    }


def count_known_bad(provenance: Mapping[str, Any], calibration: Calibration) -> dict[str, Any]:
    """How many known-bad images are rejected, reviewed and missed, how many rejected at other rates, and in words.

    Empty without calibration or scores, as older models have none.
    """
    scores = provenance.get(KNOWN_BAD, ())
    if calibration.kind == "none" or not scores:
        return {}
    count = Counter(calibration.decide(score) for score in scores)
    rates = [rate for rate in RATES if rate > (calibration.rate or 0)]
    limits = {rate: dataclasses.replace(calibration, rate=rate).threshold for rate in rates}
    at = {f"{rate:g}": sum(s > limit for s in scores) for rate, limit in limits.items() if limit is not None}
    text = f"of {len(scores)} known-bad images this model rejects {count['reject']}, "
    text += f"sends {count['review']} to review and misses {count['ok']}"
    others = ", ".join(f"{number} at {float(rate):.0%}" for rate, number in at.items())
    text += f" (at other false-reject rates it rejects {others}; --false-reject sets one)" if others else ""
    text += ", but it has learned from them" if provenance.get(SEEN) else ""
    found = {"rejected": count["reject"], "reviewed": count["review"], "missed": count["ok"]}
    return {**found, "rejected_at": at, "sentence": text}


def _found(decisions: Sequence[str], chosen: Sequence[bool]) -> float:
    return round(float(np.mean([decided != "ok" for decided, is_in in zip(decisions, chosen) if is_in])), 3)


def painted_from(provenance: Mapping[str, Any]) -> list[Painted]:
    """What ``fit`` keeps in a model's provenance; none in older models'."""
    painted = provenance.get(PAINTED, ())
    before = provenance.get(UNPAINTED) or [None] * len(painted)
    return [Painted(kind, share, width, score, own) for (kind, share, width, score), own in zip(painted, before)]
