"""DRAEM: one network repairs made-up defects, another learns from image and repair where they were.

Idea: good images get other textures inside irregular masks. A first network, which passes everything through a narrow
code, gives the good image back; a second, a U-Net, sees the spoiled image beside the repaired one and segments the
defect. So it learns how far apart the two may be, and the made-up defects need not look like real ones.
Loss: squared difference and 1 - SSIM of the repaired and the good image, and the focal loss of the segmentation.
Score: the map is the second network's probability of a defect; an image's score is the highest mean of 21 x 21 pixels.
Both networks see pixels alone, in [0, 1]: no backbone. They are as released (github.com/VitjanZ/DRAEM), where
``network_width`` is 64; narrower ones learn in minutes what these take a GPU for. The textures are not the paper's
(``ops/textures.py``). All differences: docs/methods/draem.md.

Zavrtanik, Kristan, Skocaj: DRAEM: A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection,
ICCV 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages, check_cells
from blemish.ops.config import Count, Rate, Share, Steps, Weight, Width
from blemish.ops.focal import focal_loss
from blemish.ops.residual import convolutions, untrained
from blemish.ops.ssim import similarity
from blemish.ops.textures import Textures, with_textures
from blemish.run import Run, epochs

SPOILED = 0.5  # of the images
GAMMA = 2.0  # of the focal loss
POOLED = 21  # pixels a side, whose mean counts for an image's score
# Of the networks' stages, from the finest down; then of each step up: channels of what comes up, and of what leaves.
REPAIR = (1, 2, 4, 8, 8), ((8, 4), (4, 2), (2, 1), (1, 1))
SEGMENT = (1, 2, 4, 8, 8, 8), ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))


@dataclass(frozen=True)
class DRAEMConfig:
    """The released training."""

    network_width: Annotated[
        Width, Field(description="of the segmenting network's finest stage; the repairing one has twice as many")
    ] = 64
    epochs: Annotated[Count, Field(description="passes over the images")] = 700
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 8
    rate: Annotated[Rate, Field(description="Adam's, a fifth of it after 80 and again after 90 %")] = 1e-4
    turned: Annotated[Share, Field(description="of the images that are turned by up to a quarter either way first")] = (
        0.3
    )
    ssim_weight: Annotated[Weight, Field(description="of 1 - SSIM, beside 1 for the other two losses")] = 1.0


class DRAEM(Method):
    """``repair`` gives images back without their defects, ``segment`` says where they were."""

    Config = DRAEMConfig
    on_pixels = True
    has_schedule = True
    config: DRAEMConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: DRAEMConfig) -> None:
        super().__init__(backbone, size, config)
        check_cells(size, 2 ** (len(SEGMENT[0]) - 1), "the segmenting network", rounds_up=False)
        self.repair = untrained(lambda: UNet(3, 3, 2 * config.network_width, *REPAIR, skips=False))
        self.segment = untrained(lambda: UNet(6, 2, config.network_width, *SEGMENT, skips=True))

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images, textures = self.config, training.normal, Textures(run)
        networks = nn.ModuleList([self.repair, self.segment])
        _initialise(networks, run.generator("networks"))
        optimiser = torch.optim.Adam(networks.parameters(), lr=config.rate, fused=True)
        for epoch in epochs(run, "draem", {"networks": networks, "optimiser": optimiser}, config, len(images)):
            networks.train()
            drops, draws = sum(epoch.number - 1 >= share * epoch.of for share in (0.8, 0.9)), epoch.generator("defects")
            optimiser.param_groups[0]["lr"] = config.rate * 0.2**drops
            for indices in epoch.batches():
                clean = _turned(images.batch(indices).images, config.turned, draws)
                spoiled, masks = (given.to(run.device) for given in with_textures(clean, textures, draws, SPOILED))
                with run.precision.autocast(run.device):
                    repaired, logits = self._seen(spoiled)
                clean = clean.to(run.device)
                rebuilt = F.mse_loss(repaired, clean)
                rebuilt = rebuilt + config.ssim_weight * (1 - similarity(repaired, clean).mean())
                found = focal_loss(logits, masks, GAMMA)
                epoch.descend(rebuilt + found, optimiser, loss=rebuilt + found, repaired=rebuilt, found=found)

    def predict(self, images: Tensor) -> Prediction:
        with self.autocast(images):
            _, logits = self._seen(images)
        map_ = logits.sigmoid()
        means = F.avg_pool2d(map_[:, None], POOLED, stride=1, padding=POOLED // 2)
        return Prediction(map_, means.amax(dim=(1, 2, 3)))

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images repaired, and the logits ``b h w`` of a defect: what is left of two classes' under a softmax."""
        repaired = self.repair(images)
        classes = self.segment(torch.cat([repaired, images], dim=1)).float()
        return repaired.float(), classes[:, 1] - classes[:, 0]


class UNet(nn.Module):
    """Double convolutions with pooling between them, then back to each size; without ``skips`` from the last alone.

    ``down`` are the stages' channels and ``up`` those of each step back, in multiples of ``channels``.
    """

    def __init__(
        self, ins: int, outs: int, channels: int, down: Sequence[int], up: Sequence[tuple[int, int]], skips: bool
    ) -> None:
        super().__init__()

        def double(*widths: int) -> nn.Sequential:
            return convolutions(widths, ["same"] * (len(widths) - 1), "batch", nn.ReLU(True))

        widths, self.skips = [channels * n for n in down], skips
        self.down = nn.ModuleList(double(first, width, width) for first, width in pairwise([ins, *widths]))
        self.up, self.joined, below = nn.ModuleList(), nn.ModuleList(), widths[-1]
        for pair, passed in zip(up, reversed(widths[:-1])):
            risen, left = (channels * n for n in pair)
            self.up.append(double(below, risen))
            self.joined.append(double(risen + passed, left, left) if skips else double(risen, risen, left))
            below = left
        self.out = nn.Conv2d(below, outs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """``b outs h w``, of the images' size whatever that is."""
        passed: list[Tensor] = []
        for stage in self.down:
            passed.append(stage(F.max_pool2d(passed[-1], 2) if passed else images))
        seen = passed.pop()
        for up, joined, finer in zip(self.up, self.joined, reversed(passed)):
            seen = up(F.interpolate(seen, size=finer.shape[-2:], mode="bilinear", align_corners=True))
            seen = joined(torch.cat([seen, finer], dim=1) if self.skips else seen)
        return self.out(seen)  # type: ignore[no-any-return]


@torch.no_grad()
def _initialise(networks: nn.Module, generator: torch.Generator) -> None:
    """Fresh values as released: normal, of deviation .02 about 0, and about 1 for what a norm multiplies by."""
    for module in networks.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            mean = float(isinstance(module, nn.BatchNorm2d))
            module.weight.copy_(torch.empty(module.weight.shape).normal_(mean, 0.02, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()


def _turned(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A ``share`` of ``b 3 h w`` images turned about the middle, black where nothing comes to lie."""
    from torchvision.transforms.v2 import functional as tv

    draws = torch.rand((2, len(images)), generator=generator).tolist()
    bilinear = tv.InterpolationMode.BILINEAR
    turned = [tv.rotate(x, 180 * t - 90, bilinear) if u < share else x for x, u, t in zip(images, *draws)]
    return torch.stack(turned)
