"""Splits by group: whole groups, balanced folds, the same for a seed in whatever order files come."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.data.splits import folds_by_group, joined_groups, split_by_group
from blemish.errors import DataError

many_groups = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40).filter(lambda g: len(set(g)) > 1)


@settings(max_examples=60, deadline=None)
@given(many_groups, st.integers(0, 9), st.data())
def test_groups_stay_whole_and_folds_balanced_in_whatever_order_files_come(groups, seed, data):
    shuffled = random.Random(seed).sample(groups, len(groups))
    number = data.draw(st.integers(1, len(set(groups)) - 1))
    kept, held = split_by_group(groups, number, seed)
    assert sorted(kept + held) == list(range(len(groups)))
    assert kept == sorted(kept) and held == sorted(held)
    names = {groups[index] for index in held}
    assert len(names) == number and names.isdisjoint(groups[index] for index in kept)
    assert names == {shuffled[index] for index in split_by_group(shuffled, number, seed)[1]}

    folds = folds_by_group(groups, data.draw(st.integers(2, len(set(groups)))), seed)
    assert sorted(index for fold in folds for index in fold) == list(range(len(groups)))
    homes = [{groups[index] for index in fold} for fold in folds]
    assert sum(len(home) for home in homes) == len(set(groups)) and all(homes)
    assert homes == [{shuffled[i] for i in fold} for fold in folds_by_group(shuffled, len(folds), seed)]
    # Filling the emptiest fold first never leaves two folds further apart than the largest group.
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= max(Counter(groups).values())


def test_a_fraction_of_the_groups_and_each_about_equally_often():
    groups = [f"{n // 3}" for n in range(60)]
    kept, held = split_by_group(groups, 0.25, 1)
    assert (len(kept), len(held)) == (45, 15)
    assert len(split_by_group(groups, 0.001, 1)[1]) == 3  # at least one group
    groups = list("abcde")
    times = Counter(groups[index] for seed in range(400) for index in split_by_group(groups, 2, seed)[1])
    # 160 expected of each, standard deviation about 9.8.
    assert all(120 < times[group] < 200 for group in groups)
    assert len({str(folds_by_group(groups, 2, seed)) for seed in range(8)}) > 4


@pytest.mark.parametrize(
    ("groups", "keys", "joined"),
    [
        ("abc", "123", "abc"),
        ("cba", "111", "aaa"),
        ("aabbc", "12234", "aaaac"),  # b has a copy of a's second image
        ("abcd", "1221", "abba"),
        ("aabbccdd", "12233445", "aaaaaaaa"),  # a chain
    ],
)
def test_groups_that_share_a_content_are_one(groups, keys, joined):
    assert "".join(joined_groups(groups, keys)) == joined


def test_impossible_splits():
    for held in (0, 2, 3, 0.9):
        with pytest.raises(DataError, match="of 2 groups cannot be held out"):
            split_by_group(["a", "b", "b"], held, 0)
    for folds in (1, 3):
        with pytest.raises(DataError, match=f"2 groups cannot be split into {folds} folds"):
            folds_by_group(["a", "b", "b"], folds, 0)
