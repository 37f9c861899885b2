"""What users hold: the inspector, its calibration, regions and pictures."""
