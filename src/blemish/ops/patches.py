"""Patch vectors: what a backbone sees around each cell of its finest feature map.

The released PatchCore unfolds neighbourhoods, interpolates coarse stages, and then pools each vector adaptively, twice.
Pooling and interpolation commute: here one grouped convolution unfolds and pools each stage before it is interpolated.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.contract import Images, Teacher
from blemish.run import Run

BATCH = 8  # images described at once; the vectors do not depend on it


class PatchVectors(nn.Module):
    """Feature maps, finest first, to patch vectors ``b y x d`` on the grid of the finest; ``width`` is ``d``.

    Neighbourhoods have ``patch_size`` cells a side (odd), zeros outside the map. Stages are pooled to ``stage_width``
    numbers each and all together to ``width``. Stages that have fewer keep their channels, averaged over the
    neighbourhood, unless ``inflate`` pools them all the same, which repeats entries.
    Where there is ``whitening``, ``d d``, vectors are multiplied by it. Only every ``step``-th cell is described.
    """

    whitening: Tensor | None

    def __init__(
        self, channels: Sequence[int], patch_size: int, stage_width: int, width: int, inflate: bool, step: int = 1
    ) -> None:
        super().__init__()
        self.step = step
        self.pooling = nn.ModuleList()
        self.register_buffer("whitening", None)
        self.final_width: int | None = None
        if sum(channels) < width and not inflate:
            self.pooling.extend(nn.AvgPool2d(patch_size, 1, patch_size // 2) for _ in channels)
            self.width = sum(channels)
            return
        self.width = width
        ratio, rest = divmod(len(channels) * stage_width, width)
        joined = rest == 0 and stage_width % ratio == 0
        if not joined:  # the last pooling straddles two stages, so it has to wait until they are joined
            ratio, self.final_width = 1, width
        self.pooling.extend(_AdaptivePooling(c, patch_size, stage_width, ratio) for c in channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        grid = features[0].shape[-2:]
        stages = [pool(stage) for pool, stage in zip(self.pooling, features, strict=True)]
        for index, pooled in enumerate(stages):
            if pooled.shape[-2:] != grid:
                stages[index] = F.interpolate(pooled, size=grid, mode="bilinear", align_corners=False)
        vectors = torch.cat(stages, dim=1).permute(0, 2, 3, 1)
        if self.final_width is not None:
            vectors = F.adaptive_avg_pool1d(vectors.flatten(1, 2), self.final_width).view(vectors.shape[0], *grid, -1)
        vectors = vectors[:, :: self.step, :: self.step]
        return (vectors if self.whitening is None else vectors @ self.whitening).contiguous()


@dataclass(frozen=True)
class Shards:
    """What is done with more patch vectors than may be held at once: whenever they fill ``held`` bytes, few are kept.

    ``size`` of all vectors that there will be is how many; ``choose`` gives the indices of so many among ``n m``.
    """

    held: int
    size: Callable[[int], int]
    choose: Callable[[Tensor, int], Iterator[int]]


def describe_patches(
    images: Images,
    teacher: Teacher,
    patches: PatchVectors,
    projection: Tensor | None,
    run: Run,
    batch_size: int = BATCH,
    most: int | None = None,
    shards: Shards | None = None,
) -> tuple[Tensor, Tensor, int, Tensor]:
    """All patch vectors ``n d``; what a coreset is chosen by, ``n m``, on the run's device; its size; their images.

    Vectors, and the number ``n`` of the image that each is of, are on the CPU.

    These are the vectors times the projection ``d m``, or the vectors where there is none. They go image by image, and
    within an image row by row; each batch is written into place, so that a large set is never held twice. Where they
    are more than ``most``, each image gives an equal share of its own, drawn at random: about ``most`` in all.

    Where these take more bytes than ``shards`` allows, the vectors of a shard and those kept before it are thinned out
    together, again and again; those of the last shard and what was kept before it are given. Held are then no more than
    allowed, or twice what is kept where that is more (or one batch beside it); what chooses among them is counted.
    """
    projection = None if projection is None else projection.to(run.device)
    draws = run.generator("candidates")
    vectors = shortened = owners = torch.empty(0)
    done, indices = 0, iter(run.progress.track(range(len(images)), "describing patches"))
    while chosen := list(islice(indices, batch_size)):
        made = patches(teacher(images.batch(chosen))).flatten(1, 2)
        share = cells = made.shape[1]
        if most is not None and cells * len(images) > most:
            share = -(-most // len(images))
        if done == 0:
            total = share * len(images)
            kept = 0 if shards is None else shards.size(total)
            # Of what is chosen by, ``farthest_first`` makes two copies.
            width = 3 * patches.width if projection is None else patches.width + 3 * projection.shape[1]
            room = total if shards is None else _room(shards, total, kept, len(made) * share, 4 * width, run)
            vectors, owners = torch.empty(room, patches.width), torch.empty(room, dtype=torch.int64)
            shortened = vectors if projection is None else made.new_empty(room, projection.shape[1])
        if share < cells:
            drawn = [torch.randperm(cells, generator=draws)[:share].sort().values for _ in made]
            made = made[torch.arange(len(made))[:, None], torch.stack(drawn).to(made.device)]
        made = made.flatten(0, 1)
        if shards is not None and done + len(made) > len(vectors):
            picks = torch.tensor(list(shards.choose(shortened[:done].to(run.device), kept)))
            done = len(picks)
            vectors[:done], owners[:done] = vectors[picks], owners[picks]
            if projection is not None:
                shortened[:done] = shortened[picks.to(shortened.device)]
        rows = slice(done, done + len(made))
        vectors[rows], owners[rows] = made.cpu(), torch.tensor(chosen).repeat_interleave(share)
        if projection is not None:
            torch.mm(made, projection, out=shortened[rows])
        done += len(made)
    return vectors[:done], shortened[:done].to(run.device), kept, owners[:done]


def _room(shards: Shards, total: int, kept: int, batch: int, each: int, run: Run) -> int:
    """How many of ``total`` vectors of ``each`` bytes are held at once; said where they are fewer than all."""
    room = min(total, max(shards.held // each, 2 * kept, kept + batch))
    if room < total:
        run.progress.note(
            f"note: {total:,} patch vectors would take {total * each / 1e9:.3g} GB. At most {room:,} are held at once "
            f"({room * each / 1e9:.3g} GB): each time they are so many, {kept:,} of them are kept"
        )
    return room


def top_mean(scores: Tensor, top: float) -> Tensor:
    """``b``: the mean of the highest share ``top`` of patch scores ``b n``, of one patch at least."""
    return scores.topk(max(1, int(scores.shape[1] * top)), dim=1).values.mean(dim=1)


class _AdaptivePooling(nn.Module):
    """Unfold, pool adaptively to ``stage_width``, then average every ``ratio`` entries: one grouped convolution."""

    kernel: Tensor

    def __init__(self, channels: int, patch_size: int, stage_width: int, ratio: int) -> None:
        super().__init__()
        # Windows never cross the border between two groups: with g groups, entry i * length / g is a whole number.
        self.groups = gcd(channels, stage_width // ratio)
        entries = channels // self.groups * patch_size**2
        windows = torch.zeros(outputs := stage_width // self.groups, entries, dtype=torch.float64)
        for i in range(outputs):  # as adaptive pooling averages
            window = slice(i * entries // outputs, -(-(i + 1) * entries // outputs))
            windows[i, window] = 1 / (window.stop - window.start)
        windows = windows.view(-1, ratio, entries).mean(dim=1)
        kernel = windows.view(len(windows), -1, patch_size, patch_size).repeat(self.groups, 1, 1, 1).float()
        self.register_buffer("kernel", kernel, persistent=False)
        self.padding = patch_size // 2

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.kernel, padding=self.padding, groups=self.groups)
