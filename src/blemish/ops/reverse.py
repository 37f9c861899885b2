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
"""Channels inside the mirror of a backbone that is not a ResNet, at least."""

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

    def __init__(self, mirror: DecoderSpec) -> None:
        super().__init__()
        norm, widths, deepest = mirror.kind.norm, mirror.widths, mirror.levels[-1].channels
        reached = (*widths[:-1], deepest)
        self.paths = nn.ModuleList()
        for start, level in enumerate(mirror.levels):
            path = nn.Sequential()
            ins = level.channels
            for target in range(start + 1, len(mirror.levels)):
                outs = reached[target]
                path.extend([convolution(ins, outs, 3, mirror.steps[target]), normalisation(norm, outs), nn.ReLU(True)])
                ins = outs
            self.paths.append(path)
        joined = deepest * len(mirror.levels)
        self.stage = residual_stage(joined, 2 * widths[-1], mirror.deep_blocks, mirror.kind, "down")

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The code ``b d y x`` of feature maps ``b c y x``."""
        rows, columns = features[-1].shape[-2:]
        found = [path(feature)[..., :rows, :columns] for path, feature in zip(self.paths, features, strict=True)]
        return self.stage(torch.cat(found, dim=1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A code back to the teacher's levels, the deepest first inside, returned shallowest first."""

    def __init__(self, mirror: DecoderSpec) -> None:
        super().__init__()
        self.stages, self.heads, self.rectified = nn.ModuleList(), nn.ModuleList(), []
        ins = 2 * mirror.widths[-1]
        steps: list[Step] = ["up" if step == "down" else "same" for step in (*mirror.steps[1:], "down")]
        for level, width, blocks, step in zip(
            reversed(mirror.levels), reversed(mirror.widths), reversed(mirror.blocks), reversed(steps)
        ):
            self.stages.append(residual_stage(ins, width, blocks, mirror.kind, step))
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
            code = _fitted(stage(code), rows, columns)
            read = head(code)
            maps.append(F.relu(read, inplace=True) if rectified else read)
        return maps[::-1]


def _fitted(map_: Tensor, rows: int, columns: int) -> Tensor:
    """A map cut off, or its last row and column repeated, to the size wanted."""
    missing = max(rows - map_.shape[-2], 0), max(columns - map_.shape[-1], 0)
    if any(missing):
        map_ = F.pad(map_, (0, missing[1], 0, missing[0]), mode="replicate")
    return map_[..., :rows, :columns]


class ReverseStudent(nn.Module):
    """Bottleneck and decoder together: the teacher's feature maps to the student's, shallowest first."""

    def __init__(self, mirror: DecoderSpec) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(mirror)
        self.decoder = Decoder(mirror)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the same shapes as ``features``; convolutions run under the caller's autocast."""
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        kind = features[0].device.type
        if torch.is_autocast_enabled(kind):  # once here; otherwise two convolutions each turn the joined map into bf16
            features = [feature.to(torch.get_autocast_dtype(kind)) for feature in features]
        found: list[Tensor] = self.decoder(self.bottleneck(features), grids)
        return found


def build_reverse_student(backbone: Backbone, size: tuple[int, int], norm: Norm = "batch") -> ReverseStudent:
    """The student that mirrors ``backbone``, without values: call ``initialise`` or load some.

    Args:
        backbone: whose levels.
        size: height and width of the images.
        norm: of the student's layers.

    Raises:
        ConfigError: the backbone's levels leave a gap, or the code has a single cell, which no norm can learn from
            where a batch holds one image.
    """
    check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
    with torch.device("meta"):
        reversal = ReverseStudent(decoder_spec(backbone, norm))
    untrained(reversal)
    return reversal
