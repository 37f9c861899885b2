"""FastFlow: a normalising flow over each feature map; a place is bad where its features are unlikely.

Idea: convolutional steps that can be undone turn the features of good images, of several stages of a frozen network,
into independent standard normal numbers z. What good images never showed lands far from 0.
Loss: minus the log-likelihood of a map's features, summed over the levels.
Score: a place's is -exp(-z²/2), z² averaged over channels; the map is that, enlarged and averaged over the levels; an
image's score is its highest value.
The paper has no code. As in known ones (github.com/gathierry/FastFlow, anomalib) a layer norm over the whole map comes
first, whose trained scale the likelihood does not count. Differences: docs/methods/fastflow.md.

Yu et al.: FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows, 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Batch, Method, Prediction, Teacher, TrainingImages
from blemish.ops.config import Count, Layers, Rate, Sigma, Steps, Weight
from blemish.ops.coupling import Flow, convolutional, negative_log_likelihood, train
from blemish.ops.smoothing import upscale
from blemish.run import Run


@dataclass(frozen=True)
class FastFlowConfig:
    """The known settings for ResNet18."""

    layers: Annotated[Layers, Field(description="stages over each of which a flow is learned")] = (1, 2, 3)
    flow_steps: Annotated[int, Field(ge=1, le=64, description="couplings of each flow")] = 8
    alternate: Annotated[
        bool, Field(description="every second coupling sees single cells, as for WideResNet50; else all see 3 x 3")
    ] = False
    clamp: Annotated[Rate, Field(description="what a coupling's log scales stay within")] = 2.0
    epochs: Annotated[Count, Field(description="passes over the images")] = 500
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 32
    learning_rate: Annotated[Rate, Field(description="Adam's")] = 1e-3
    weight_decay: Annotated[Weight, Field(description="Adam's")] = 1e-5
    sigma: Sigma = 0.0


class FastFlow(Method):
    """A norm and a flow for each level."""

    Config = FastFlowConfig
    config: FastFlowConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: FastFlowConfig) -> None:
        super().__init__(backbone, size, config)
        levels, kernels = backbone.levels, [3, 1 if config.alternate else 3] * config.flow_steps
        subnets = [partial(convolutional, (kernel, kernel)) for kernel in kernels[: config.flow_steps]]
        grids = zip(levels, backbone.grids(size))
        self.norms = nn.ModuleList(nn.LayerNorm([level.channels, *grid]) for level, grid in grids)
        self.flows = nn.ModuleList(Flow(level.channels, subnets, config.clamp) for level in levels)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, network = self.config, nn.ModuleList([self.norms, self.flows])
        for stage, norm, flow in zip((level.stage for level in self.backbone.levels), self.norms, self.flows):
            norm.reset_parameters()  # type: ignore[operator]
            flow.reset(run.generator(f"flow {stage}"))  # type: ignore[operator]

        def loss(batch: Batch, _: torch.Generator) -> Tensor:
            return torch.stack(
                [negative_log_likelihood(*flowed).mean() for flowed in self._flowed(teacher(batch))]
            ).sum()

        train("fastflow", network, loss, training.normal, config, run, weight_decay=config.weight_decay)

    def predict(self, images: Tensor) -> Prediction:
        likely = [(-z.square().mean(dim=1) / 2).exp() for (z,), _ in self._flowed(self.backbone(images))]
        maps = [upscale(-level, images.shape[-2:], self.config.sigma) for level in likely]
        map_ = torch.stack(maps).mean(dim=0)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _flowed(self, features: Sequence[Tensor]) -> list[tuple[list[Tensor], Tensor]]:
        with self.autocast(features[0]):
            return [flow(norm(map_)) for flow, norm, map_ in zip(self.flows, self.norms, features, strict=True)]
