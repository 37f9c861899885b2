"""Pure functions from arrays to figures, checked against independent code. They know of no model and no file.

Scores: higher is more anomalous. Labels and masks: bool, True is anomalous. A figure that does not exist for the data
given (one class missing) is NaN, never 0 or 1. Misuse raises `blemish.errors.DataError`.
"""

from blemish.metrics.aupro import aupro, aupro_per_image, pixel_metrics
from blemish.metrics.ranking import Ranking, auroc, caught_at, image_metrics, rank
from blemish.metrics.trivial import cue_aurocs, cue_values

__all__ = ["Ranking", "aupro", "aupro_per_image", "auroc", "caught_at", "cue_aurocs", "cue_values", "image_metrics"]
__all__ += ["pixel_metrics", "rank"]
