"""What students say, as something to learn from: kept through an epoch, and chosen where several speak."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blemish.contract import Images, Teacher
from blemish.ops.cosine import cosines, distances
from blemish.run import Run

BUFFER_TYPE = torch.bfloat16
"""What is kept of a student, and what it is rounded to where nothing is kept."""


@torch.no_grad()
def outputs(student: nn.Module, features: Sequence[Tensor], run: Run) -> list[Tensor]:
    """The maps ``b c y x`` that a student in eval mode gives for the teacher's, without gradient."""
    with run.precision.autocast(run.device):
        found: list[Tensor] = student(features)
    return found


class PreviousStudent:
    """A student as the last epoch left it: judges every image once and keeps what it gave, where that fits.

    One pass over the images serves for what it thinks of them and for all later questions of the epoch.

    Attributes:
        network: a frozen copy, in eval mode; never what an optimiser moves.
    """

    def __init__(self, student: nn.Module, images: Images, teacher: Teacher, run: Run, budget: int) -> None:
        """Nothing is kept yet.

        Args:
            student: teacher maps to maps of the same shapes.
            images: what it will be asked about.
            teacher: gives their features.
            run: owns precision and device.
            budget: bytes that its maps of all images may take; where they need more, each is computed when asked for.
        """
        self.network = copy.deepcopy(student).eval().requires_grad_(False)
        self._images, self._teacher, self._run, self._budget = images, teacher, run, budget
        self._kept: list[Tensor] | None = None  # n y x c
        self._fits: bool | None = None

    def look(self, student: nn.Module, batch_size: int) -> list[int]:
        """Become ``student`` and look at every image: their places, the one it agrees on best with the teacher first.

        Agreement is the mean cosine over locations, summed over levels.
        """
        self.network.load_state_dict(student.state_dict())
        confidences = []
        for start in range(0, len(self._images), batch_size):
            places = range(start, min(start + batch_size, len(self._images)))
            features = self._teacher(self._images.batch(places))
            maps = self._computed(features)
            agreed = [1 - distances(t, s).mean(dim=(1, 2)) for t, s in zip(features, maps, strict=True)]
            confidences.append(torch.stack(agreed).sum(dim=0))
            self._keep(places, maps)
        order: list[int] = torch.cat(confidences).argsort(descending=True, stable=True).tolist()
        return order

    def maps(self, places: Sequence[int], features: Sequence[Tensor]) -> list[Tensor]:
        """What it gives for images, ``b c y x`` a level, bf16; only after ``look``.

        Args:
            places: of the images.
            features: the teacher's, of the same images.
        """
        if self._kept is None:
            return self._computed(features)
        return [kept[list(places)].permute(0, 3, 1, 2) for kept in self._kept]

    def _computed(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [map_.to(BUFFER_TYPE) for map_ in outputs(self.network, features, self._run)]

    def _keep(self, places: range, maps: Sequence[Tensor]) -> None:
        if self._fits is None:
            needed = len(self._images) * sum(map_[0].numel() * map_.element_size() for map_ in maps)
            self._fits = needed <= self._budget
            if self._fits:
                sizes = [(len(self._images), *map_.shape[2:], map_.shape[1]) for map_ in maps]
                self._kept = [map_.new_empty(size) for map_, size in zip(maps, sizes)]
            else:
                self._run.progress.note(
                    f"what the last global student gives would take {needed / 1e9:.3g} GB, more than memory="
                    f"{self._budget / 1e9:.3g}: it is computed at each use, which is slower"
                )
        for kept, map_ in zip(self._kept or [], maps):
            kept[places.start : places.stop] = map_.permute(0, 2, 3, 1)


@torch.no_grad()
def consensus(candidates: Sequence[Sequence[Tensor]], reference: Sequence[Tensor]) -> list[Tensor]:
    """Image by image, the maps of the candidate that agrees best with the reference, which is no candidate itself.

    Agreement is the cosine of whole maps, summed over levels; of equal ones the first is taken.

    Args:
        candidates: of each, maps ``b c y x``, a level each.
        reference: the same shapes.
    """
    agreement = torch.stack([_agreement(maps, reference) for maps in candidates])
    best = agreement.argmax(dim=0)
    chosen = [map_.clone() for map_ in candidates[0]]
    for number, maps in enumerate(candidates[1:], start=1):
        is_best = best == number
        for level, map_ in zip(chosen, maps, strict=True):
            level[is_best] = map_[is_best]
    return chosen


def _agreement(maps: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """``b``: the cosine of whole maps, summed over levels."""
    pairs = zip(maps, reference, strict=True)
    by_level = [cosines(a.permute(0, 2, 3, 1).flatten(1), b.permute(0, 2, 3, 1).flatten(1)) for a, b in pairs]
    return torch.stack(by_level).sum(dim=0)
