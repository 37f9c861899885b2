"""Cheaper arithmetic for an exported file, kept only where it gains on this machine; and which engine is fastest here.

``int8``: the network's weights in eight bits, one scale a channel, and ranges of activations from good images and from
copies with blots; all else stays in float32. ``bf16``: a word to OpenVINO, which computes products in it where the
processor has units for it.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blemish.data.images import DecodedImage
from blemish.data.preprocessing import Preprocessing
from blemish.deploy.parity import inputs
from blemish.errors import ConfigError, DataError, OutputError
from blemish.inspection.engines import EXTRAS, EngineName, choose_engine
from blemish.inspection.exported import ExportedInspector, load_exported
from blemish.inspection.exported_file import KEY, SEAL, sealed
from blemish.inspection.judge import Source
from blemish.run.files import written_atomically

ExportPrecision = Literal["fp32", "int8", "bf16"]
NETWORK = "method.backbone"  # in the names of scopes that torch's exporter gives to nodes
QUANTISED = ["Conv", "Gemm", "MatMul", "Clip", "Relu", "Add", "AveragePool"]
FEWEST, TURNS = 8, 2  # images, half of them for the scales of activations; and times that each of the others is judged
WARM_UP, MEASURED = 3, 20  # verdicts of each engine, which take turns
BLOTS = 4  # on each copy, a quarter of its sides long
LEAST_GAIN, MOST_CHANGED, MOST_SHIFT = 0.1, 0.1, 0.5  # of the time, of the decisions, of the scores' spread


@dataclass(frozen=True)
class Cost:
    """What a precision gains and costs on good images: milliseconds of one, and scores in deviations of good ones'."""

    precision: str
    engine: str
    ms: float
    ms_fp32: float  # with the engine that is faster then
    shift: float
    largest_shift: float
    changed: int | None  # None: the model decides nothing
    images: int

    @property
    def pays(self) -> bool:
        """Whether it is worth having."""
        is_close = (self.changed or 0) <= MOST_CHANGED * self.images and self.shift <= MOST_SHIFT
        return self.ms <= (1 - LEAST_GAIN) * self.ms_fp32 and is_close

    def __str__(self) -> str:
        """One sentence for people."""
        decided = f"; {self.changed} of {self.images} good images are decided otherwise" * (self.changed is not None)
        return (
            f"{self.precision} on {self.engine}: {self.ms:.1f} ms an image instead of {self.ms_fp32:.1f}; scores move "
            f"by {self.shift:.2f} of their spread, at most {self.largest_shift:.2f}{decided}. What it finds is "
            "measured by `blemish evaluate`"
        )


def convert(
    source: Path,
    target: Path,
    precision: ExportPrecision,
    images: Mapping[str, DecodedImage],
    threads: int | None = None,
    is_forced: bool = False,
) -> Cost:
    """Write the exported file ``source`` as ``target`` in another precision; what that costs on good ``images``.

    A DataError where the images are too few, an OutputError where it does not pay here, unless ``is_forced``.
    """
    if precision == "bf16":
        choose_engine("openvino")
    installed: list[EngineName] = [engine for engine in ("onnxruntime", "openvino") if find_spec(engine)]
    usual = {engine: load_exported(source, engine, threads) for engine in installed}
    judge = next(iter(usual.values()))
    check_measurable(precision, len(images), judge.preparation)
    chosen = list(images.values())
    with written_atomically(target) as temporary:
        if precision == "int8":
            _quantise(source, temporary, chosen[::2], judge.preparation.white_level)
        note(temporary if precision == "int8" else source, temporary, precision=precision)
        able = installed if precision == "int8" else installed[-1:]
        cheaper = {engine: load_exported(temporary, engine, threads) for engine in able}
        cost = _compared(precision, usual, cheaper, [judge.prepared(image) for image in chosen[1::2]])
        if not cost.pays and not is_forced:
            raise OutputError(f"{precision} does not pay here, so nothing was written. {cost}. Give --precision fp32")
        note(temporary, temporary, precision_cost=asdict(cost))
    return cost


def check_measurable(
    precision: str, images: int, preparation: Preprocessing, way_out: str = "give more, or --precision fp32"
) -> None:
    """A DataError where ``images`` are too few to measure a precision on, a ConfigError of none and of tiles."""
    if preparation.tiling is not None:
        raise ConfigError(
            f"{precision} is measured on whole images, and this model judges tiles: give --precision fp32"
        )
    if images < FEWEST:
        error = DataError if images else ConfigError
        raise error(f"{precision} is measured on {FEWEST} good images or more, and there are {images}: {way_out}")


def note(source: Path, target: Path, **facts: Any) -> None:
    """Write the exported file ``source`` as ``target``, with ``facts`` of how it was exported in its description."""
    import onnx

    model = onnx.load(source)
    properties = {entry.key: entry.value for entry in model.metadata_props if entry.key != SEAL.decode()}
    description = json.loads(properties[KEY])
    description["export"] |= facts
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties | {KEY: json.dumps(description, sort_keys=True)})
    target.write_bytes(sealed(model.SerializeToString()))


def _quantise(source: Path, target: Path, images: list[DecodedImage], white: int) -> None:
    """Ranges of activations are of the images and of copies with blots, as defects excite what good parts do not.

    From good images alone a gross defect lost a quarter of its score, and the good ones did not become more exact.
    """
    import onnx
    import onnxruntime
    from onnxruntime import quantization as q

    onnxruntime.set_default_logger_severity(3)  # its sessions tell of inputs that have values of their own, as meant
    rng, blotted = np.random.default_rng(0), [replace(image, pixels=image.pixels.copy()) for image in images]
    for image in blotted:
        rows, columns = image.size
        height, width = -(-rows // 4), -(-columns // 4)
        for _ in range(BLOTS):
            top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
            colour = rng.integers(0, {8: 255, 16: white, 32: 1}[image.bits] + 1, 3)
            image.pixels[top : top + height, left : left + width] = colour

    class Images(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([*images, *blotted])

        def get_next(self) -> dict[str, Any] | None:
            return next((inputs(image, white, channels) for image in self.left), None)

    graph = onnx.load(source).graph
    channels = graph.input[0].type.tensor_type.shape.dim[3].dim_value
    weights = {tensor.name for tensor in graph.initializer}
    inside = [
        node.name
        for node in graph.node
        if any(NETWORK in entry.value for entry in node.metadata_props)
        and (node.op_type != "MatMul" or node.input[1] in weights)  # attention suffers most, and gains nothing
    ]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends what gains nothing here
    try:
        q.quantize_static(
            source, target, Images(), q.QuantFormat.QDQ, QUANTISED, per_channel=True, nodes_to_quantize=inside,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        )  # fmt: skip
    finally:
        logging.disable(before)


def _compared(
    precision: str,
    usual: Mapping[Any, ExportedInspector],
    cheaper: Mapping[Any, ExportedInspector],
    prepared: list[Any],
) -> Cost:
    """All judge each image in turns; of each the quickest counts, so that a busy machine disturbs less."""
    judges = {("fp32", name): judge for name, judge in usual.items()}
    judges |= {(precision, name): judge for name, judge in cheaper.items()}
    scores, times = {key: list[float]() for key in judges}, {key: list[float]() for key in judges}
    for number, pixels in enumerate([prepared[0], *prepared]):  # the first to warm up
        runs: dict[Any, list[tuple[float, float]]] = {key: [] for key in judges}
        for key in [*judges] * TURNS:
            start = time.perf_counter()
            ((score, _),) = judges[key].computed([pixels])
            runs[key].append((1000 * (time.perf_counter() - start), score))
        for key in judges if number else ():
            times[key].append(min(runs[key])[0])
            scores[key].append(runs[key][-1][1])
    speed = {key: float(np.median(values)) for key, values in times.items()}
    quickest = sorted(speed, key=lambda key: speed[key])
    exact, chosen = (next(key for key in quickest if key[0] == name) for name in ("fp32", precision))
    calibration, before, after = judges[exact].calibration, scores[exact], scores[chosen]
    shifts = np.abs(np.subtract(after, before)) / (float(np.std(calibration.scores if calibration.n else before)) or 1)
    changed = None
    if calibration.kind != "none":
        changed = sum(calibration.decide(one) != calibration.decide(other) for one, other in zip(after, before))
    shift, largest = float(shifts.mean()), float(shifts.max())
    return Cost(precision, chosen[1], speed[chosen], speed[exact], shift, largest, changed, len(prepared))


def times(file: Path, images: Sequence[Source], threads: int | None) -> dict[str, dict[str, float]]:
    """Milliseconds from image to verdict, ``p50`` and ``p95``, by each engine installed, the fastest first.

    They take turns, so that whatever else the machine does slows all of them.
    """
    judges = {name: load_exported(file, name, threads) for name in EXTRAS if find_spec(name)}  # type: ignore[arg-type]
    taken: dict[str, list[float]] = {name: [] for name in judges}
    for number, image in enumerate(islice(cycle(images), WARM_UP + MEASURED)):
        for name, judge in judges.items():
            start = time.perf_counter()
            judge(image)
            taken[name] += [1000 * (time.perf_counter() - start)] * (number >= WARM_UP)
    found = {name: dict(zip(("p50", "p95"), np.quantile(each, (0.5, 0.95)).tolist())) for name, each in taken.items()}
    return dict(sorted(found.items(), key=lambda entry: entry[1]["p95"]))


def within_budget(file: Path, most: float, images: Sequence[Source], threads: int | None) -> tuple[dict[str, Any], str]:
    """Note in an exported file the engine that is fastest from image to verdict; milliseconds of all, and one sentence.

    A ConfigError names the fastest where 19 of 20 verdicts take longer than ``most`` milliseconds.
    """
    found = times(file, images, threads)
    fastest = next(iter(found))
    told = ", ".join(f"{name} {taken['p95']:.1f} ms" for name, taken in found.items())
    words = f"image to verdict, 19 of 20 images, now, on this machine: {told}"
    if found[fastest]["p95"] > most:
        raise ConfigError(
            f"no engine judges an image in {most:g} ms here, so nothing was written. {words}. Try --precision bf16, "
            "int8, more --threads, or a smaller model by blemish fit --budget"
        )
    facts: dict[str, Any] = {"fastest": fastest, "milliseconds": found}
    note(file, file, **facts)
    return facts, f"{words}; --engine auto takes the first where it is installed"
