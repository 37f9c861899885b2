"""One way in for both kinds of file: what learned, for torch, and what was exported from it, for an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blemish.errors import ConfigError, needed
from blemish.inspection.exported_file import is_exported

if TYPE_CHECKING:
    from blemish.inspection.engines import EngineName
    from blemish.inspection.exported import ExportedInspector
    from blemish.inspection.inspector import Inspector
    from blemish.run import PrecisionName


def load(
    path: str | Path,
    device: str = "auto",
    precision: PrecisionName = "auto",
    weights: str | None = None,
    engine: EngineName = "auto",
    threads: int | None = None,
) -> Inspector | ExportedInspector:
    """The inspector in a file that `Inspector.save` or `blemish export` wrote; its content says which.

    Args:
        path: ``parts.blemish``, or ``parts.onnx``, for which torch is not needed.
        device: ``auto``, ``cpu`` or ``cuda``; an exported file runs on the processor.
        precision: ``auto``, ``fp32`` or ``bf16``; an exported file has its own.
        weights: for a file saved without its backbone: a file, or ``pretrained``, which may download them. By itself
            they are looked for on this machine alone.
        engine: for an exported file: ``onnxruntime`` or ``openvino``; ``auto`` takes what the file names as fastest, or
            the first that is installed.
        threads: of the processor; by default all that this process may use.

    Raises:
        ModelFileError: the file is missing, damaged, no model, or from a newer version.
        WeightsError: the backbone's weights are absent or not the ones it learned with.
        ConfigError: a name is unknown, or the engine not installed, or it does not go with this kind of file.
    """
    if is_exported(path := Path(path)):
        from blemish.inspection.exported import load_exported

        if device not in ("auto", "cpu") or precision != "auto" or weights is not None:
            raise ConfigError(f"{path} was exported: it runs on the processor, as it is; leave device, precision and "
                              "weights out, or load the file that it was exported from")  # fmt: skip
        return load_exported(path, engine, threads)
    try:
        from blemish.inspection.inspector import load as load_learned
        from blemish.run import set_threads
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} learned: {needed(error)}, or give what `blemish export` made of it") from None
    if engine != "auto":
        raise ConfigError(f"{path} is run by torch: engine={engine} is for what `blemish export` writes")
    set_threads(threads)
    return load_learned(path, device, precision, weights)
