"""What painted defects say of a model."""

import numpy as np

from blemish.inspection.calibration import Calibration, calibrate
from blemish.inspection.detection import Painted, count_known_bad, estimate_detection, painted_from

SCORES = np.arange(1.0, 200.0)  # 199 good parts: 1 % rejects two of 200 gaps, above 198


def test_shares_by_size_and_kind_are_counted_at_the_threshold():
    calibration = calibrate("holdout", SCORES, review=0.02)
    assert (calibration.threshold, calibration.review_threshold) == (198, 194)
    painted = [
        Painted("scratch", 0.1, 4.0, 10.0),
        Painted("scratch", 0.1, 6.0, 195.0),
        Painted("hole", 0.2, 20.0, 199.0),
        Painted("hole", 0.2, 22.0, 500.0),
    ]
    expected = estimate_detection(painted, calibration)
    assert (expected["rejected"], expected["reviewed"], expected["defects"]) == (0.5, 0.25, 4)
    assert expected["kinds"] == {"scratch": 0.5, "hole": 1.0}
    assert expected["widths"] == [[5, 0.5], [21, 1.0]]
    assert expected["of_bad"] == "of defects painted on good parts 50% are rejected and 25% sent to review"
    assert "50% of those about 5 pixels wide, 100% of those about 21 pixels wide" in expected["sentence"]
    assert expected["of_bad"] in calibration.sentence(expected["of_bad"])


def test_what_is_painted_on_an_image_that_is_flagged_without_it_is_not_counted():
    calibration = calibrate("holdout", SCORES, review=0.02)
    painted = [Painted("hole", 0.2, 20.0, 500.0, 195.0), Painted("hole", 0.2, 20.0, 196.0, 193.0)]
    expected = estimate_detection(painted, calibration)
    assert (expected["rejected"], expected["reviewed"], expected["defects"]) == (0, 1, 1)
    assert estimate_detection(painted[:1], calibration) == {}
    kept = {"painted": [["hole", 0.2, 20.0, 500.0]]}
    assert painted_from(kept) == [Painted("hole", 0.2, 20.0, 500.0)]
    assert painted_from({**kept, "unpainted": [195.0]}) == painted[:1]


def test_known_bad_images_are_counted_at_the_threshold_and_at_others():
    calibration = calibrate("holdout", SCORES, review=0.02)
    kept = {"known_bad_scores": [10.0, 192.0, 196.0, 198.5, 300.0]}
    found = count_known_bad(kept, calibration)
    assert (found["rejected"], found["reviewed"], found["missed"]) == (2, 1, 2)
    assert found["rejected_at"] == {"0.02": 2, "0.05": 4, "0.1": 4, "0.2": 4}
    assert found["sentence"].startswith(
        "of 5 known-bad images this model rejects 2, sends 1 to review and misses 2 (at"
    )
    assert "it has learned from them" not in found["sentence"]
    learned = count_known_bad({**kept, "known_bad_learned": True}, calibration)
    assert learned["sentence"] == found["sentence"] + ", but it has learned from them"
    assert count_known_bad(kept, Calibration()) == count_known_bad({}, calibration) == {}


def test_without_calibration_or_defects_there_is_nothing_to_say():
    assert estimate_detection([Painted("hole", 0.2, 20.0, 1.0)], Calibration()) == {}
    assert estimate_detection([], calibrate("holdout", SCORES)) == {}
    alike = [Painted("hole", share, width, 1.0) for share, width in ((0.03, 1.6), (0.04, 2.4), (0.06, 3.8))]
    assert [width for width, _ in estimate_detection(alike, calibrate("holdout", SCORES))["widths"]] == [2, 4]
