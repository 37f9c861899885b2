"""Contamination, labelled anomalies and alternative splits, on made-up sets."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.data.protocols import alternative_split, contaminate, kinds_to_label, label_anomalies, write_manifests
from blemish.data.readers import read_training
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ConfigError, DataError, ManifestError, OutputError

KINDS = {"crack": 8, "dent": 6, "stain": 10}


def made_up(normal=95, groups=(1,) * 8, kinds=None, per_group=1, known=None):
    """Normal training images in pairs; anomalous test images, of kind dent in groups of those sizes unless ``kinds``
    numbers them; ``known`` numbers the training set's own by kind."""
    train = [Sample(Path(f"/set/train/good/{i}.png"), "normal", group=f"t{i // 2}") for i in range(normal)]
    for kind, number in (known or {}).items():
        train += [Sample(Path(f"/set/train/{kind}/{i}.png"), "anomalous", kind=kind) for i in range(number)]
    test = [Sample(Path(f"/set/test/good/{i}.png"), "normal", "test", group=f"g{i}") for i in range(6)]
    named = [("dent", f"b{group}", i) for group, size in enumerate(groups) for i in range(size)]
    if kinds is not None:
        named = [(kind, f"{kind}{i // per_group}", i) for kind, number in kinds.items() for i in range(number)]
    for kind, group, i in named:
        name = f"{kind}/{group}_{i}.png"
        test.append(Sample(Path("/set/test") / name, "anomalous", "test", kind, group, Path("/set/gt") / name))
    return TrainingSet("set", None, tuple(train)), TestSet("set", Path("/set"), tuple(test))


def drawn(ratio):
    return lambda: contaminate(*made_up(100), ratio, 0)


def labelled(ratio, *kinds):
    return lambda: label_anomalies(*made_up(30, kinds=KINDS), ratio, kinds, 0)


def groups_of(samples):
    return {sample.group for sample in samples}


def facts(samples):
    return {(s.path, s.label, s.split, s.kind, s.group, s.mask) for s in samples}


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 60), st.lists(st.integers(1, 4), min_size=6, max_size=10), st.integers(0, 8), st.integers(0, 9))
def test_contaminate_draws_whole_groups_and_cuts_the_last(normal, sizes, percent, seed):
    training, test = made_up(normal, sizes, known={"burn": 3})
    test = replace(
        test, samples=(replace(test.samples[0], group="b0"), *test.samples[1:])
    )  # a good picture of a bad part
    ratio = percent / 100
    number = int(ratio * normal)
    assume((ratio > 0) == (number > 0))
    pile = contaminate(training, test, ratio, seed)
    assert len(pile.drawn) == number and all(sample.anomalous for sample in pile.drawn)
    kinds = {(s.label, s.kind, s.split, s.mask) for s in pile.training.samples}
    assert kinds == {("unlabelled", "unlabelled", "train", None)}
    assert [s.path for s in pile.training.samples] == [s.path for s in (*training.normal, *pile.drawn)]
    assert "3 known-bad training images are left out" in pile.training.notes[-1]
    assert pile.overlap.samples == test.samples
    assert pile.test.samples == tuple(s for s in test.samples if s.group not in groups_of(pile.drawn))
    joined, whole = Counter(s.group for s in pile.drawn), Counter(s.group for s in test.samples if s.anomalous)
    assert sum(joined[group] < whole[group] for group in joined) <= 1
    backwards = replace(test, samples=test.samples[::-1])
    assert contaminate(training, backwards, ratio, seed).drawn == pile.drawn, "the order of files does not matter"


def test_contaminate_may_draw_any_image_and_more_at_a_larger_ratio():
    training, test = made_up(50, groups=(4, 4, 4, 4))
    draws = [contaminate(training, test, 0.1, seed).drawn for seed in range(30)]  # a group of four, and one of another
    assert len(set().union(*draws)) == 16
    training, test = made_up(100, groups=(2, 3, 2, 1, 4, 2, 3))
    growing = [set(contaminate(training, test, ratio, 1).drawn) for ratio in (0.02, 0.05, 0.07, 0.12)]
    assert all(small < large for small, large in itertools.pairwise(growing))


@pytest.mark.parametrize(
    ("normal", "ratio", "labels"), [(95, 0.05, 5), (241, 0.05, 13), (320, 0.05, 17), (100, 0.01, 1), (9, 0.5, 9)]
)
def test_the_number_of_labels_is_a_share_of_the_training_set(normal, ratio, labels):
    few = label_anomalies(*made_up(normal, kinds={"crack": 40}), ratio, ["crack"], 0, validate=False)
    assert len(few.drawn) == len(few.training.anomalous) == labels
    shares = [abs(ratio - number / (normal + number)) for number in range(40)]
    assert shares[labels] <= min(shares) + 1e-3


def test_one_kind_is_every_kind_in_turn_and_several_are_five_draws():
    training, test = made_up(kinds=KINDS)
    assert kinds_to_label(training, test, 1, 7) == (("crack",), ("dent",), ("stain",))
    draws = [kinds_to_label(training, test, 2, seed) for seed in (7, 7, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(draws)) > 1 and len(set(draws[0])) > 1
    assert all(len(set(kinds)) == 2 and set(kinds) <= KINDS.keys() for kinds in draws[0]) and len(draws[0]) == 5
    for count in (0, 4):
        with pytest.raises(ConfigError, match="has 3: crack, dent, stain"):
            kinds_to_label(training, test, count, 0)


def test_labels_are_spread_over_the_kinds_and_their_groups_leave_the_test_set():
    training, test = made_up(kinds=KINDS, per_group=3)
    backwards = replace(test, samples=test.samples[::-1])
    draws = set()
    for seed in range(12):
        few = label_anomalies(training, test, 0.05, ["stain", "crack"], seed)
        assert sorted(Counter(s.kind for s in few.training.anomalous).values()) == [2, 3]
        assert all(s.split == "train" and s.mask is None for s in few.training.samples)
        assert few.test.samples == tuple(s for s in test.samples if s.group not in groups_of(few.drawn))
        gone = len(test.samples) - len(few.test.samples)
        assert few.test.notes == (f"{gone} images of labelled groups are left out",)
        assert few.drawn == label_anomalies(training, backwards, 0.05, ["stain", "crack"], seed).drawn
        draws.add(few.drawn)
    assert len(draws) > 1
    assert len({label_anomalies(training, test, 0.05, ["crack"], 0, draw).drawn for draw in range(6)}) > 1
    none = label_anomalies(training, test, 0, ["crack"], 0)
    assert (none.training, none.test, none.drawn) == (training, test, ())
    # 13 labels, and there are 6 dents.
    few = label_anomalies(training, test, 0.12, ["dent", "crack"], 0, validate=False)
    assert Counter(s.kind for s in few.training.anomalous) == {"crack": 7, "dent": 6}


def test_a_training_set_s_own_anomalous_images_are_drawn_from_and_the_test_set_stays_whole():
    training, test = made_up(kinds=KINDS, known={"burn": 9, "crack": 4})
    assert kinds_to_label(training, test, 1, 0) == (("burn",), ("crack",))
    few = label_anomalies(training, test, 0.05, ["burn"], 0)
    assert [s.kind for s in few.training.anomalous] == ["burn"] * 5
    assert few.test.samples == test.samples
    assert label_anomalies(training, test, 0, ["burn"], 0).training.regime == "clean"


@pytest.mark.parametrize(
    ("deal", "error", "said"),
    [
        (drawn(0.1), DataError, r"is 10 bad ones, and the test set has 8: .* below 0\.080"),
        (drawn(0.08), DataError, "no bad part is left to test on"),
        (drawn(0.009), DataError, r"is 0 bad ones: give a ratio of at least 0\.010"),
        *((drawn(ratio), ConfigError, "from 0 to 1") for ratio in (-0.1, 1.5, float("nan"))),
        (labelled(0.03, "crack", "dent"), DataError, r"30 / \(1 - 0\.03\) - 30 = 1 labels, fewer than .* 0\.0625"),
        (labelled(0.01, "crack"), DataError, "= 0 labels, fewer than the 1 kinds"),
        (labelled(0.2, "dent"), DataError, r"= 8 labels, and dent have 6 images: .* at most 0\.1667"),
        (labelled(0.05, "dint"), ConfigError, "no bad image of kind dint: it has crack, dent, stain"),
        (labelled(0.44, "crack", "dent", "stain"), DataError, "no bad part is left"),
        *((labelled(ratio, "crack"), ConfigError, "0 to below 1") for ratio in (-0.1, 1.0)),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_the_arithmetic(deal, error, said):
    with pytest.raises(error, match=said):
        deal()


@pytest.mark.parametrize(
    ("per_group", "ratio", "labels", "held"), [(1, 0.16, 18, 0), (1, 0.175, 20, 2), (1, 0.3, 41, 3), (30, 0.175, 20, 0)]
)
def test_whole_groups_are_held_out_from_twenty_labels_on_but_never_the_only_one(per_group, ratio, labels, held):
    training, test = made_up(kinds={"crack": 60}, per_group=per_group)
    few = label_anomalies(training, test, ratio, ["crack"], 0)
    assert len(few.drawn) == labels and (few.validation is None) == (held == 0)
    assert label_anomalies(training, test, ratio, ["crack"], 0, validate=False).validation is None
    held_out = few.validation.samples if held else ()
    count = Counter((s.label, s.split) for s in (*held_out, *few.training.samples))
    normal = count["normal", "test"]
    assert held <= normal <= held + 1  # normal images come in pairs
    expected = {("anomalous", "test"): held, ("anomalous", "train"): labels - held, ("normal", "train"): 95 - normal}
    assert count == Counter({**expected, ("normal", "test"): normal})
    assert not groups_of(few.training.samples) & groups_of(held_out)


def screws(root, text):
    """Six normal training images, two normal and two dented test images, none decoded; and a file that splits them."""
    train = tuple(Sample(root / f"train/good/{i}.png", "normal", group=f"part{i}") for i in range(6))
    normal = tuple(Sample(root / f"test/good/{i}.png", "normal", "test", group=f"old{i}") for i in range(2))
    dents = tuple(Sample(root / f"test/dent/{i}.png", "anomalous", "test", "dent", f"bad{i}") for i in range(2))
    (root / "alt.csv").write_text(text)
    return TrainingSet("screws", root, train), TestSet("screws", root, normal + dents), root / "alt.csv"


def sides(*words):
    return "\n".join(["file,alt_split", *(f"train/good/{i}.png,{word}" for i, word in enumerate(words))])


def test_a_ratio_of_a_hundred_images_is_that_many():
    training, test = made_up(100, (1,) * 101)
    drawn = [len(contaminate(training, test, percent / 100, 0).drawn) for percent in range(1, 101)]
    assert drawn == [*range(1, 101)]


def test_moved_images_replace_the_normal_test_images(tmp_path):
    text = sides("train", "test_good_alt", "train", "train", "test_good_alt", "train")
    training, test = alternative_split(*screws(tmp_path, text))
    assert [sample.group for sample in training.samples] == ["part0", "part2", "part3", "part5"]
    assert {s.split for s in test.samples} == {"test"} and training.name == test.name == "screws (alt)"
    normal = [("part1", "normal", "good"), ("part4", "normal", "good")]
    dents = [("bad0", "anomalous", "dent"), ("bad1", "anomalous", "dent")]
    assert [(sample.group, sample.label, sample.kind) for sample in test.samples] == normal + dents
    assert "2 training images are the good test images" in test.notes[-1]


def test_images_that_are_links_are_dealt_by_their_own_names(tmp_path):
    training, test, split = screws(tmp_path, sides("test", *["train"] * 5))
    for sample in training.samples:
        sample.path.parent.mkdir(parents=True, exist_ok=True)
        sample.path.symlink_to(tmp_path / f"elsewhere-{sample.path.name}")
        (tmp_path / f"elsewhere-{sample.path.name}").touch()
    assert len(alternative_split(training, test, split)[0].samples) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (sides(*["train"] * 5), "does not list the training image train/good/5.png"),
        (sides("test", *["train"] * 6), "lists 1 files that are no training image, such as train/good/6.png"),
        (sides(*["train"] * 6), "leaves one side empty"),
        (sides(*["test"] * 6), "leaves one side empty"),
        (sides("train", "train", "validation", *["train"] * 3), "line 4: 'validation' is neither"),
        (sides("train") + "\ntrain/good/0.png,test", r"lists train/good/0\.png twice"),
        (sides(), "lacks a column: file, alt_split"),
        ("file,split\ntrain/good/0.png,train\n", "lacks a column: file, alt_split"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(tmp_path, text, said):
    with pytest.raises(ManifestError, match=said):
        alternative_split(*screws(tmp_path, text))
    with pytest.raises(ManifestError, match="cannot be read"):
        alternative_split(*screws(tmp_path, text)[:2], tmp_path / "nowhere.csv")


def test_manifests_give_back_what_was_dealt_and_replace_nothing_that_is_read(tmp_path):
    root = tmp_path / "set"
    numbers = {"train/good": 40, "test/good": 4, "test/crack": 24, "test/dent": 4, "ground_truth/crack": 24}
    for folder, number in numbers.items():
        (root / folder).mkdir(parents=True)
        for i in range(number):
            name = f"{i}_mask.png" if folder.startswith("ground_truth") else f"{i}.png"
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / folder / name)
    before = "\n".join(["file,group", *(f"test/crack/{i}.png,part{i // 2}" for i in range(24))])
    (root / "manifest.csv").write_text(before)
    training, test = read_training(root), open_test_set(root)
    pile = contaminate(training, test, 0.1, 4)
    with pytest.raises(OutputError, match="choose another name"):
        write_manifests(pile, root / "manifest.csv")
    with pytest.raises(ManifestError, match="write it to a folder that holds the images") as caught:
        write_manifests(pile, tmp_path / "elsewhere" / "few.csv")
    assert f"such as {root.resolve() / 'few.csv'}" in str(caught.value)
    assert (root / "manifest.csv").read_text() == before
    assert [p.name for p in root.iterdir() if p.is_file()] == ["manifest.csv"]

    few = label_anomalies(training, test, 0.34, ["crack"], 3)
    for dealt, beside, ending in ((pile, pile.overlap, "overlap"), (few, few.validation, "validation")):
        first, second = write_manifests(dealt, root / "dealt.csv")
        assert (first, second) == (root / "dealt.csv", root / f"dealt-{ending}.csv")
        assert facts(read_training(first).samples) == facts(dealt.training.samples)
        assert facts(open_test_set(first).samples) == facts(dealt.test.samples)
        assert facts(open_test_set(second).samples) == facts(beside.samples)
        assert first.read_text().startswith("path,label,split,mask,category,kind,group\n")
        assert str(root) not in first.read_text()
    assert len(few.drawn) == 21 == sum(s.anomalous for s in (*few.training.samples, *few.validation.samples))
    assert len(write_manifests(label_anomalies(training, test, 0.05, ["dent"], 0), root / "two.csv")) == 1

    outer, _ = write_manifests(pile, tmp_path / "pile.csv")
    again = contaminate(read_training(outer), open_test_set(outer), 0.05, 0)
    assert len(again.training.samples) == 46
    with pytest.raises(OutputError, match="what this set is read by and would be replaced"):
        write_manifests(again, outer)
    assert read_training(outer).summary().startswith("0 good, 44 unlabelled")
