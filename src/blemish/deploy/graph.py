"""A whole inspector as one module of tensors: pixels in; score, p-value, decision, map and mask out."""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from blemish.contract import Backbone, Method
from blemish.deploy.preparation import Prepare, ToOriginal
from blemish.inspection.calibration import Calibration
from blemish.inspection.inspector import Inspector
from blemish.run import Precision

DECISIONS = ("ok", "review", "reject")  # by number
IN_FLOAT32 = Precision(torch.float32, channels_last=False, reason="as an exported file computes")


class Deployed(nn.Module):
    """What ``Inspector`` says of images ``n h w 3``, or ``n h w 1`` of grey ones, in float32 whatever it computes in.

    Attributes:
        inputs: the names of ``forward``'s arguments after the images, and their defaults.
        outputs: the names of what it gives; ``prepared`` and ``input_map`` are before and after the network.
    """

    def __init__(self, inspector: Inspector, with_white: bool) -> None:
        super().__init__()
        self.method = in_float32(inspector.method)
        self.prepare, self.to_original = Prepare(inspector.preparation), ToOriginal(inspector.preparation)
        self.p_values = PValues(inspector.calibration) if inspector.calibration.kind != "none" else None
        self.white_level = inspector.preparation.white_level
        self.with_white = with_white
        with torch.inference_mode():
            self.input_size = inspector.preparation.input_size
            map_ = self.method(torch.zeros(1, 3, *self.input_size)).map  # it also keeps what is computed once
        calibration = inspector.calibration
        self.inputs = {"white": float(self.white_level)} if with_white else {}
        self.outputs = ["prepared", "score"]
        if self.p_values is not None:
            self.inputs["reject_above"] = below(calibration.threshold)
            self.inputs["review_above"] = below(calibration.review_limit)
            self.outputs += ["p_value", "decision"]
        if map_ is not None:
            self.outputs += ["input_map", "map"]
            if calibration.pixel_threshold is not None:
                self.inputs["pixel_threshold"] = below(calibration.pixel_threshold)
                self.outputs.append("mask")

    def forward(self, image: Tensor, *options: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, options, strict=True))
        white = given.get("white", torch.full((), float(self.white_level)))
        prepared = self.prepare(image, white)
        if image.shape[3] == 1:
            prepared = prepared.expand(-1, 3, -1, -1)
        prediction = self.method(prepared)
        score = prediction.score.float()
        results = {"prepared": prepared, "score": score}
        if self.p_values is not None:
            results["p_value"] = self.p_values(score)
            is_reject, is_review = ~(score <= given["reject_above"]), score > given["review_above"]
            results["decision"] = torch.where(is_reject, 2, torch.where(is_review, 1, 0))
        if prediction.map is not None:
            results["input_map"] = prediction.map.float()
            results["map"] = self.to_original(results["input_map"], image)
            if "pixel_threshold" in given:
                results["mask"] = results["map"] > given["pixel_threshold"]
        return tuple(results[name] for name in self.outputs)


class PValues(nn.Module):
    """p-values ``n`` of scores ``n``, float32, as ``Calibration.p_value`` gives them; of NaN the smallest there is."""

    scores: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.tail, self.n = calibration.tail, calibration.n
        self.register_buffer("scores", torch.tensor([below(score) for score in calibration.scores.tolist()]))

    def forward(self, score: Tensor) -> Tensor:
        score = torch.where(score.isnan(), math.inf, score)
        p_value = (1 + self.n - (self.scores < score[:, None]).sum(dim=1)).float() / (self.n + 1)
        if self.tail is None:
            return p_value
        excess = (score - self.tail.start) / self.tail.total
        beyond = self.tail.share * (1 + excess.clamp(min=0)) ** -self.tail.free
        return torch.where(score > below(self.tail.start), beyond, p_value)


def in_float32(method: Method) -> Method:
    """A copy that computes in float32."""
    method = copy.deepcopy(method).cpu().eval()
    method.precision = IN_FLOAT32
    for network in method.modules():  # its backbone, and copies of it that have learned
        if isinstance(network, Backbone):
            network.precision = IN_FLOAT32
    return method


def below(number: float | None) -> float:
    """The largest float32 not above a number: float32 numbers exceed both or neither."""
    if number is None:
        return math.inf
    with np.errstate(over="ignore"):
        rounded = np.float32(number)
    # As Python's numbers: NumPy would compare in float32.
    return float(rounded if float(rounded) <= number else np.nextafter(rounded, np.float32(-math.inf)))
