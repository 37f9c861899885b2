"""Contamination, labelled anomalies and alternative splits, on made-up sets and on real ones where there are some."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.protocols import (
    alternative_split,
    contaminate,
    kinds_to_label,
    label_anomalies,
    label_count,
    write_contaminated,
    write_labelled,
)
from blemish.data.readers import read_training
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ConfigError, DataError, ManifestError

REAL = Path(os.environ.get("BLEMISH_DATA", Path(__file__).parents[3] / "shared" / "data"))
SEEDS = range(12)


def made_up(normal=95, groups=(1,) * 8, kinds=None, per_group=1, known=None):
    """Normal training images in pairs; anomalous test images, of kind dent in groups of those sizes unless ``kinds``
    numbers them; ``known`` numbers the training set's own by kind."""
    train = [Sample(Path(f"/set/train/good/{i}.png"), "normal", group=f"t{i // 2}") for i in range(normal)]
    for kind, number in (known or {}).items():
        paths = [Path(f"/set/train/{kind}/{i}.png") for i in range(number)]
        train += [Sample(path, "anomalous", kind=kind) for path in paths]
    test = [Sample(Path(f"/set/test/good/{i}.png"), "normal", "test", group=f"g{i}") for i in range(6)]
    named = [("dent", f"b{group}", i) for group, size in enumerate(groups) for i in range(size)]
    if kinds is not None:
        named = [(kind, f"{kind}{i // per_group}", i) for kind, number in kinds.items() for i in range(number)]
    for kind, group, i in named:
        name = f"{kind}/{group}_{i}.png"
        test.append(Sample(Path("/set/test") / name, "anomalous", "test", kind, group, Path("/set/gt") / name))
    return TrainingSet("set", None, tuple(train)), TestSet("set", Path("/set"), tuple(test))


KINDS = {"crack": 8, "dent": 6, "stain": 10}


def names(samples):
    return {sample.path.name for sample in samples}


def groups_of(samples):
    return {sample.group for sample in samples}


class TestContaminate:
    @pytest.mark.parametrize(("ratio", "number"), [(0.1, 4), (0.12, 4), (0.125, 5), (0.0, 0)])
    def test_the_number_is_the_ratio_of_the_training_images_rounded_down(self, ratio, number):
        training, test = made_up(40)
        pile = contaminate(training, test, ratio, 3)
        assert len(pile.drawn) == number
        assert pile.training.regime == "contaminated"
        assert {(s.label, s.kind, s.split, s.mask) for s in pile.training.samples} == {
            ("unlabelled", "unlabelled", "train", None)
        }
        assert [s.path for s in pile.training.samples] == [s.path for s in (*training.samples, *pile.drawn)]
        assert all(sample.anomalous for sample in pile.drawn)
        assert pile.overlap.samples == pile.test(overlap=True).samples == test.samples
        assert pile.no_overlap is pile.test(overlap=False)
        assert {*test.samples} - {*pile.no_overlap.samples} == {*pile.drawn}

    def test_whole_groups_are_drawn_and_leave_the_test_set(self):
        training, test = made_up(60, groups=(3, 3, 3, 3, 3))
        for seed in SEEDS:
            pile = contaminate(training, test, 0.1, seed)
            assert (len(pile.drawn), len(groups_of(pile.drawn))) == (6, 2)
            assert not groups_of(pile.drawn) & groups_of(pile.no_overlap.samples)
            assert sum(s.anomalous for s in pile.no_overlap.samples) == 9

    def test_of_the_last_group_only_what_is_missing_joins_but_all_of_it_leaves(self):
        training, test = made_up(50, groups=(4, 4, 4, 4))
        drawn = set()
        for seed in range(30):
            pile = contaminate(training, test, 0.1, seed)  # 5: a group of four, and one of another
            assert sorted(Counter(s.group for s in pile.drawn).values()) == [1, 4]
            assert sum(s.anomalous for s in pile.no_overlap.samples) == 8
            drawn |= names(pile.drawn)
        assert len(drawn) == 16  # any image may be the one

    def test_normal_test_images_of_a_drawn_group_leave_too(self):
        training, test = made_up(10)
        test = replace(test, samples=(replace(test.samples[0], group="b0"), *test.samples[1:]))
        for seed in SEEDS:
            pile = contaminate(training, test, 0.1, seed)
            assert ("0.png" in names(pile.no_overlap.samples)) == (pile.drawn[0].group != "b0")

    def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_files(self):
        training, test = made_up(40, groups=(2, 1, 3, 1, 1, 2, 1, 1))
        backwards = replace(test, samples=test.samples[::-1])
        draws = [names(contaminate(training, test, 0.1, seed).drawn) for seed in SEEDS]
        assert draws == [names(contaminate(training, backwards, 0.1, seed).drawn) for seed in SEEDS]
        assert len(set(map(frozenset, draws))) > 6

    def test_smaller_ratios_draw_a_part_of_what_larger_ones_draw(self):
        training, test = made_up(100, groups=(2, 3, 2, 1, 4, 2, 3))
        draws = [names(contaminate(training, test, ratio, 1).drawn) for ratio in (0.02, 0.05, 0.07, 0.12)]
        assert all(small < large for small, large in itertools.pairwise(draws))

    def test_anomalous_training_images_are_left_out_and_not_counted(self):
        pile = contaminate(*made_up(40, known={"dent": 5}), 0.1, 0)
        assert len(pile.training.samples) == 44
        assert "5 known-bad training images are left out" in pile.training.notes[-1]

    @pytest.mark.parametrize(
        ("ratio", "error", "said"),
        [
            (0.1, DataError, r"is 10 bad ones, and the test set has 8: .* below 0\.080"),
            (0.08, DataError, "no bad part is left to test on"),
            (0.009, DataError, r"is 0 bad ones: give a ratio of at least 0\.010"),
            (-0.1, ConfigError, "from 0 to 1"),
            (1.5, ConfigError, "from 0 to 1"),
            (float("nan"), ConfigError, "from 0 to 1"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_with_the_numbers(self, ratio, error, said):
        with pytest.raises(error, match=said):
            contaminate(*made_up(100), ratio, 0)


class TestLabelAnomalies:
    @pytest.mark.parametrize(
        ("normal", "ratio", "labels"),
        [(95, 0.05, 5), (241, 0.05, 13), (320, 0.05, 17), (100, 0.01, 1), (30, 0.01, 0), (95, 0, 0), (9, 0.5, 9)],
    )
    def test_the_number_of_labels_is_a_share_of_the_training_set(self, normal, ratio, labels):
        assert label_count(normal, ratio) == labels
        shares = [abs(ratio - number / (normal + number)) for number in range(40)]
        assert shares[labels] <= min(shares) + 1e-3
        if labels:
            few = label_anomalies(*made_up(normal, kinds={"crack": 40}), ratio, ["crack"], 0, validate=False)
            assert len(few.training.anomalous) == few.labels == labels
            assert few.training.regime == "weak"

    def test_no_labels_leave_everything_as_it_was(self):
        training, test = made_up(kinds=KINDS)
        few = label_anomalies(training, test, 0, ["crack"], 0)
        assert (few.training, few.test) == (training, test)
        assert (few.validation, few.labels, few.kinds) == (None, 0, ())

    def test_one_kind_is_every_kind_in_turn_and_several_are_five_draws(self):
        training, test = made_up(kinds=KINDS)
        assert kinds_to_label(training, test, 1, 7) == (("crack",), ("dent",), ("stain",))
        draws = kinds_to_label(training, test, 2, 7)
        assert len(draws) == 5 and len(set(draws)) > 1
        assert all(len(set(kinds)) == 2 and set(kinds) <= KINDS.keys() for kinds in draws)
        assert draws == kinds_to_label(training, test, 2, 7)
        assert any(draws != kinds_to_label(training, test, 2, seed) for seed in range(5))
        for count in (0, 4):
            with pytest.raises(ConfigError, match="has 3: crack, dent, stain"):
                kinds_to_label(training, test, count, 0)

    def test_labels_are_of_the_kinds_asked_for_as_evenly_as_can_be(self):
        training, test = made_up(kinds=KINDS)
        for seed in range(5):
            few = label_anomalies(training, test, 0.05, ["stain", "crack"], seed)
            assert sorted(Counter(s.kind for s in few.training.anomalous).values()) == [2, 3]
            # 13 labels, and there are 6 dents.
            few = label_anomalies(training, test, 0.12, ["dent", "crack"], seed, validate=False)
            assert Counter(s.kind for s in few.training.anomalous) == {"crack": 7, "dent": 6}
            assert few.kinds == ("dent", "crack")
            assert all(s.split == "train" and s.mask is None for s in few.training.samples)

    def test_groups_are_labelled_whole_and_leave_the_test_set_whole(self):
        training, test = made_up(kinds=KINDS, per_group=3)
        for seed in SEEDS:
            few = label_anomalies(training, test, 0.05, ["stain"], seed)
            groups = groups_of(few.training.anomalous)
            assert len(few.training.anomalous) == 5
            assert len(groups) in (2, 3)  # three images a group, and of the tenth stain one alone
            assert not groups & groups_of(few.test.samples)
            gone = [s for s in test.samples if s.group in groups]
            assert len(few.test.samples) == len(test.samples) - len(gone)
            assert few.test.notes == (f"{len(gone)} images of labelled groups are left out",)

    def test_a_training_set_s_own_anomalous_images_are_drawn_from_and_the_test_set_stays_whole(self):
        training, test = made_up(kinds=KINDS, known={"burn": 9, "crack": 4})
        assert kinds_to_label(training, test, 1, 0) == (("burn",), ("crack",))
        few = label_anomalies(training, test, 0.05, ["burn"], 0)
        assert [s.kind for s in few.training.anomalous] == ["burn"] * 5
        assert few.test.samples == test.samples
        assert label_anomalies(training, test, 0, ["burn"], 0).training.regime == "clean"

    def test_the_seed_and_the_draw_choose_the_order_of_files_does_not(self):
        training, test = made_up(kinds=KINDS)
        backwards = replace(test, samples=test.samples[::-1])

        def labelled(seed, draw=0, among=test):
            return frozenset(names(label_anomalies(training, among, 0.05, ["crack"], seed, draw).training.anomalous))

        assert labelled(0) == labelled(0, among=backwards)
        assert len({labelled(seed) for seed in range(6)}) > 1
        assert len({labelled(0, draw) for draw in range(6)}) > 1

    @pytest.mark.parametrize(
        ("normal", "ratio", "kinds", "error", "said"),
        [
            (
                30,
                0.03,
                ["crack", "dent"],
                DataError,
                r"30 / \(1 - 0\.03\) - 30 = 1 labels, fewer than .* 0\.0625",
            ),
            (30, 0.01, ["crack"], DataError, "= 0 labels, fewer than the 1 kinds"),
            (95, 0.1, ["dent"], DataError, r"= 11 labels, and dent have 6 images: .* at most 0\.0594"),
            (95, 0.05, ["dint"], ConfigError, "no bad image of kind dint: it has crack, dent, stain"),
            (95, 0.2, ["crack", "dent", "stain"], DataError, "no bad part is left"),
            (95, -0.1, ["crack"], ConfigError, "0 to below 1"),
            (95, 1.0, ["crack"], ConfigError, "0 to below 1"),
        ],
    )
    def test_what_cannot_be_labelled_is_refused_with_the_arithmetic(self, normal, ratio, kinds, error, said):
        with pytest.raises(error, match=said):
            label_anomalies(*made_up(normal, kinds=KINDS), ratio, kinds, 0)

    @pytest.mark.parametrize(("ratio", "labels", "held"), [(0.16, 18, 0), (0.175, 20, 2), (0.3, 41, 3)])
    def test_a_validation_part_only_from_twenty_labels_on(self, ratio, labels, held):
        training, test = made_up(kinds={"crack": 60})
        few = label_anomalies(training, test, ratio, ["crack"], 0)
        assert few.labels == labels
        assert label_anomalies(training, test, ratio, ["crack"], 0, validate=False).validation is None
        if not held:
            assert few.validation is None
            return
        anomalous = sum(s.anomalous for s in few.validation.samples)
        normal = len(few.validation.samples) - anomalous
        assert (anomalous, len(few.training.anomalous)) == (held, labels - held)
        assert held <= normal <= held + 1  # normal images come in pairs
        assert len(few.training.normal) == 95 - normal
        assert not groups_of(few.training.samples) & groups_of(few.validation.samples)
        assert {(s.split, s.label) for s in few.validation.samples} == {("test", "normal"), ("test", "anomalous")}

    def test_a_single_labelled_group_is_not_held_out(self):
        few = label_anomalies(*made_up(kinds={"crack": 40}, per_group=20), 0.175, ["crack"], 0)
        assert (few.validation, len(few.training.samples)) == (None, 115)


class TestAlternativeSplit:
    """Six normal training images, two normal and two anomalous test images; nothing is decoded."""

    @staticmethod
    def sets(root):
        train = tuple(Sample(root / f"train/good/{i}.png", "normal", group=f"part{i}") for i in range(6))
        normal = tuple(Sample(root / f"test/good/{i}.png", "normal", "test", group=f"old{i}") for i in range(2))
        dents = tuple(Sample(root / f"test/dent/{i}.png", "anomalous", "test", "dent", f"bad{i}") for i in range(2))
        return TrainingSet("screws", root, train), TestSet("screws", root, normal + dents)

    @staticmethod
    def split_file(root, *sides):
        """A side for each digit: ("012", "train") is three lines."""
        lines = [f"train/good/{number}.png,{side}" for numbers, side in sides for number in numbers]
        (root / "alt.csv").write_text("\n".join(["file,alt_split", *lines]))
        return root / "alt.csv"

    def test_moved_images_replace_the_normal_test_images(self, tmp_path):
        split = self.split_file(tmp_path, ("0235", "train"), ("14", "test_good_alt"))
        training, test = alternative_split(*self.sets(tmp_path), split)
        assert [sample.group for sample in training.samples] == ["part0", "part2", "part3", "part5"]
        assert [(sample.group, sample.label, sample.split, sample.kind) for sample in test.samples] == [
            ("part1", "normal", "test", "good"),
            ("part4", "normal", "test", "good"),
            ("bad0", "anomalous", "test", "dent"),
            ("bad1", "anomalous", "test", "dent"),
        ]
        assert training.name == test.name == "screws (alt)"
        assert "2 training images are the good test images" in test.notes[-1]

    @pytest.mark.parametrize(
        ("sides", "said"),
        [
            ([("01234", "train")], "does not list the training image train/good/5.png"),
            ([("0", "test"), ("12345", "train"), ("9", "test")], "lists 1 files that are no training image"),
            ([("012345", "train")], "leaves one side empty"),
            ([("012345", "test")], "leaves one side empty"),
            ([("01", "train"), ("2", "validation"), ("345", "train")], "line 4: 'validation' is neither"),
            ([("0", "train"), ("0", "test")], r"lists train/good/0\.png twice"),
            ([], "lacks a column: file, alt_split"),
        ],
    )
    def test_a_split_that_does_not_fit_is_refused(self, tmp_path, sides, said):
        with pytest.raises(ManifestError, match=said):
            alternative_split(*self.sets(tmp_path), self.split_file(tmp_path, *sides))

    def test_missing_files_and_columns(self, tmp_path):
        split = tmp_path / "alt.csv"
        with pytest.raises(ManifestError, match="cannot be read"):
            alternative_split(*self.sets(tmp_path), split)
        split.write_text("file,split\ntrain/good/0.png,train\n")
        with pytest.raises(ManifestError, match="lacks a column: file, alt_split"):
            alternative_split(*self.sets(tmp_path), split)


@pytest.fixture
def layout(tmp_path):
    """A set on disk: 40 normal images to learn from, 4 normal and 24 cracked ones of 12 groups to test on, 4 dented."""
    root = tmp_path / "set"
    numbers = {"train/good": 40, "test/good": 4, "test/crack": 24, "test/dent": 4, "ground_truth/crack": 24}
    for folder, number in numbers.items():
        (root / folder).mkdir(parents=True)
        for i in range(number):
            name = f"{i}_mask.png" if folder.startswith("ground_truth") else f"{i}.png"
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / folder / name)
    lines = [f"test/crack/{i}.png,part{i // 2}" for i in range(24)]
    (root / "manifest.csv").write_text("\n".join(["file,group", *lines]))
    return root


def facts(samples):
    return {(s.path, s.label, s.split, s.kind, s.group, s.mask) for s in samples}


def test_the_manifests_of_a_pile_give_back_what_was_drawn(layout):
    pile = contaminate(read_training(layout), open_test_set(layout), 0.1, 4)
    first, second = write_contaminated(pile, layout / "pile.csv")
    assert second == layout / "pile-overlap.csv"
    assert facts(read_training(first).samples) == facts(pile.training.samples)
    assert facts(open_test_set(first).samples) == facts(pile.no_overlap.samples)
    assert facts(open_test_set(second).samples) == facts(pile.overlap.samples)
    with pytest.raises(DataError, match="lists 0 training images"):
        read_training(second)
    assert first.read_text().startswith("path,label,split,mask,category,kind,group\n")
    assert str(layout) not in first.read_text()

    again = contaminate(read_training(first), open_test_set(first), 0.05, 0)
    assert len(again.training.samples) == 46
    with pytest.raises(ManifestError, match="would be replaced"):
        write_contaminated(again, first)
    assert read_training(first).summary().startswith("0 good, 44 unlabelled")


def test_the_manifests_of_labelled_anomalies_give_back_what_was_drawn(layout):
    training, test = read_training(layout), open_test_set(layout)
    few = label_anomalies(training, test, 0.34, ["crack"], 3)
    first, second = write_labelled(few, layout / "few.csv")
    assert (first, second) == (layout / "few.csv", layout / "few-validation.csv")
    assert few.labels == 21 == sum(s.anomalous for s in (*few.training.samples, *few.validation.samples))
    assert facts(read_training(first).samples) == facts(few.training.samples)
    assert facts(open_test_set(first).samples) == facts(few.test.samples)
    assert facts(open_test_set(second).samples) == facts(few.validation.samples)
    one = write_labelled(label_anomalies(training, test, 0.05, ["dent"], 0), layout / "two.csv")
    assert one == (layout / "two.csv",)


def test_manifests_lie_with_the_images_and_replace_nothing_that_is_read(layout, tmp_path):
    pile = contaminate(read_training(layout), open_test_set(layout), 0.1, 4)
    few = label_anomalies(read_training(layout), open_test_set(layout), 0.05, ["dent"], 0)
    before = (layout / "manifest.csv").read_text()
    for write, dealt in ((write_contaminated, pile), (write_labelled, few)):
        with pytest.raises(ManifestError, match="choose another name"):
            write(dealt, layout / "manifest.csv")
        with pytest.raises(ManifestError, match="write it to a folder that holds the images") as caught:
            write(dealt, tmp_path / "elsewhere" / "few.csv")
        assert f"such as {layout.resolve() / 'few.csv'}" in str(caught.value)
    assert (layout / "manifest.csv").read_text() == before
    assert sorted(p.name for p in layout.iterdir() if p.is_file()) == ["manifest.csv"]
    outer, _ = write_contaminated(pile, tmp_path / "pile.csv")
    assert len(read_training(outer).samples) == 44


@pytest.mark.real
@pytest.mark.parametrize(("name", "number"), [("magnetic_tile", 24), ("mvtec_screw", 32)])
def test_real_sets(name, number):
    if not (REAL / name).is_dir():
        pytest.skip(f"no real sets in {REAL}: set BLEMISH_DATA")
    training, test = read_training(REAL / name), open_test_set(REAL / name)
    pile = contaminate(training, test, 0.1, 0)
    assert len(pile.drawn) == number
    assert not groups_of(pile.drawn) & groups_of(pile.no_overlap.samples)
    assert len({s.path for s in pile.training.samples}) == len(training.samples) + number
    if name == "mvtec_screw":
        training, test = alternative_split(training, test, REAL / name / "resplit_alt.csv")
        assert (len(training.samples), Counter(s.anomalous for s in test.samples)) == (267, {False: 53, True: 119})
