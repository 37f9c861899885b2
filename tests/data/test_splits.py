"""Splits by group: whole groups, balanced folds, the same for a seed in whatever order files come."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.data.splits import folds_by_group, split_by_group
from blemish.errors import DataError

many_groups = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40).filter(lambda g: len(set(g)) > 1)


@settings(max_examples=60, deadline=None)
@given(many_groups, st.integers(0, 9), st.data())
def test_split_keeps_groups_whole(groups, seed, data):
    number = data.draw(st.integers(1, len(set(groups)) - 1))
    kept, held = split_by_group(groups, number, seed)
    assert sorted(kept + held) == list(range(len(groups)))
    assert kept == sorted(kept) and held == sorted(held)
    names = {groups[index] for index in held}
    assert len(names) == number
    assert names.isdisjoint(groups[index] for index in kept)


@settings(max_examples=60, deadline=None)
@given(many_groups, st.integers(0, 9), st.data())
def test_folds_keep_groups_whole_and_balanced(groups, seed, data):
    number = data.draw(st.integers(2, len(set(groups))))
    folds = folds_by_group(groups, number, seed)
    assert sorted(index for fold in folds for index in fold) == list(range(len(groups)))
    homes = [{groups[index] for index in fold} for fold in folds]
    assert sum(len(home) for home in homes) == len(set(groups))
    assert all(homes)
    # Filling the emptiest fold first never leaves two folds further apart than the largest group.
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= max(Counter(groups).values())


def test_single_images_make_even_folds():
    assert sorted(len(fold) for fold in folds_by_group([str(n) for n in range(23)], 5, 0)) == [4, 4, 5, 5, 5]


def test_fraction_of_the_groups():
    groups = [f"{n // 3}" for n in range(60)]
    kept, held = split_by_group(groups, 0.25, 1)
    assert (len(kept), len(held)) == (45, 15)
    assert len(split_by_group(groups, 0.001, 1)[1]) == 3  # at least one group


def test_seed_decides_and_file_order_does_not():
    groups = [f"part {n // 2}" for n in range(40)]
    shuffled = random.Random(0).sample(groups, len(groups))

    def held_groups(given, seed):
        return {given[index] for index in split_by_group(given, 6, seed)[1]}

    assert held_groups(groups, 3) == held_groups(shuffled, 3)
    assert len({frozenset(held_groups(groups, seed)) for seed in range(8)}) > 4

    def fold_groups(given, seed):
        return [{given[index] for index in fold} for fold in folds_by_group(given, 4, seed)]

    assert fold_groups(groups, 3) == fold_groups(shuffled, 3)
    assert fold_groups(groups, 3) != fold_groups(groups, 4)


def test_every_group_is_held_out_about_equally_often():
    groups = list("abcde")
    times = Counter(groups[index] for seed in range(400) for index in split_by_group(groups, 2, seed)[1])
    # 160 expected of each, standard deviation about 9.8.
    assert all(120 < times[group] < 200 for group in groups)


def test_impossible_splits():
    for held in (0, 2, 3, 0.9):
        with pytest.raises(DataError, match="of 2 groups cannot be held out"):
            split_by_group(["a", "b", "b"], held, 0)
    for folds in (1, 3):
        with pytest.raises(DataError, match=f"2 groups cannot be split into {folds} folds"):
            folds_by_group(["a", "b", "b"], folds, 0)
