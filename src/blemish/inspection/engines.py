"""Engines that run an exported file on the processor: ONNX Runtime and OpenVINO, each imported when asked for.

They run the network and what follows from it to score and map, always on images of one size: preparation, and the way
of a map back, are ours, the same as where torch computes. Nor are decisions taken from the graph: the calibration says
of scores and maps what it says of those of the file that was exported.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError, ModelFileError
from blemish.inspection.exported_file import network
from blemish.run.files import check_threads, usable_cores

EngineName = Literal["auto", "onnxruntime", "openvino"]
EXTRAS = {"onnxruntime": "runtime", "openvino": "openvino"}  # by preference
# Else ONNX Runtime from 1.32 on tells its maker of its use over the internet, as openvino does when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@dataclass(frozen=True, eq=False)
class Session:
    """An exported network, ready to run; may be called from several threads.

    ``run`` gives ``score`` (``n``) and ``map`` (``n y x``, None where there is none) of ``n 3 y x`` in [0, 1].
    """

    engine: str
    run: Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any] | None]]


def choose_engine(wanted: EngineName = "auto", fastest: str = "") -> str:
    """The engine wanted, or of those installed the ``fastest`` or the first; a ConfigError where there is none."""
    if wanted not in get_args(EngineName):
        raise ConfigError(f"engine {wanted!r} is unknown: choose {', '.join(get_args(EngineName))}")
    names = sorted(EXTRAS, key=lambda name: name != fastest) if wanted == "auto" else [wanted]
    for name in names:
        if find_spec(name) is not None:
            return name
    raise ConfigError(f"{' or '.join(names)} is needed and not installed: pip install 'blemish[{EXTRAS[names[0]]}]'")


def open_session(
    path: Path, engine: EngineName = "auto", threads: int | None = None, precision: str = "fp32", fastest: str = ""
) -> Session:
    """The network in a file, for ``threads`` (None: as many as this process may use).

    In ``bf16`` OpenVINO computes as the processor does best, and is chosen where none is known to be the ``fastest``;
    else all compute what is in the file.

    Raises:
        ConfigError: the engine is not installed, or ``threads`` is out of range.
        ModelFileError: the engine refuses the graph.
    """
    check_threads(threads)
    is_bf16 = precision == "bf16"
    chosen = choose_engine(engine, fastest or "openvino" * is_bf16)
    hint = "bf16" if is_bf16 else "f32"  # by itself it is bf16 where there is AMX
    try:
        content, count = network(path), threads or usable_cores()
        return _openvino(content, count, hint) if chosen == "openvino" else _onnxruntime(content, count)
    except ModelFileError:
        raise
    except Exception as error:  # engines raise their own kinds
        raise ModelFileError(f"{chosen} refuses {path} ({_reason(error)}): export it again") from error


def judged(session: Session, prepared: Sequence[NDArray[Any]]) -> tuple[list[float], list[NDArray[np.float32] | None]]:
    """Scores and maps of what ``Preprocessing.pixels`` gave; a ModelFileError or MemoryError where the engine fails."""
    scaled = (np.divide(one, 255 if one.dtype == np.uint8 else 1, dtype=np.float32) for one in prepared)
    planes = [np.moveaxis(one, 2, 0) for one in scaled]
    images = np.stack([np.broadcast_to(one, (3, *one.shape[1:])) for one in planes])
    try:
        scores, maps = session.run(images)
    except Exception as error:
        if "alloc" in str(error) or "memory" in str(error):
            raise MemoryError(f"{images.shape[3]} x {images.shape[2]} pixels: {_reason(error)}") from error
        raise ModelFileError(f"{session.engine} cannot judge this image ({_reason(error)}): export it anew") from error
    if scores.shape != images.shape[:1] or (maps is not None and maps.shape != (len(images), *images.shape[2:])):
        raise ModelFileError("this graph gives no score and map of its input's size: export it again")
    return scores.tolist(), [None] * len(scores) if maps is None else [*maps]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _onnxruntime(content: bytes, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow a server's rest
    options.log_severity_level = 4  # what it would print is raised here
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    kinds = {given.name: given.type.removeprefix("tensor(").rstrip(")") for given in session.get_inputs()}
    outputs = [given.name for given in session.get_outputs()]
    sizes = {
        given.name: [side if isinstance(side, int) else 1 for side in given.shape[1:]] for given in session.get_inputs()
    }

    def run(images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        given = {"prepared": images}
        if "image" in kinds:
            given["image"] = np.zeros((len(images), *sizes["image"]), kinds["image"])
        found = dict(zip(outputs, session.run(outputs, given)))
        return found["score"], found.get("input_map")

    return Session("onnxruntime", run)


def _openvino(content: bytes, threads: int, hint: str) -> Session:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    core, lock = openvino.Core(), threading.Lock()
    graph = core.read_model(content)
    # With the number of images left open, OpenVINO 2026.4.1 scored the first ones up to three times too high and all
    # others only to a thousandth; with it fixed, to a hundred-thousandth.
    given = {port.get_any_name(): list(port.partial_shape)[1:] for port in graph.inputs}
    shapes = {
        name: [1, *(side.get_length() if side.is_static else 1 for side in sides)] for name, sides in given.items()
    }
    kinds = {port.get_any_name(): port.get_element_type().to_dtype() for port in graph.inputs}
    graph.reshape(shapes)
    rest = {"image": np.zeros(shapes["image"], kinds["image"])} if "image" in shapes else {}
    compiled = core.compile_model(graph, "CPU", hints)
    has_map = any("input_map" in port.get_names() for port in graph.outputs)

    def run(images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        scores, maps = [], []
        with lock:  # a compiled model has one request, and what it gave is written over by the next
            for start in range(len(images)):
                found = compiled({"prepared": images[start : start + 1], **rest})
                scores.append(found["score"].copy())
                maps += [found["input_map"].copy()] if has_map else []
        return np.concatenate(scores), np.concatenate(maps) if maps else None

    return Session("openvino", run)
