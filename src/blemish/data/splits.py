"""Holding out and cross-fitting by group; the order of files on a disk never changes a split."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from blemish.errors import DataError


def joined_groups(groups: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The group of each image; groups that share an image's content, told by its key, are one: copies are no parts."""
    joined, first = dict[str, str](), dict[str, str]()

    def name_of(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for group, key in zip(groups, keys):
        own, other = name_of(group), name_of(first.setdefault(key, group))
        joined |= {max(own, other): min(own, other)} if own != other else {}
    return [name_of(group) for group in groups]


def split_by_group(groups: Sequence[str], held: int | float, seed: int) -> tuple[list[int], list[int]]:
    """Indices kept and indices held out, both ascending; no group is on both sides, and none of them is empty.

    ``held`` is how many groups to hold out (an int), or a fraction of them (a float: the nearest number, at least 1).
    """
    shuffled = shuffled_names(groups, seed, "split")
    number = held if isinstance(held, int) else max(1, round(held * len(shuffled)))
    if not 0 < number < len(shuffled):
        problem = f"{number} of {len(shuffled)} groups cannot be held out: at least one has to be held and one kept"
        raise DataError(f"{problem}. Give more images, or hold out fewer.")
    chosen = set(shuffled[:number])
    kept = [index for index, group in enumerate(groups) if group not in chosen]
    return kept, [index for index, group in enumerate(groups) if group in chosen]


def folds_by_group(groups: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    """The indices of each fold, ascending: every index once, every group whole, about equally many images in each."""
    shuffled = shuffled_names(groups, seed, "folds")
    if not 2 <= folds <= len(shuffled):
        problem = f"{len(shuffled)} groups cannot be split into {folds} folds"
        raise DataError(f"{problem}: choose from 2 folds to one a group.")
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
    digest = hashlib.sha256(f"{seed}/{purpose}".encode(errors="surrogateescape")).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(ordered))
    return [ordered[place] for place in order]
