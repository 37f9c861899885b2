"""Everything impure in learning: seed, device, threads, precision, progress, checkpoints, cancellation, safe writing.

A method is handed one ``Run`` and reads no global state. Each automatic choice carries its reason, and is said once.
"""

from blemish.run.checkpoints import Stateful
from blemish.run.precision import (
    Precision,
    PrecisionName,
    choose_device,
    choose_precision,
    has_bf16_units,
    set_threads,
)
from blemish.run.progress import Bar, Lines, Progress, Silent, Title, Warnings
from blemish.run.seeds import derive_seed, torch_seeded
from blemish.run.training import Epoch, Length
from blemish.run.work import Clock, Journal, Run
from blemish.run.writing import check_writable, written_atomically

__all__ = [
    "Bar",
    "Clock",
    "Epoch",
    "Journal",
    "Length",
    "Lines",
    "Precision",
    "PrecisionName",
    "Progress",
    "Run",
    "Silent",
    "Stateful",
    "Title",
    "Warnings",
    "check_writable",
    "choose_device",
    "choose_precision",
    "derive_seed",
    "has_bf16_units",
    "set_threads",
    "torch_seeded",
    "written_atomically",
]
