"""CDD's bricks: a student as the last epoch left it, the choice among several students, and jitter on features."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blemish.contract import Backbone, Images, Teacher, in_batches
from blemish.ops.cosine import image_cosines, location_cosines
from blemish.ops.draws import normals
from blemish.run import Run

BUFFER_TYPE = torch.bfloat16  # what is kept of a student, and what it is rounded to where nothing is kept
REFERENCE_DEVIATION = 0.25  # of a WideResNet50's features, for which jitter was published: assumed, not measured


@torch.no_grad()
def outputs(student: nn.Module, features: Sequence[Tensor], run: Run) -> list[Tensor]:
    """The maps ``b c y x`` that a student in eval mode gives for the teacher's, without gradient."""
    with run.precision.autocast(run.device):
        maps: list[Tensor] = student(features)
    return maps


class PreviousStudent:
    """A student as the last epoch left it, ``network``, and its maps of all images, which one pass an epoch computes.

    Where these need more bytes than ``budget``, each is computed again when asked for.
    """

    def __init__(self, student: nn.Module, images: Images, teacher: Teacher, run: Run, budget: int) -> None:
        self.network = copy.deepcopy(student).eval().requires_grad_(False)
        self._images, self._teacher, self._run, self._budget = images, teacher, run, budget
        self._kept: list[Tensor] | None = None  # n y x c a level; none of them where they do not fit

    def look(self, student: nn.Module, batch_size: int) -> list[int]:
        """Become ``student`` and look at every image: their indices, the one it agrees on best with the teacher first.

        Agreement is the mean cosine over locations, summed over levels.
        """
        self.network.load_state_dict(student.state_dict())
        confidences, done = [], 0
        for batch in in_batches(self._images, batch_size):
            features = self._teacher(batch)
            maps = self._computed(features)
            agreed = [1 - (1 - location_cosines(t, s)).mean(dim=(1, 2)) for t, s in zip(features, maps, strict=True)]
            confidences.append(torch.stack(agreed).sum(dim=0))
            if self._kept is None:
                self._kept = self._buffers(maps)
            for kept, map_ in zip(self._kept, maps):
                kept[done : done + len(map_)] = map_.permute(0, 2, 3, 1)
            done += len(batch.keys)
        order: list[int] = torch.cat(confidences).argsort(descending=True, stable=True).tolist()
        return order

    def maps(self, indices: Sequence[int], features: Sequence[Tensor]) -> list[Tensor]:
        """What it gives for the images at ``indices`` and their features, ``b c y x`` a level, bf16; after ``look``."""
        if not self._kept:
            return self._computed(features)
        return [kept[list(indices)].permute(0, 3, 1, 2) for kept in self._kept]

    def _computed(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [map_.to(BUFFER_TYPE) for map_ in outputs(self.network, features, self._run)]

    def _buffers(self, maps: Sequence[Tensor]) -> list[Tensor]:
        count = len(self._images)
        needed = count * sum(map_[0].numel() * map_.element_size() for map_ in maps)
        if needed > self._budget:
            self._run.progress.note(
                f"what the last global student gives would take {needed / 1e9:.3g} GB, more than memory="
                f"{self._budget / 1e9:.3g}: it is computed at each use, which is slower"
            )
            return []
        return [map_.new_empty((count, *map_.shape[2:], map_.shape[1])) for map_ in maps]


@torch.no_grad()
def consensus(candidates: Sequence[Sequence[Tensor]], reference: Sequence[Tensor]) -> list[Tensor]:
    """Image by image, the maps of the candidate that agrees best with the reference, which is no candidate itself.

    Agreement is the cosine of whole maps ``b c y x``, summed over levels; of equal ones the first is taken.
    """
    cosines = [[image_cosines(*pair) for pair in zip(maps, reference, strict=True)] for maps in candidates]
    best = torch.stack([torch.stack(levels).sum(dim=0) for levels in cosines]).argmax(dim=0)[:, None, None, None]
    chosen = list(candidates[0])
    for number, maps in enumerate(candidates[1:], start=1):
        chosen = [torch.where(best == number, map_, level) for map_, level in zip(maps, chosen, strict=True)]
    return chosen


def jittered(features: Sequence[Tensor], deviations: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Copies of maps ``b c y x`` with Gaussian noise of a deviation a level."""
    maps = []
    for map_, deviation in zip(features, deviations, strict=True):
        if deviation != 0:
            b, c, y, x = map_.shape
            noise = normals((b, y, x, c), generator, map_.device).permute(0, 3, 1, 2)
            map_ = torch.add(map_, noise, alpha=deviation)  # noqa: PLW2901
        maps.append(map_)
    return maps


def jitter_deviations(
    backbone: Backbone, noise: float, images: Images, teacher: Teacher, batch_size: int
) -> list[float]:
    """The deviation of each level's noise: ``noise`` itself for ResNets, as published, else scaled with the level's."""
    if noise == 0 or backbone.residual is not None:
        return [noise] * len(backbone.levels)
    sums: Tensor | float = 0.0
    for batch in in_batches(images, batch_size):
        moments = [[m.numel(), m.sum(dtype=torch.float64), m.square().sum(dtype=torch.float64)] for m in teacher(batch)]
        sums = sums + torch.tensor(moments, dtype=torch.float64)
    count, total, squares = torch.as_tensor(sums).unbind(dim=1)
    deviations: list[float] = (squares / count - (total / count).square()).clamp(min=0).sqrt().tolist()
    return [noise * deviation / REFERENCE_DEVIATION for deviation in deviations]
