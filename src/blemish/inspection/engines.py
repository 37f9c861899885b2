"""Engines that run an exported file on the processor: ONNX Runtime and OpenVINO, each imported when asked for.

Decisions are not taken from the graph: scores and maps are, and the calibration says of them what it says of those of
the file that was exported.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError, ModelFileError

EngineName = Literal["auto", "onnxruntime", "openvino"]
EXTRAS = {"onnxruntime": "runtime", "openvino": "openvino"}  # by preference
SIZES = 8  # of images, for which OpenVINO's compiled graph is kept; another takes about a second


@dataclass(frozen=True, eq=False)
class Session:
    """An exported graph, ready to run; may be called from several threads.

    ``run`` gives ``score`` (``n``) and ``map`` (``n h w``, None where the graph has none) of ``n h w 3`` pixels.
    """

    engine: str
    dtype: np.dtype[Any]  # of the pixels: uint8 or uint16
    run: Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any] | None]]


def choose_engine(wanted: EngineName = "auto") -> str:
    """The engine wanted, or the first that is installed; a ConfigError names the extra where there is none."""
    if wanted not in get_args(EngineName):
        raise ConfigError(f"engine {wanted!r} is unknown: choose {', '.join(get_args(EngineName))}")
    names = [*EXTRAS] if wanted == "auto" else [wanted]
    for name in names:
        if find_spec(name) is not None:
            return name
    raise ConfigError(f"{' or '.join(names)} is needed and not installed: pip install 'blemish[{EXTRAS[names[0]]}]'")


def open_session(
    path: Path, engine: EngineName = "auto", threads: int | None = None, precision: str = "fp32"
) -> Session:
    """The graph in a file, for ``threads`` (None: as many as this process may use).

    In ``bf16`` OpenVINO computes as the processor does best, and is chosen first; else all compute what is in the file.

    Raises:
        ConfigError: the engine is not installed, or ``threads`` is below 1.
        ModelFileError: the engine refuses the graph, or it takes or gives something else than exported ones do.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}: at least 1 is needed")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_bf16 = precision == "bf16"
    chosen = "openvino" if is_bf16 and engine == "auto" and find_spec("openvino") else choose_engine(engine)
    hint = "bf16" if is_bf16 else "f32"  # by itself it is bf16 where there is AMX
    opening: dict[str, Callable[[Path, int], Session]] = {
        "onnxruntime": _onnxruntime,
        "openvino": partial(_openvino, hint=hint),
    }
    try:
        session = opening[chosen](path, threads or usable)
    except Exception as error:  # engines raise their own kinds
        raise ModelFileError(f"{chosen} refuses {path} ({_reason(error)}): export it again") from error
    if session.dtype not in (np.uint8, np.uint16):
        raise ModelFileError(f"{path} takes {session.dtype} and not pixels of 8 or 16 bits: export it again")
    return session


def judged(session: Session, pixels: NDArray[Any]) -> tuple[list[float], list[NDArray[np.float32] | None]]:
    """Scores and maps of ``n h w 3`` pixels; a ModelFileError or MemoryError where the engine fails."""
    try:
        scores, maps = session.run(pixels)
    except Exception as error:
        if "alloc" in str(error) or "memory" in str(error):
            raise MemoryError(f"{pixels.shape[2]} x {pixels.shape[1]} pixels: {_reason(error)}") from error
        raise ModelFileError(f"{session.engine} cannot judge this image ({_reason(error)}): export it anew") from error
    if scores.shape != pixels.shape[:1] or (maps is not None and maps.shape != pixels.shape[:3]):
        raise ModelFileError("this graph gives no score and map of an image's own size: export it again")
    return scores.tolist(), [None] * len(scores) if maps is None else [*maps]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _onnxruntime(path: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow a server's rest
    options.log_severity_level = 4  # what it would print is raised here
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dtype = {given.name: given.type for given in session.get_inputs()}["image"].removeprefix("tensor(").rstrip(")")
    outputs = ["score", *("map" for given in session.get_outputs() if given.name == "map")]

    def run(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        found = dict(zip(outputs, session.run(outputs, {"image": pixels})))
        return found["score"], found.get("map")

    return Session("onnxruntime", np.dtype(dtype), run)


def _openvino(path: Path, threads: int, hint: str) -> Session:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    core, lock = openvino.Core(), threading.Lock()
    graph = core.read_model(str(path))
    has_map = any("map" in port.get_names() for port in graph.outputs)

    @lru_cache(SIZES)
    def compiled(shape: tuple[int, ...]) -> Any:
        # With sizes left open, OpenVINO 2026.4.1 scored the first image of each size up to three times too high and
        # all others only to a thousandth; with sizes fixed, to a hundred-thousandth.
        fixed = graph.clone()
        fixed.reshape({"image": [1, *shape]})
        return core.compile_model(fixed, "CPU", {**hints, "INFERENCE_NUM_THREADS": threads})

    def run(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        scores, maps = [], []
        with lock:  # a compiled model has one request, and what it gave is written over by the next
            for image in pixels:
                found = compiled(image.shape)({"image": image[None]})
                scores.append(found["score"].copy())
                maps += [found["map"].copy()] if has_map else []
        return np.concatenate(scores), np.concatenate(maps) if maps else None

    return Session("openvino", np.dtype(graph.input("image").get_element_type().to_dtype()), run)
