"""Blemish finds and outlines what is wrong in a picture, having learned what right looks like.

    import blemish
    inspector = blemish.fit("parts/")
    verdict = inspector("new.png")
    verdict.decision, verdict.score, verdict.p_value, verdict.regions, verdict.heatmap

The names below are imported when first used, so that ``import blemish`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blemish.data.readers import read_globs, read_training
    from blemish.errors import BlemishError, BlemishWarning
    from blemish.inspection.exported import ExportedInspector
    from blemish.inspection.inspector import Inspector
    from blemish.inspection.load import load
    from blemish.inspection.verdict import Verdict
    from blemish.run import Run
    from blemish.training.evaluate import evaluate
    from blemish.training.fit import fit
    from blemish.training.setup import FitSettings

__version__ = "0.1.0"

_HOME = {"BlemishError": "errors", "BlemishWarning": "errors", "Run": "run"}
_HOME |= {"FitSettings": "training.setup", "fit": "training.fit"}
_HOME |= {"Inspector": "inspection.inspector", "ExportedInspector": "inspection.exported"}
_HOME |= {"load": "inspection.load", "Verdict": "inspection.verdict"}
_HOME |= {"read_globs": "data.readers", "read_training": "data.readers", "evaluate": "training.evaluate"}

__all__ = ["BlemishError", "BlemishWarning", "ExportedInspector", "FitSettings", "Inspector", "Run", "Verdict"]
__all__ += ["evaluate", "fit", "load", "read_globs", "read_training"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            return getattr(import_module(f"blemish.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            needed = import_module("blemish.errors").needed(error)
            raise ModuleNotFoundError(f"blemish.{name}: {needed}", name=error.name) from None
    raise AttributeError(f"module 'blemish' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
