"""What a model was made from and by, as its file says."""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from blemish.backbones.backbone import TimmBackbone
from blemish.data.samples import TrainingSet
from blemish.inspection.inspector import KEY_LETTERS, LEARNED_KEYS
from blemish.run import Run
from blemish.training.learner import PreparedSet


def provenance_of(
    training: TrainingSet,
    images: PreparedSet,
    learned: Sequence[int],
    calibration_wanted: str,
    backbone: TimmBackbone,
    run: Run,
) -> dict[str, Any]:
    """What a model was made from and by: no paths, no clock times finer than a day."""
    bad = () if images.anomalous is None else images.anomalous.keys
    keys = [*sorted(images.normal.keys), *(["known-bad", *sorted(bad)] if bad else [])]
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()
    return {
        "data": training.name,
        "regime": training.regime,
        "images": len(images.normal),
        "images_learned": len(learned),
        "known_bad": len(bad),
        LEARNED_KEYS: sorted(images.normal.keys[i][:KEY_LETTERS] for i in learned),
        "groups": len(set(images.groups)),
        "data_digest": digest,
        "weights_digest": backbone.digest,
        "seed": run.seed,
        "precision": backbone.precision.name,
        "precision_trained": run.precision.name,
        "calibration_wanted": calibration_wanted,
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.timer.seconds.items()},
        "versions": {name: _version(name) for name in ("blemish", "torch", "timm")},
        "python": platform.python_version(),
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
