"""The contamination protocol, on made-up sets and, where they are at hand, on real ones."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.manifest import read_manifest
from blemish.data.protocols import contaminate, write_contaminated
from blemish.data.readers import read_training
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ConfigError, DataError, ManifestError

REAL = Path(os.environ.get("BLEMISH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def made_up(good=40, per_group=(1, 1, 1, 1, 1, 1, 1, 1), known_bad=0):
    """``good`` training images; a test set of 6 good images and bad groups of the given sizes."""
    train = [Sample(Path(f"/set/train/good/{i}.png"), "normal", group=f"t{i // 2}") for i in range(good)]
    train += [Sample(Path(f"/set/train/bad/{i}.png"), "anomalous", "train", "dent", f"k{i}") for i in range(known_bad)]
    test = [Sample(Path(f"/set/test/good/{i}.png"), "normal", "test", group=f"g{i}") for i in range(6)]
    for group, size in enumerate(per_group):
        for i in range(size):
            name = f"{group}_{i}.png"
            mask = Path("/set/gt") / name
            test.append(Sample(Path("/set/test/dent") / name, "anomalous", "test", "dent", f"b{group}", mask))
    return TrainingSet("set", None, tuple(train)), TestSet("set", Path("/set"), tuple(test))


def names(samples):
    return [sample.path.name for sample in samples]


@pytest.mark.parametrize(("ratio", "number"), [(0.1, 4), (0.12, 4), (0.125, 5), (0.0, 0), (0.024, None)])
def test_the_number_is_the_ratio_of_the_training_images_rounded_down(ratio, number):
    training, test = made_up()
    if number is None:
        with pytest.raises(DataError, match=r"is 0 bad ones: give a ratio of at least 0\.025"):
            contaminate(training, test, ratio, 0)
        return
    found = contaminate(training, test, ratio, 0)
    assert len(found.drawn) == number
    assert len(found.training.samples) == 40 + number
    assert found.training.regime == "contaminated"
    assert {(s.label, s.kind) for s in found.training.samples} == {("unlabelled", "unlabelled")}
    assert [s.path for s in found.training.samples] == [s.path for s in (*training.samples, *found.drawn)]
    assert all(sample.anomalous for sample in found.drawn)


def test_overlap_keeps_the_drawn_images_and_no_overlap_drops_them():
    training, test = made_up()
    found = contaminate(training, test, 0.1, 3)
    assert found.overlap.samples == found.test(overlap=True).samples == test.samples
    assert found.no_overlap is found.test(overlap=False)
    assert {s.path for s in test.samples} - {s.path for s in found.no_overlap.samples} == {s.path for s in found.drawn}


def test_whole_groups_are_drawn_and_leave_the_test_set():
    training, test = made_up(60, per_group=(3, 3, 3, 3, 3))
    for seed in range(20):
        found = contaminate(training, test, 0.1, seed)
        groups = {s.group for s in found.drawn}
        assert (len(found.drawn), len(groups)) == (6, 2)
        assert not groups & {s.group for s in found.no_overlap.samples}
        assert sum(s.anomalous for s in found.no_overlap.samples) == 9


def test_of_the_last_group_only_what_is_missing_joins_but_all_of_it_leaves():
    training, test = made_up(50, per_group=(4, 4, 4, 4))
    seen = set()
    for seed in range(30):
        found = contaminate(training, test, 0.1, seed)  # 5: a group of four, and one of another
        sizes = sorted([s.group for s in found.drawn].count(g) for g in {s.group for s in found.drawn})
        assert sizes == [1, 4]
        assert sum(s.anomalous for s in found.no_overlap.samples) == 8
        seen |= set(names(found.drawn))
    assert len(seen) == 16  # any image may be the one


def test_good_test_images_of_a_drawn_part_leave_too():
    training, test = made_up(10)
    shared = [dataclasses.replace(s, group="b0") if s.path.name == "0.png" else s for s in test.samples]
    test = dataclasses.replace(test, samples=tuple(shared))
    for seed in range(10):
        found = contaminate(training, test, 0.1, seed)
        assert ("0.png" in names(found.no_overlap.samples)) == (found.drawn[0].group != "b0")


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_files():
    training, test = made_up(per_group=(2, 1, 3, 1, 1, 2, 1, 1))
    reversed_test = dataclasses.replace(test, samples=test.samples[::-1])
    draws = [set(names(contaminate(training, test, 0.1, seed).drawn)) for seed in range(12)]
    again = [set(names(contaminate(training, reversed_test, 0.1, seed).drawn)) for seed in range(12)]
    assert draws == again
    assert len({frozenset(draw) for draw in draws}) > 6


def test_smaller_ratios_draw_a_part_of_what_larger_ones_draw():
    training, test = made_up(100, per_group=(2, 3, 2, 1, 4, 2, 3))
    draws = [set(names(contaminate(training, test, ratio, 1).drawn)) for ratio in (0.02, 0.05, 0.07, 0.12)]
    assert all(small < large for small, large in itertools.pairwise(draws))


def test_known_bad_training_images_are_left_out_and_not_counted():
    training, test = made_up(known_bad=5)
    found = contaminate(training, test, 0.1, 0)
    assert len(found.training.samples) == 44
    assert "5 known-bad training images are left out" in found.training.notes[-1]


def test_too_few_bad_images_are_refused_with_the_numbers():
    training, test = made_up(100)
    with pytest.raises(DataError, match=r"is 10 bad ones, and the test set has 8: .* below 0\.080"):
        contaminate(training, test, 0.1, 0)
    with pytest.raises(DataError, match="no bad part is left to test on"):
        contaminate(training, test, 0.08, 0)
    for ratio in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            contaminate(training, test, ratio, 0)


@pytest.fixture
def layout(tmp_path):
    """A set on disk: 20 good to learn from, 4 good and 6 bad of 3 parts to test on."""
    root = tmp_path / "set"
    wanted = [f"train/good/{i}.png" for i in range(20)] + [f"test/good/{i}.png" for i in range(4)]
    wanted += [f"test/dent/{i}.png" for i in range(6)] + [f"ground_truth/dent/{i}_mask.png" for i in range(6)]
    for i, name in enumerate(wanted):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / name)
    lines = [f"test/dent/{i}.png,part{i // 2}" for i in range(6)]
    (root / "manifest.csv").write_text("\n".join(["file,group", *lines]))
    return root


def test_the_manifests_give_back_what_was_drawn(layout):
    found = contaminate(read_training(layout), open_test_set(layout), 0.1, 4)
    first, second = write_contaminated(found, layout / "pile.csv")
    assert second == layout / "pile-overlap.csv"
    training = read_training(first)
    assert {(s.path, s.label, s.group) for s in training.samples} == {
        (s.path, s.label, s.group) for s in found.training.samples
    }
    assert training.regime == "contaminated"
    for path, test in ((first, found.no_overlap), (second, found.overlap)):
        assert set(open_test_set(path).samples) == set(test.samples)
    assert {row.split for row in read_manifest(second)} == {"test"}
    text = first.read_text()
    assert text.splitlines()[0] == "path,label,split,mask,category,kind,group"
    assert str(layout) not in text


def test_a_manifest_of_a_manifest(layout):
    first, _ = write_contaminated(contaminate(read_training(layout), open_test_set(layout), 0.1, 4), layout / "a.csv")
    again = contaminate(read_training(first), open_test_set(first), 0.05, 0)
    assert len(again.training.samples) == 23
    with pytest.raises(ManifestError, match="would be replaced"):
        write_contaminated(again, first)
    assert read_training(first).summary().startswith("0 good, 22 unlabelled")


def test_manifests_lie_with_the_images_and_replace_nothing_that_is_read(layout, tmp_path):
    found = contaminate(read_training(layout), open_test_set(layout), 0.1, 4)
    before = (layout / "manifest.csv").read_text()
    with pytest.raises(ManifestError, match="choose another name"):
        write_contaminated(found, layout / "manifest.csv")
    with pytest.raises(ManifestError, match="write it to a folder that holds the images") as caught:
        write_contaminated(found, tmp_path / "elsewhere" / "pile.csv")
    assert f"such as {layout.resolve() / 'pile.csv'}" in str(caught.value)
    assert (layout / "manifest.csv").read_text() == before
    assert sorted(p.name for p in layout.iterdir() if p.is_file()) == ["manifest.csv"]
    outer, _ = write_contaminated(found, tmp_path / "pile.csv")
    assert len(read_training(outer).samples) == 22


@pytest.mark.real
@pytest.mark.parametrize(("name", "number"), [("magnetic_tile", 24), ("mvtec_screw", 32)])
def test_real_sets(name, number):
    if not (REAL / name).is_dir():
        pytest.skip(f"no real sets in {REAL}: set BLEMISH_DATA")
    training, test = read_training(REAL / name), open_test_set(REAL / name)
    found = contaminate(training, test, 0.1, 0)
    groups = {s.group for s in found.drawn}
    assert len(found.drawn) == number
    assert not groups & {s.group for s in found.no_overlap.samples}
    assert len({s.path for s in found.training.samples}) == len(training.samples) + number
