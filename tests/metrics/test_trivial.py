"""Trivial cues against plain arithmetic and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from blemish.errors import DataError
from blemish.metrics import cue_aurocs, cue_values


def test_cues_of_a_ramp_are_known():
    ramp = np.broadcast_to(np.arange(5.0) * 3, (4, 5))  # rises by 3 a column
    values = cue_values(np.stack([ramp, ramp * 0 + 2]))
    np.testing.assert_allclose(values["brightness"], [6.0, 2.0])
    np.testing.assert_allclose(values["contrast"], [3 * math.sqrt(2), 0.0])
    np.testing.assert_allclose(values["gradient"], [3.0, 0.0])
    down, across = np.mgrid[:6, :6]
    np.testing.assert_allclose(cue_values((3.0 * down + 4.0 * across)[None])["gradient"], [5.0])


def test_colour_is_averaged_and_one_image_at_a_time_is_the_same():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    together = cue_values(images)
    assert list(together) == ["brightness", "contrast", "gradient"]
    for cue, values in together.items():
        np.testing.assert_allclose(values, cue_values(images.astype(float).mean(axis=3))[cue])
        np.testing.assert_allclose(values, [cue_values(image[None])[cue][0] for image in images])


def test_aurocs_are_those_of_the_values_and_not_folded():
    rng = np.random.default_rng(1)
    labels = np.arange(12) % 3 == 0
    images = rng.random((12, 6, 6)) - 5.0 * labels[:, None, None]  # anomalous ones are darker
    aurocs = cue_aurocs(cue_values(images), labels)
    assert aurocs["brightness"] == 0.0
    assert aurocs["contrast"] == pytest.approx(roc_auc_score(labels, images.std(axis=(1, 2))))
    assert all(math.isnan(value) for value in cue_aurocs(cue_values(images), labels & False).values())


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 1, 4), (2, 4, 4, 0), (1, 2, 4, 4, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match="thumbnails of shape"):
        cue_values(np.zeros(shape))
    with pytest.raises(DataError, match="must match"):
        cue_aurocs({"brightness": np.zeros(3)}, np.array([True, False]))
