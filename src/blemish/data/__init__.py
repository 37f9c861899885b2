"""Images and what is known of them: reading sets, splitting them by part.

Importing this package does not import torch. What does is imported by its own name: ``blemish.data.preparation`` and
``blemish.data.loading``. ``blemish.data.testset`` holds ground truth and is for evaluation and the bench alone.
"""

from blemish.data.images import MAX_PIXELS, Raster, full_scale, read_image
from blemish.data.readers import read_globs, read_training, shared_files
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import folds_by_group, split_by_group
from blemish.data.surveying import survey

__all__ = [
    "MAX_PIXELS",
    "Raster",
    "Sample",
    "TrainingSet",
    "folds_by_group",
    "full_scale",
    "read_globs",
    "read_image",
    "read_training",
    "shared_files",
    "split_by_group",
    "survey",
]
