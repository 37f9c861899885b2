"""Everything impure in learning: seed, device, threads, precision, progress, checkpoints, cancellation, safe writing.

A method is handed one ``Run`` and reads no global state. Each automatic choice carries its reason, and is said once.
"""

from blemish.run.checkpoint import Stateful
from blemish.run.device import (
    Precision,
    PrecisionName,
    choose_device,
    choose_precision,
    has_bf16_units,
    set_threads,
)
from blemish.run.files import check_writable, written_atomically
from blemish.run.loop import Epoch, epochs
from blemish.run.progress import Bar, Lines, Progress, Silent, Title, Warnings
from blemish.run.run import Run, RunLog, Timer, derive_seed, torch_seeded

__all__ = [
    "Bar",
    "Epoch",
    "Lines",
    "Precision",
    "PrecisionName",
    "Progress",
    "Run",
    "RunLog",
    "Silent",
    "Stateful",
    "Timer",
    "Title",
    "Warnings",
    "check_writable",
    "choose_device",
    "choose_precision",
    "derive_seed",
    "epochs",
    "has_bf16_units",
    "set_threads",
    "torch_seeded",
    "written_atomically",
]
