"""Reverse distillation's student: a bottleneck that joins the teacher's levels, and a decoder that mirrors the teacher.

For ResNets exactly as published (parameter counts in the tests). The released bottleneck's further 1x1 convolution,
which is declared and never used, is left out; its "attention" blocks hold no attention.

For other backbones the same scheme: every level goes through 3x3 convolutions of stride 2 and the widths of the deeper
levels (at least ``MIN_WIDTH`` on the way) down to the deepest one's grid; all are joined; a residual stage of stride 2
goes to twice the deepest width; the decoder mirrors that with two basic blocks a stage. Where a level has fewer than
``MIN_WIDTH`` channels, or can be negative, the decoder works at a width of at least ``MIN_WIDTH`` and reads the level
off with a 1x1 convolution, which is followed by a ReLU only where the teacher's level ends in one. (Our reading: of
EfficientNet-Lite0's 24, 40 and 112 channels, half of all values are negative, and 24 channels are few for a decoder to
work in.)

RD++'s projections, for ResNets as released: four 3x3 convolutions with bias on each level, C to C/2, C/4, C/2 and C
channels, each followed by an instance norm without scale and shift and a leaky ReLU. Narrow levels of other backbones
keep at least ``MIN_INNER`` channels inside (our reading).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.contract import Backbone, Level, check_cells
from blemish.errors import ConfigError
from blemish.ops.residual import BlockKind, Norm, Step, convolution, normalisation, residual_stage, untrained

MIN_WIDTH = 64
"""Channels inside the student of a backbone that is not a ResNet, at least."""

MIN_INNER = 16
"""Channels inside a projection, at least: ResNet18's narrowest, where EfficientNet-Lite0 would have 6."""

_BASIC, _BOTTLENECK, _WIDE = BlockKind(False), BlockKind(True), BlockKind(True, squeeze=2)
_RESNETS: dict[str, tuple[BlockKind, tuple[int, ...]]] = {
    "resnet18": (_BASIC, (2, 2, 2, 2)),
    "resnet34": (_BASIC, (3, 4, 6, 3)),
    "resnet50": (_BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": (_BOTTLENECK, (3, 4, 23, 3)),
    "wide_resnet50_2": (_WIDE, (3, 4, 6, 3)),
    "wide_resnet101_2": (_WIDE, (3, 4, 23, 3)),
}
"""Block and blocks a stage of the architectures that are mirrored as published."""


@dataclass(frozen=True)
class DecoderSpec:
    """How a teacher is mirrored; sequences go from the shallowest level to the deepest.

    Attributes:
        levels: the teacher's.
        widths: of the student at each level.
        steps: from the level before to this one, along the teacher: ``down``, or ``same`` where both have one grid.
        blocks: of the decoder, for each level.
        deep_blocks: of the residual stage that ends the bottleneck.
        kind: of block.
    """

    levels: tuple[Level, ...]
    widths: tuple[int, ...]
    steps: tuple[Step, ...]
    blocks: tuple[int, ...]
    deep_blocks: int
    kind: BlockKind


def decoder_spec(backbone: Backbone, norm: Norm = "batch") -> DecoderSpec:
    """How ``backbone`` is mirrored: as published for the ResNets, by the general scheme otherwise.

    Raises:
        ConfigError: a level lies more than one halving of the grid below the one before it.
    """
    levels = tuple(backbone.levels)
    steps: list[Step] = ["same"]
    for above, below in pairwise(levels):
        if below.stride not in (above.stride, 2 * above.stride):
            raise ConfigError(
                f"stages {above.stage} and {below.stage} have strides {above.stride} and {below.stride}: a mirrored "
                "student needs stages without a gap between them, such as --set layers=1,2,3"
            )
        steps.append("same" if below.stride == above.stride else "down")
    name = str(getattr(backbone, "name", "")).partition(".")[0]
    if name in _RESNETS:
        kind, blocks = _RESNETS[name]
        # The decoder counts its blocks from the deepest level, by the list that the encoder counts from the shallowest.
        counts, deep = blocks[: len(levels)][::-1], blocks[3]
        widths = tuple(level.channels for level in levels)
    else:
        kind, counts, deep = _BASIC, (2,) * len(levels), 2
        widths = tuple(max(level.channels, MIN_WIDTH) for level in levels)
    return DecoderSpec(levels, widths, tuple(steps), counts, deep, replace(kind, norm=norm))


class Bottleneck(nn.Module):
    """One-class bottleneck embedding: feature maps, shallowest first, to one code on half the deepest grid."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        deepest = spec.levels[-1].channels
        self.paths = nn.ModuleList()
        for start, level in enumerate(spec.levels):
            path = nn.Sequential()
            widths = [level.channels, *spec.widths[start + 1 : -1], deepest]
            for (ins, outs), step in zip(pairwise(widths), spec.steps[start + 1 :]):
                path.extend([convolution(ins, outs, 3, step), normalisation(spec.kind.norm, outs), nn.ReLU(True)])
            self.paths.append(path)
        joined = deepest * len(spec.levels)
        self.stage = residual_stage(joined, 2 * spec.widths[-1], spec.deep_blocks, spec.kind, "down")

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The code ``b d y x`` of feature maps ``b c y x``."""
        rows, columns = features[-1].shape[-2:]
        maps = [path(feature)[..., :rows, :columns] for path, feature in zip(self.paths, features, strict=True)]
        return self.stage(torch.cat(maps, dim=1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A code back to the teacher's levels, the deepest first inside, returned shallowest first."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.stages, self.heads, self.rectified = nn.ModuleList(), nn.ModuleList(), []
        ins = 2 * spec.widths[-1]
        steps: list[Step] = ["up" if step == "down" else "same" for step in (*spec.steps[1:], "down")]
        for level, width, blocks, step in reversed(list(zip(spec.levels, spec.widths, spec.blocks, steps))):
            self.stages.append(residual_stage(ins, width, blocks, spec.kind, step))
            is_read_off = level.signed or width != level.channels
            self.heads.append(nn.Conv2d(width, level.channels, 1) if is_read_off else nn.Identity())
            self.rectified.append(is_read_off and not level.signed)
            ins = width

    def forward(self, code: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Maps ``b c y x`` like the teacher's.

        Args:
            code: from ``Bottleneck``.
            grids: rows and columns of the teacher's levels, shallowest first. Doubling the half of an odd grid gives
                one row or column too many, which is cut off, or, where a teacher halves its grid rounding down, one
                too few: the last one is given twice.
        """
        maps = []
        for stage, head, rectified, (rows, columns) in zip(
            self.stages, self.heads, self.rectified, reversed(grids), strict=True
        ):
            code = stage(code)
            missing = max(rows - code.shape[-2], 0), max(columns - code.shape[-1], 0)
            if any(missing):
                code = F.pad(code, (0, missing[1], 0, missing[0]), mode="replicate")
            code = code[..., :rows, :columns]
            read = head(code)
            maps.append(F.relu(read, inplace=True) if rectified else read)
        return maps[::-1]


class ReverseStudent(nn.Module):
    """Bottleneck and decoder together: the teacher's feature maps to the student's, shallowest first."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(spec)
        self.decoder = Decoder(spec)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the same shapes as ``features``; convolutions run under the caller's autocast."""
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        kind = features[0].device.type
        if torch.is_autocast_enabled(kind):  # once here; otherwise two convolutions each turn the joined map into bf16
            features = [feature.to(torch.get_autocast_dtype(kind)) for feature in features]
        maps: list[Tensor] = self.decoder(self.bottleneck(features), grids)
        return maps


def build_reverse_student(backbone: Backbone, size: tuple[int, int], norm: Norm = "batch") -> ReverseStudent:
    """The student that mirrors ``backbone``, without values: call ``initialise`` or load some.

    Raises:
        ConfigError: the backbone's levels leave a gap, or images of this height and width leave the code a single
            cell, which no norm can learn from where a batch holds one image.
    """
    check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
    return untrained(lambda: ReverseStudent(decoder_spec(backbone, norm)))


class Projection(nn.Module):
    """One level's projection: ``b c y x`` of more than one cell to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle, inner = (max(channels // part, MIN_INNER) for part in (2, 4))
        self.layers = nn.Sequential()
        for ins, outs in pairwise((channels, middle, inner, middle, channels)):
            self.layers.extend([nn.Conv2d(ins, outs, 3, padding=1), nn.InstanceNorm2d(outs), nn.LeakyReLU(0.01)])

    def forward(self, features: Tensor) -> Tensor:
        """Projected maps."""
        projected: Tensor = self.layers(features)
        return projected


def build_projections(backbone: Backbone, size: tuple[int, int]) -> nn.ModuleList:
    """RD++'s projection for each level, without values: call ``initialise_uniform`` (as released) or load some.

    Raises:
        ConfigError: images of this height and width leave a level a single cell, and an instance norm nothing of that.
    """
    check_cells(size, backbone.levels[-1].stride, "the deepest projection")
    return untrained(lambda: nn.ModuleList(Projection(level.channels) for level in backbone.levels))
