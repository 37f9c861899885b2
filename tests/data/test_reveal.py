"""The protocol of coarse knowledge: how many labels, of which kinds, from which parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.readers import read_training
from blemish.data.reveal import kinds_to_reveal, label_count, reveal, write_revealed
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ConfigError, DataError, ManifestError


def made_up(good=95, kinds=None, per_group=1, known_bad=()):
    """``good`` training images in pairs; a test set with so many bad images of each kind, ``per_group`` a part."""
    kinds = {"crack": 8, "dent": 6, "stain": 10} if kinds is None else kinds
    train = [Sample(Path(f"/set/train/good/{i}.png"), "normal", group=f"t{i // 2}") for i in range(good)]
    for kind, number in known_bad:
        folder = Path(f"/set/train/{kind}")
        train += [Sample(folder / f"{i}.png", "anomalous", "train", kind, f"k{kind}{i}") for i in range(number)]
    test = [Sample(Path(f"/set/test/good/{i}.png"), "normal", "test", group=f"g{i}") for i in range(6)]
    for kind, number in kinds.items():
        for i in range(number):
            path = Path(f"/set/test/{kind}/{i}.png")
            test.append(Sample(path, "anomalous", "test", kind, f"{kind}{i // per_group}"))
    return TrainingSet("set", None, tuple(train)), TestSet("set", Path("/set"), tuple(test))


@pytest.mark.parametrize(
    ("normal", "ratio", "labels"),
    [(95, 0.05, 5), (241, 0.05, 13), (320, 0.05, 17), (100, 0.01, 1), (30, 0.01, 0), (95, 0, 0), (9, 0.5, 9)],
)
def test_the_number_of_labels_is_a_share_of_the_training_set(normal, ratio, labels):
    assert label_count(normal, ratio) == labels
    shares = [abs(ratio - number / (normal + number)) for number in range(40)]
    assert shares[labels] <= min(shares) + 1e-3
    training, test = made_up(normal, {"crack": 40})
    found = reveal(training, test, ratio, ["crack"], 0, validate=False) if labels else None
    if found is not None:
        assert len(found.training.anomalous) == found.labels == labels
        assert found.training.regime == "weak"


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2.0])
def test_a_share_is_a_share(ratio):
    with pytest.raises(ConfigError, match="0 to below 1"):
        label_count(100, ratio)


def test_no_labels_leave_everything_as_it_was():
    training, test = made_up()
    found = reveal(training, test, 0, ["crack"], 0)
    assert (found.training.samples, found.test.samples) == (training.samples, test.samples)
    assert (found.training.regime, found.validation, found.labels, found.kinds) == ("clean", None, 0, ())
    assert found.training.notes == found.test.notes == ()


def test_one_kind_is_every_kind_in_turn_and_several_are_five_draws():
    training, test = made_up()
    assert kinds_to_reveal(training, test, 1, 7) == (("crack",), ("dent",), ("stain",))
    draws = kinds_to_reveal(training, test, 2, 7)
    assert len(draws) == 5
    assert all(len(set(kinds)) == 2 and set(kinds) <= {"crack", "dent", "stain"} for kinds in draws)
    assert len(set(draws)) > 1
    assert draws == kinds_to_reveal(training, test, 2, 7)
    assert any(draws != kinds_to_reveal(training, test, 2, seed) for seed in range(5))
    for count in (0, 4):
        with pytest.raises(ConfigError, match="has 3: crack, dent, stain"):
            kinds_to_reveal(training, test, count, 0)


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_of_the_kinds_asked_for_as_evenly_as_can_be(seed):
    training, test = made_up()
    found = reveal(training, test, 0.05, ["stain", "crack"], seed)
    assert sorted(Counter(s.kind for s in found.training.anomalous).values()) == [2, 3]
    found = reveal(training, test, 0.12, ["dent", "crack"], seed, validate=False)  # 13 labels; there are 6 dents
    assert Counter(s.kind for s in found.training.anomalous) == {"crack": 7, "dent": 6}
    assert found.kinds == ("dent", "crack")


def test_parts_are_labelled_whole_and_leave_the_test_set_whole():
    training, test = made_up(per_group=3)
    for seed in range(10):
        found = reveal(training, test, 0.05, ["stain"], seed)
        groups = {s.group for s in found.training.anomalous}
        assert len(found.training.anomalous) == 5
        # Three images a part, and of the tenth stain one alone.
        assert len(groups) in (2, 3)
        assert not groups & {s.group for s in found.test.samples}
        gone = [s for s in test.samples if s.group in groups]
        assert len(found.test.samples) == len(test.samples) - len(gone)
        assert found.test.notes == (f"{len(gone)} images of labelled groups are left out",)


def test_a_training_set_s_own_bad_images_are_drawn_from_and_the_test_set_stays_whole():
    training, test = made_up(known_bad=[("burn", 9), ("crack", 4)])
    assert kinds_to_reveal(training, test, 1, 0) == (("burn",), ("crack",))
    found = reveal(training, test, 0.05, ["burn"], 0)
    assert {s.kind for s in found.training.anomalous} == {"burn"}
    assert len(found.training.anomalous) == 5
    assert found.test.samples == test.samples
    assert reveal(training, test, 0, ["burn"], 0).training.regime == "clean"


def test_the_seed_and_the_draw_choose_the_order_of_files_does_not():
    training, test = made_up()
    backwards = TestSet(test.name, test.root, test.samples[::-1])

    def labelled(seed, draw=0, among=test):
        return {s.path for s in reveal(training, among, 0.05, ["crack"], seed, draw).training.anomalous}

    assert labelled(0) == labelled(0, among=backwards)
    assert len({frozenset(labelled(seed)) for seed in range(6)}) > 1
    assert len({frozenset(labelled(0, draw)) for draw in range(6)}) > 1


def test_too_few_labels_or_images_fail_with_the_arithmetic():
    training, test = made_up(30)
    with pytest.raises(DataError, match=r"30 / \(1 - 0\.03\) - 30 = 1 labels, fewer than the 2 kinds.* of 0\.0625"):
        reveal(training, test, 0.03, ["crack", "dent"], 0)
    with pytest.raises(DataError, match="= 0 labels, fewer than the 1 kinds"):
        reveal(training, test, 0.01, ["crack"], 0)
    training, test = made_up()
    with pytest.raises(DataError, match=r"= 11 labels, and dent have 6 images: .* at most 0\.0594"):
        reveal(training, test, 0.1, ["dent"], 0)
    with pytest.raises(ConfigError, match="no bad image of kind dint: it has crack, dent, stain"):
        reveal(training, test, 0.05, ["dint"], 0)
    with pytest.raises(DataError, match="no bad part is left"):
        reveal(*made_up(95, {"crack": 5}), 0.05, ["crack"], 0)


@pytest.mark.parametrize(("ratio", "labels", "held"), [(0.16, 18, 0), (0.175, 20, 2), (0.3, 41, 3)])
def test_a_validation_part_only_from_twenty_labels_on(ratio, labels, held):
    training, test = made_up(95, {"crack": 60})
    found = reveal(training, test, ratio, ["crack"], 0)
    assert found.labels == labels
    if not held:
        assert found.validation is None
        assert reveal(training, test, 0.175, ["crack"], 0, validate=False).validation is None
        return
    bad = [s for s in found.validation.samples if s.anomalous]
    good = [s for s in found.validation.samples if not s.anomalous]
    assert (len(bad), len(found.training.anomalous)) == (held, labels - held)
    assert held <= len(good) <= held + 1  # good images come in pairs
    assert len(found.training.normal) == 95 - len(good)
    ours, theirs = ({s.group for s in part.samples} for part in (found.training, found.validation))
    assert not ours & theirs


def test_a_single_labelled_part_is_not_held_out():
    training, test = made_up(95, {"crack": 40}, per_group=20)
    found = reveal(training, test, 0.175, ["crack"], 0)
    assert (found.validation, len(found.training.samples)) == (None, 115)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "parts"
    for place, number in (("train/good", 40), ("test/good", 3), ("test/crack", 24), ("test/dent", 4)):
        (root / place).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(root / place / f"{i}.png")
            if place == "test/crack":
                mask = root / "ground_truth" / "crack" / f"{i}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((4, 4), 255, np.uint8)).save(mask)
    return root


def test_manifests_give_back_what_was_drawn(folder):
    training, test = read_training(folder), open_test_set(folder)
    found = reveal(training, test, 0.34, ["crack"], 3)
    written = write_revealed(found, folder / "few.csv")
    assert [path.name for path in written] == ["few.csv", "few-validation.csv"]
    again, judged, chosen = read_training(written[0]), open_test_set(written[0]), open_test_set(written[1])

    def facts(samples):
        return {(s.path.resolve(), s.kind, s.group) for s in samples}

    assert facts(again.samples) == facts(found.training.samples)
    assert (again.regime, len(again.anomalous)) == ("weak", 19)
    assert facts(judged.samples) == facts(found.test.samples)
    assert {s.path.name for s in judged.samples if s.mask} == {s.path.name for s in found.test.samples if s.mask}
    assert facts(chosen.samples) == facts(found.validation.samples)
    assert write_revealed(reveal(training, test, 0.05, ["dent"], 0), folder / "two.csv") == (folder / "two.csv",)


def test_what_a_set_is_read_by_is_not_replaced(folder):
    (folder / "manifest.csv").write_text("path,group\n")
    found = reveal(read_training(folder), open_test_set(folder), 0.05, ["dent"], 0)
    with pytest.raises(ManifestError, match="would be replaced"):
        write_revealed(found, folder / "manifest.csv")
