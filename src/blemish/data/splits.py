"""Holding out and cross-fitting by group: the unit is the part, not the file.

Group names are sorted before anything random happens, so that the order of files on a disk never changes a split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from blemish.errors import DataError


def split_by_group(groups: Sequence[str], held: int | float, seed: int) -> tuple[list[int], list[int]]:
    """Indices kept and indices held out, both ascending; no group is on both sides.

    ``groups`` are those of the images; ``held`` is how many of them to hold out (an int), or a fraction of them in
    (0, 1) (a float: the nearest number, at least 1).

    Raises:
        DataError: that would leave one side without a group.
    """
    shuffled = shuffled_names(groups, seed, "split")
    number = held if isinstance(held, int) else max(1, round(held * len(shuffled)))
    if not 0 < number < len(shuffled):
        raise DataError(
            f"{number} of {len(shuffled)} groups cannot be held out: at least one has to be held and one kept. "
            "Give more images, or hold out fewer."
        )
    chosen = set(shuffled[:number])
    kept = [index for index, group in enumerate(groups) if group not in chosen]
    return kept, [index for index, group in enumerate(groups) if group in chosen]


def folds_by_group(groups: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    """The indices of each fold, ascending: every index once, every group whole, about equally many images in each.

    Raises:
        DataError: fewer than two folds, or fewer groups than folds.
    """
    shuffled = shuffled_names(groups, seed, "folds")
    if not 2 <= folds <= len(shuffled):
        raise DataError(
            f"{len(shuffled)} groups cannot be split into {folds} folds: choose from 2 folds to one a group."
        )
    images = Counter(groups)
    filled = [0] * folds
    fold_of: dict[str, int] = {}
    # Largest groups first, each into the emptiest fold; the sort is stable, so equal groups stay shuffled.
    for group in sorted(shuffled, key=lambda name: -images[name]):
        fold = filled.index(min(filled))
        fold_of[group] = fold
        filled[fold] += images[group]
    return [[index for index, group in enumerate(groups) if fold_of[group] == fold] for fold in range(folds)]


def shuffled_names(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Each name once, in an order that depends on the seed, the purpose and the names alone."""
    ordered = sorted(set(names))
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(ordered))
    return [ordered[place] for place in order]
