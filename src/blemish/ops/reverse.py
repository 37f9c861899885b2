"""Reverse distillation's student: a bottleneck that joins the teacher's levels, and a decoder that mirrors the teacher.

For ResNets exactly as published, but for a 1x1 convolution that the released bottleneck never uses. For other backbones
the same scheme (our reading): every level goes through 3x3 convolutions of stride 2 and the widths of the deeper levels
down to the deepest grid; all are joined; a residual stage of stride 2 goes to twice the deepest width; the decoder
mirrors that with two basic blocks a stage. It works at ``MIN_WIDTH`` channels or more, and a 1x1 convolution reads off
a level that is narrower or can be negative (docs/methods/rd.md says why).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.contract import Backbone, Level, check_cells
from blemish.errors import ConfigError
from blemish.ops.residual import BlockKind, Norm, Step, convolutions, join_levels, residual_stage, untrained

MIN_WIDTH = 64  # channels inside the student of a backbone that is not a ResNet, at least
Inject = Callable[[int, Tensor, Tensor], Tensor]
"""From the number of levels still to come, the code and the map just read off it, the code for the next one."""
MIN_INNER = 16  # channels inside a projection, at least: ResNet18's narrowest, where EfficientNet-Lite0 would have 6


@dataclass(frozen=True)
class DecoderSpec:
    """How a teacher is mirrored, from its shallowest level to the deepest; ``deep_blocks`` end the bottleneck."""

    levels: tuple[Level, ...]
    widths: tuple[int, ...]
    steps: tuple[Step, ...]
    blocks: tuple[int, ...]
    deep_blocks: int
    kind: BlockKind


def decoder_spec(backbone: Backbone, norm: Norm = "batch") -> DecoderSpec:
    """How ``backbone`` is mirrored; a ConfigError where levels leave a gap: more than one halving of the grid."""
    levels, residual = tuple(backbone.levels), backbone.residual
    steps: list[Step] = ["same"]
    for above, below in pairwise(levels):
        if below.stride not in (above.stride, 2 * above.stride):
            raise ConfigError(
                f"stages {above.stage} and {below.stage} have strides {above.stride} and {below.stride}: a mirrored "
                "student needs stages without a gap between them, such as --set layers=1,2,3"
            )
        steps.append("same" if below.stride == above.stride else "down")
    if residual is not None:
        kind = BlockKind(residual.convolutions == 3, 256 // residual.width, norm)
        # The decoder counts its blocks from the deepest level, by the list that the encoder counts from the shallowest.
        blocks, deep = residual.blocks[: len(levels)][::-1], residual.blocks[3]
        widths = tuple(level.channels for level in levels)
    else:
        kind, blocks, deep = BlockKind(False, norm=norm), (2,) * len(levels), 2
        widths = tuple(max(level.channels, MIN_WIDTH) for level in levels)
    return DecoderSpec(levels, widths, tuple(steps), blocks, deep, kind)


class Bottleneck(nn.Module):
    """One-class bottleneck embedding: maps ``b c y x``, shallowest first, to one code on half the deepest grid."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        deepest = spec.levels[-1].channels
        self.paths = nn.ModuleList()
        for start, level in enumerate(spec.levels):
            widths = [level.channels, *spec.widths[start + 1 : -1], deepest]
            self.paths.append(convolutions(widths, spec.steps[start + 1 :], spec.kind.norm, nn.ReLU(True)))
        joined = deepest * len(spec.levels)
        self.stage = residual_stage(joined, 2 * spec.widths[-1], spec.deep_blocks, spec.kind, "down")

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.stage(join_levels(self.paths, features))  # type: ignore[no-any-return]


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

    def forward(self, code: Tensor, grids: Sequence[tuple[int, int]], inject: Inject | None = None) -> list[Tensor]:
        """Maps ``b c y x`` on the teacher's ``grids`` (rows and columns, shallowest first) of a bottleneck's code.

        Doubling a halved odd grid gives a row or column too many, which is cut off, or, where the teacher rounds down,
        one too few: the last is given twice.
        """
        maps = []
        layers = zip(self.stages, self.heads, self.rectified, reversed(grids), strict=True)
        for stage, head, rectified, (rows, columns) in layers:
            code = stage(code)
            below, right = max(rows - code.shape[-2], 0), max(columns - code.shape[-1], 0)
            if below or right:
                code = F.pad(code, (0, right, 0, below), mode="replicate")
            code = code[..., :rows, :columns]
            maps.append(F.relu(head(code), inplace=True) if rectified else head(code))
            if inject is not None and (left := len(grids) - len(maps)):
                code = inject(left, code, maps[-1])
        return maps[::-1]


class ReverseStudent(nn.Module):
    """Bottleneck and decoder: feature maps, shallowest first, to as many of the same shapes, under the autocast set."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.bottleneck, self.decoder = Bottleneck(spec), Decoder(spec)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        kind = features[0].device.type
        if torch.is_autocast_enabled(kind):  # once here; otherwise two convolutions each turn the joined map into bf16
            features = [feature.to(torch.get_autocast_dtype(kind)) for feature in features]
        return self.decoder(self.bottleneck(features), grids)  # type: ignore[no-any-return]


def build_reverse_student(backbone: Backbone, size: tuple[int, int], norm: Norm = "batch") -> ReverseStudent:
    """The student that mirrors ``backbone``, without values: call ``initialise`` or load some.

    A ConfigError, where the levels leave a gap or images of ``size`` leave the code one cell: too few for a norm.
    """
    check_cells(size, 2 * backbone.levels[-1].stride, "the student's code")
    return untrained(lambda: ReverseStudent(decoder_spec(backbone, norm)))


class Projection(nn.Module):
    """RD++'s of one level, ``b c y x`` of more than one cell to the same shape: C to C/2, C/4, C/2 and C channels.

    As released, but that narrow levels of other backbones than ResNets keep ``MIN_INNER`` channels, and another depth
    than 4 halves and doubles as often (our reading).
    """

    def __init__(self, channels: int, depth: int = 4) -> None:
        super().__init__()
        halvings = [min(i, depth - i) for i in range(depth + 1)]
        self.layers = nn.Sequential()
        for ins, outs in pairwise(max(channels >> n, MIN_INNER) if n else channels for n in halvings):
            self.layers.extend([nn.Conv2d(ins, outs, 3, padding=1), nn.InstanceNorm2d(outs), nn.LeakyReLU(0.01)])

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)  # type: ignore[no-any-return]


def build_projections(backbone: Backbone, size: tuple[int, int], depth: int = 4) -> nn.ModuleList:
    """RD++'s projections, without values: call ``initialise_uniform`` (as released) or load some.

    A ConfigError, where images of ``size`` leave a level one cell: an instance norm leaves nothing of that.
    """
    check_cells(size, backbone.levels[-1].stride, "the deepest projection")
    return untrained(lambda: nn.ModuleList(Projection(level.channels, depth) for level in backbone.levels))
