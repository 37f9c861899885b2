"""Pure functions from arrays to figures, checked against independent code. They know of no model and no file.

Scores: higher is more anomalous. Labels and masks: bool, True is anomalous. A figure that does not exist for the
data given (one class missing) is NaN. Misuse raises `blemish.errors.DataError`.
"""

from blemish.metrics.cues import CUES, cue_aurocs, cue_values, trivial_cue_aurocs
from blemish.metrics.overlap import aupro, pixel_metrics
from blemish.metrics.overlap_per_image import aupro_per_image
from blemish.metrics.ranking import (
    Ranking,
    accuracy_oracle,
    auroc,
    average_precision,
    f1_max_oracle,
    fpr_at_tpr,
    image_metrics,
    rank,
)

__all__ = [
    "CUES",
    "Ranking",
    "accuracy_oracle",
    "aupro",
    "aupro_per_image",
    "auroc",
    "average_precision",
    "cue_aurocs",
    "cue_values",
    "f1_max_oracle",
    "fpr_at_tpr",
    "image_metrics",
    "pixel_metrics",
    "rank",
    "trivial_cue_aurocs",
]
