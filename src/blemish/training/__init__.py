"""From images to a fitted model: learning, calibration, evaluation, audits. Knows nothing of the bench."""
