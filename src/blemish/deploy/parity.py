"""Whether an exported file says what the model says: both judge the same images, and the largest difference counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish.data.images import DecodedImage
from blemish.deploy.graph import DECISIONS, in_float32
from blemish.errors import ModelFileError, OutputError
from blemish.inspection import engines
from blemish.inspection.inspector import BACKBONE, Inspector

TOLERANCE = 1e-3  # of the spread of scores: on average over images
WORST = 1e-2  # of any image: where a feature is rounded to another bf16 number, as between two runs of torch, too


@dataclass(frozen=True)
class Parity:
    """How far a file was at most from its model, both in float32, on ``images`` images of ``sizes`` sizes.

    Attributes:
        spread: standard deviation of the calibration scores; without calibration, of the images' own.
        score: largest difference of scores, as a share of the spread; of scores beyond the threshold, which are as much
            rougher as they are larger, of that many spreads.
        mean_score: the mean of these.
        map: of maps, at the images' own size; None for a method without maps.
        p_value: of p-values; None without calibration.
        own_precision: in which the model computes by itself.
        own_score: largest difference to the scores that the model gives by itself.
        borderline: images decided otherwise only because rounding moved a score across the threshold.
    """

    images: int
    sizes: int
    spread: float
    score: float
    mean_score: float
    map: float | None
    p_value: float | None
    own_precision: str
    own_score: float
    borderline: int

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"scores differ by at most {self.score:.1g} of their spread ({self.mean_score:.1g} on average)"]
        parts += [] if self.map is None else [f"maps by {self.map:.2g} in their own unit"]
        parts += [] if self.p_value is None else [f"p-values by {self.p_value:.1g}"]
        own = f"; from the model's own {self.own_precision} scores by {self.own_score:.1g} of it"
        return f"{self.images} images of {self.sizes} sizes: {', '.join(parts)}{own * (self.own_precision != 'fp32')}"


def check_parity(inspector: Inspector, file: Path, pictures: Mapping[str, DecodedImage]) -> Parity:
    """Judge ``pictures`` with the model, in its own precision and in float32, and with the ONNX ``file``.

    Raises:
        OutputError: the file cannot be run, decides otherwise, or is further off than ``TOLERANCE`` of the spread, or
            its maps, on average over an image, further than ``WORST`` of what the maps span.
    """
    session = open_session(file)
    networks = _networks(file)
    precise = replace(inspector, method=in_float32(inspector.method))
    images = list(pictures.values())
    own, exact = ([*judge.stream(images, lambda image: image, batch_size=1)] for judge in (inspector, precise))
    calibration, scores = inspector.calibration, np.array([scored.score for scored in exact])
    spread = float(np.std(calibration.scores if calibration.n else scores)) or 1.0
    threshold = math.inf if calibration.threshold is None else calibration.threshold
    limits = threshold, calibration.review_limit if calibration.n else math.inf
    differ: dict[str, list[float]] = {"score": [], "map": [], "mean_map": [], "p_value": [], "own_score": []}
    ends = [end(scored.map) for scored in exact if scored.map is not None for end in (np.min, np.max)]
    span = float(np.ptp(ends)) if ends else 0.0
    span = span or 1.0  # of maps that are one number everywhere
    borderline, wrong = 0, []
    for name, image, ours, scored in zip(pictures, images, own, exact):
        found = run_session(session, image, inspector.preparation.white_level)
        unit = spread * (max(1.0, scored.score / threshold) if threshold > 0 else 1.0)
        for key, reference in (("score", scored), ("own_score", ours)):
            differ[key].append(abs(float(found["score"][0]) - reference.score) / unit)
        alone = [engines.judged(network, [inspector.preparation.pixels(image)]) for network in networks]
        differ["score"] += [abs(scores[0] - scored.score) / unit for scores, _ in alone]
        if scored.map is not None:
            map_ = inspector.preparation.to_original(scored.map, image.size)
            apart = np.abs(found["map"][0] - map_)
            differ["map"].append(float(apart.max()))
            aparts = [apart, *(np.abs(np.asarray(own_maps[0]) - scored.map) for _, own_maps in alone)]
            differ["mean_map"] += [float(each.mean()) / span for each in aparts]
        if "p_value" in found:
            differ["p_value"].append(abs(float(found["p_value"][0]) - calibration.p_value(scored.score)))
            decided, expected = DECISIONS[found["decision"][0]], {calibration.decide(s.score) for s in (scored, ours)}
            if expected != {decided}:
                is_near = min(abs(scored.score - limit) for limit in limits) <= WORST * spread
                borderline += is_near
                wrong += [] if is_near else [f"{name} is {decided} in the file, {' or '.join(expected)} in the model"]
    judge = inspector.method
    dtypes = {judge.backbone.precision.name}
    if judge.precision is not None and any(not name.startswith(BACKBONE) for name, _ in judge.named_parameters()):
        dtypes.add(judge.precision.name)
    parity = Parity(
        images=len(images),
        sizes=len({image.size for image in images}),
        spread=spread,
        score=float(max(differ["score"])),
        mean_score=float(np.mean(differ["score"])),
        map=max(differ["map"], default=None),
        p_value=max(differ["p_value"], default=None),
        own_precision="bf16" if "bf16" in dtypes else "fp32",
        own_score=float(max(differ["own_score"])),
        borderline=borderline,
    )
    are_maps_alike = all(apart <= WORST for apart in differ["mean_map"])  # False of NaN
    if wrong or not (parity.mean_score <= TOLERANCE and parity.score <= WORST and are_maps_alike):
        decisions = f" Decisions differ: {'; '.join(wrong[:3])}." if wrong else ""
        decisions += "" if are_maps_alike else f" Maps differ by up to {max(differ['mean_map']):.1g} of what they span."
        if wrong and parity.own_precision != "fp32":
            decisions += " The file computes in fp32: calibrate the model so, with blemish calibrate --precision fp32."
        raise OutputError(f"the file does not judge as the model does, so it was not kept. {parity}.{decisions}")
    return parity


def _networks(file: Path) -> list[engines.Session]:
    """By every engine installed, as ``blemish inspect`` runs it."""
    installed: list[Any] = [name for name in engines.EXTRAS if find_spec(name)]
    try:
        return [engines.open_session(file, name, torch.get_num_threads()) for name in installed]
    except ModelFileError as error:
        raise OutputError(f"an engine cannot run the graph ({error.__cause__ or error}): nothing written") from error


def open_session(file: Path) -> Any:
    """ONNX Runtime on a file, with as many threads as torch has; an OutputError names what it cannot run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds have no common parent but this
        raise OutputError(f"ONNX Runtime cannot run the graph ({error}): nothing was written") from error


def run_session(session: Any, image: DecodedImage, white_level: int) -> dict[str, Any]:
    """The file's outputs by name, of one image."""
    outputs, channels = [output.name for output in session.get_outputs()], session.get_inputs()[0].shape[3]
    return dict(zip(outputs, session.run(None, inputs(image, white_level, channels))))


def inputs(image: DecodedImage, white_level: int, channels: int) -> dict[str, Any]:
    """What a file made for that level and so many channels takes of an image."""
    pixels = image.pixels[..., :channels]
    pixels = np.rint(pixels * white_level) if image.bits == 32 else pixels
    if white_level == 255:
        return {"image": pixels[None].astype(np.uint8)}
    white = np.array(255 if image.bits == 8 else white_level, np.float32)
    return {"image": pixels[None].astype(np.uint16), "white": white}
