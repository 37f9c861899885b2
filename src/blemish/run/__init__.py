"""Everything impure in learning: seed, device, threads, precision, progress, checkpoints, cancellation, safe writing.

A method is handed one ``Run`` and reads no global state. What imports torch is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blemish.run.files import check_writable, file_digest, refuse_to_replace, written_atomically
from blemish.run.progress import Bar, Lines, Progress, PythonWarnings, Silent, Warnings

if TYPE_CHECKING:
    from blemish.run.device import Precision, PrecisionName, choose_device, choose_precision, device_name, set_threads
    from blemish.run.loop import Epoch, epochs
    from blemish.run.run import Run, RunLog, Timer, derive_seed, torch_seeded
    from blemish.run.step import Step

_HOME = {"PrecisionName": "device", "choose_device": "device", "choose_precision": "device", "set_threads": "device"}
_HOME |= {"Precision": "device", "device_name": "device", "Epoch": "loop", "epochs": "loop", "Step": "step"}
_HOME |= {"Run": "run", "RunLog": "run", "Timer": "run", "derive_seed": "run", "torch_seeded": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'blemish.run' has no attribute {name!r}")
    return getattr(import_module(f"blemish.run.{_HOME[name]}"), name)
