"""Whether an exported file says what the model says: both judge the same images, and the largest difference counts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.images import DecodedImage
from blemish.deploy.graph import DECISIONS, in_float32
from blemish.errors import OutputError
from blemish.inspection.inspector import Inspector

TOLERANCE = 1e-3  # of the spread of scores


@dataclass(frozen=True)
class Parity:
    """How far a file was at most from its model, both in float32, on ``images`` images of ``sizes`` sizes.

    Attributes:
        spread: standard deviation of the calibration scores; without calibration, of the images' own.
        score: largest difference of scores.
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
    map: float | None
    p_value: float | None
    own_precision: str
    own_score: float
    borderline: int

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"scores differ by at most {self.score:.2g}, {self.score / self.spread:.1g} of their spread"]
        parts += [f"maps by {self.map:.2g}"] * (self.map is not None)
        parts += [f"p-values by {self.p_value:.1g}"] * (self.p_value is not None)
        own = f"; from the model's own {self.own_precision} scores by {self.own_score:.2g}"
        return f"{self.images} images of {self.sizes} sizes: {', '.join(parts)}{own * (self.own_precision != 'fp32')}"


def compare(inspector: Inspector, file: Path, pictures: Mapping[str, DecodedImage]) -> Parity:
    """Judge ``pictures`` with the model, in its own precision and in float32, and with the ONNX ``file``.

    Raises:
        OutputError: the file cannot be run, decides otherwise, or is further off than ``TOLERANCE`` of the spread.
    """
    session = open_session(file)
    precise = replace(inspector, method=in_float32(inspector.method))
    names, images = list(pictures), list(pictures.values())
    own, exact = (
        [*judge.stream(images, lambda image: image, batch_size=1)] for judge in (inspector, precise)
    )
    calibration, scores = inspector.calibration, np.array([scored.score for scored in exact])
    spread = float(np.std(calibration.scores if calibration.n else scores)) or 1.0
    largest = {"score": 0.0, "map": 0.0, "p_value": 0.0, "own_score": 0.0}
    borderline, wrong = 0, []
    for name, image, ours, scored in zip(names, images, own, exact):
        found = run_session(session, image, inspector.preparation.white_level)
        score = float(found["score"][0])
        differences = {"score": score - scored.score, "own_score": score - ours.score}
        if scored.map is not None:
            differences["map"] = found["map"][0] - inspector.preparation.to_original(scored.map, image.size)
        if "p_value" in found:
            differences["p_value"] = found["p_value"][0] - calibration.p_value(scored.score)
            decided = DECISIONS[found["decision"][0]]
            expected = {calibration.decide(scored.score), calibration.decide(ours.score)}
            if expected != {decided}:
                near = min(abs(scored.score - limit) for limit in (calibration.threshold, calibration.review_limit))
                borderline += (is_near := near <= TOLERANCE * spread and ours.score == scored.score)
                wrong += [] if is_near else [f"{name} is {decided} in the file and {' or '.join(expected)} here"]
        for key, difference in differences.items():
            largest[key] = max(largest[key], float(np.max(np.abs(difference))))
    precision = inspector.method.backbone.precision.name
    trained = inspector.method.precision.name if inspector.method.precision else precision
    has_maps, known = exact[0].map is not None, calibration.kind != "none"
    parity = Parity(
        images=len(images),
        sizes=len({image.size for image in images}),
        spread=spread,
        score=largest["score"],
        map=largest["map"] if has_maps else None,
        p_value=largest["p_value"] if known else None,
        own_precision="bf16" if "bf16" in (precision, trained) else "fp32",
        own_score=largest["own_score"],
        borderline=borderline,
    )
    if wrong or not parity.score <= TOLERANCE * spread:
        raise OutputError(f"the exported file does not judge as the model does, so it was not kept: {parity}. {wrong}")
    return parity


def open_session(file: Path) -> Any:
    """ONNX Runtime on a file, with as many threads as torch has; an OutputError names what it cannot run."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds have no common parent but this
        raise OutputError(f"ONNX Runtime cannot run the graph ({error}): nothing was written") from error


def run_session(session: Any, image: DecodedImage, white_level: int) -> dict[str, Any]:
    """The file's outputs by name, of one image."""
    given: dict[str, Any] = {"image": image.pixels[None]}
    if white_level > 255:
        given["image"] = np.minimum(image.pixels, white_level).astype(np.uint16)[None]
        given["white"] = np.array(white_level if image.bits == 16 else 255, np.float32)
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, given)))
