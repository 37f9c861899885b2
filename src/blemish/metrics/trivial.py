"""How far trivial cues alone separate a test set: brightness, contrast and gradient of a thumbnail.

Where one of them is near 1 or near 0, normal and anomalous images differ in something that is no defect (a lamp, a day,
a camera), and a high image AUROC says little about a detector.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import DataError
from blemish.metrics.ranking import auroc


def cue_values(thumbnails: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """``brightness`` (mean), ``contrast`` (standard deviation) and ``gradient`` (mean magnitude), ``n`` values each.

    Thumbnails are ``n h w`` grey or ``n h w c`` colour (channels are averaged), of any range, the same for all. They
    may be given one by one, and the values joined.

    Raises:
        DataError: another shape, no image, or a thumbnail of less than 2 x 2 pixels.
    """
    grey = np.asarray(thumbnails)
    if grey.ndim not in (3, 4) or 0 in grey.shape or min(grey.shape[1:3]) < 2:
        raise DataError(f"thumbnails of shape {grey.shape} given; `n h w` or `n h w c` of 2 x 2 or more is needed")
    grey = grey.astype(np.float64) if grey.ndim == 3 else grey.mean(axis=3, dtype=np.float64)
    down, across = np.gradient(grey, axis=(1, 2))
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "gradient": np.hypot(down, across).mean(axis=(1, 2)),
    }


def cue_aurocs(values: Mapping[str, ArrayLike], labels: ArrayLike) -> dict[str, float]:
    """AUROC of each cue on its own, from `cue_values`, not folded: 0 separates the classes as well as 1 does.

    Raises:
        DataError: lengths differ, NaN, labels that are not bool.
    """
    return {cue: auroc(numbers, labels) for cue, numbers in values.items()}
