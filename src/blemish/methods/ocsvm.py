"""OCSVM: a one-class support vector machine on an image's pooled features; no map.

Idea: the smallest region, in a space that a Gaussian kernel spans, that holds all good images but a share ``nu``. It
is said by a few of them, the support vectors, each with a weight.
Score: the threshold less the sum over the support vectors of weight times exp(-gamma |x - v|^2): above 0 outside the
region. There is no map.
Tables that name it give no settings. Here (our reading): the channels' means over the image, of all stages,
standardised on the good images; nu .1 and gamma 1 over numbers times variance, scikit-learn's "scale". Often nu and
gamma are chosen by the test labels; here never. Differences: docs/methods/ocsvm.md.

Schölkopf, Platt, Shawe-Taylor, Smola, Williamson: Estimating the Support of a High-Dimensional Distribution, 2001.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Layers
from blemish.ops.norms import Standardisation
from blemish.ops.passes import check_number, check_spread, image_vectors
from blemish.run import Run

FEWEST = 4  # images
TOLERANCE = 1e-5  # of the optimality conditions, in the kernel's unit
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OCSVMConfig:
    """Our reading: the texts that compare with it give no settings."""

    layers: Annotated[Layers, Field(description="stages whose channels are averaged over the image")] = (1, 2, 3, 4)
    nu: Annotated[
        float, Field(gt=0, le=1, description="share of good images that may lie outside; of support vectors at least")
    ] = 0.1
    gamma: Annotated[
        float | None, Field(gt=0, description="of the kernel; null: 1 over numbers times variance of the features")
    ] = None
    most: Annotated[
        int, Field(ge=4, le=10_000, description="images that it learns from, drawn at random where there are more")
    ] = 5_000


class OCSVM(Method):
    """``support`` ``n d``, its ``weights`` ``n`` and the threshold ``rho``; features are standardised by ``scale``."""

    Config = OCSVMConfig
    config: OCSVMConfig
    support: Tensor
    weights: Tensor
    rho: Tensor
    gamma: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: OCSVMConfig) -> None:
        super().__init__(backbone, size, config)
        width = sum(level.channels for level in backbone.levels)
        self.scale = Standardisation([width])
        self.register_buffer("support", torch.empty(0, width))
        self.register_buffer("weights", torch.empty(0))
        self.register_buffer("rho", torch.zeros(()))
        self.register_buffer("gamma", torch.ones(()))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images, order = self.config, training.normal, None
        check_number("ocsvm", images, FEWEST, "a region that holds good images")
        if len(images) > config.most:
            run.progress.note(
                f"note: ocsvm compares all pairs of images, which {len(images)} are too many for: it learns from "
                f"{config.most} drawn at random (--set most=N)"
            )
            order = sorted(run.permutation(len(images), "images that are learned from")[: config.most])
        vectors = torch.cat(image_vectors(images, teacher, run, order), dim=1)[:, :, None, None]
        self.scale.learn([[vectors]])
        points = self.scale([vectors])[0].flatten(1).double()
        spread = float(points.var(correction=0))
        check_spread("ocsvm", spread, images)
        gamma = config.gamma or 1 / (points.shape[1] * spread)
        squares = points.square().sum(dim=1)
        distances = (squares[:, None] + squares - 2 * points @ points.T).clamp_min(0)
        weights, rho = one_class_svm((-gamma * distances).exp().cpu().numpy(), config.nu)
        kept = torch.from_numpy(weights > 0).to(points.device)
        self.support, self.weights = points[kept].float(), torch.from_numpy(weights).to(points)[kept].float()
        self.rho.fill_(rho)
        self.gamma.fill_(gamma)

    def predict(self, images: Tensor) -> Prediction:
        vectors = torch.cat([map_.mean(dim=(2, 3), keepdim=True) for map_ in self.backbone(images)], dim=1)
        squares = (self.scale([vectors])[0].flatten(1)[:, None] - self.support).square().sum(dim=2)
        return Prediction(None, self.rho - (-self.gamma * squares).exp() @ self.weights)


def one_class_svm(kernel: Floats, nu: float) -> tuple[Floats, float]:
    """Weights ``n``, each in [0, 1] and nu n in all, that minimise w' K w / 2 for a kernel ``n n``; and the threshold.

    Sequential minimal optimisation: the two weights whose shift lowers it most steeply, again and again. The threshold
    is what K w is at weights between their bounds.
    """
    count = len(kernel)
    weights = np.clip(nu * count - np.arange(count), 0, 1)
    slope = kernel @ weights
    diagonal = kernel.diagonal()
    for _ in range(10_000 * count):
        gaining = int(np.where(weights < 1, slope, np.inf).argmin())
        losing = int(np.where(weights > 0, slope, -np.inf).argmax())
        if weights[gaining] == 1 or slope[losing] - slope[gaining] < TOLERANCE:
            break
        curvature = max(diagonal[gaining] + diagonal[losing] - 2 * kernel[gaining, losing], 1e-12)
        step = min((slope[losing] - slope[gaining]) / curvature, 1 - weights[gaining], weights[losing])
        weights[gaining] += step
        weights[losing] -= step
        slope += step * (kernel[gaining] - kernel[losing])
    free = (weights > 0) & (weights < 1)
    return weights, float(slope[free].mean() if free.any() else (slope[gaining] + slope[losing]) / 2)
