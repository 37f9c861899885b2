"""The real image sets read as their own table says: counts, masks, groups. Skips where they are not at hand."""

import os
from collections import Counter
from pathlib import Path

import pytest

from blemish.data.images import read_header
from blemish.data.protocols import alternative_split, contaminate
from blemish.data.readers import read_training, shared_files
from blemish.data.testset import load_mask, open_test_set

pytestmark = pytest.mark.real

SCREWS = {"manipulated_front": 24, "scratch_head": 24, "scratch_neck": 25, "thread_side": 23, "thread_top": 23}
# Set: good in train, good in test, bad in test by kind, whether there are masks. From the sets' own description.
TABLE = {
    "magnetic_tile": (241, 236, {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 99}, True),
    "mvtec_screw": (320, 41, SCREWS, True),
    "crackforest_patches": (96, 25, {"crack": 179}, True),
    "deeppcb_g20085": (200, 63, {"defect": 62}, True),
    "hazelnut_toy": (28, 6, {"colour": 17}, True),
    "elpv_mono": (250, 150, {"defective": 157}, False),
    "brain_mri": (52, 25, {"tumour": 132}, False),
}


def root(name: str) -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("BLEMISH_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"the real set {name} is not here: set BLEMISH_DATA to the folder that holds it")
    return folder


@pytest.mark.parametrize("name", TABLE)
def test_counts_are_those_of_the_table(name):
    train_good, test_good, kinds, has_masks = TABLE[name]
    training, tested = read_training(root(name)), open_test_set(root(name))
    assert (len(training.samples), training.regime, training.notes) == (train_good, "clean", ())
    assert sum(not sample.anomalous for sample in tested.samples) == test_good
    assert Counter(sample.kind for sample in tested.samples if sample.anomalous) == kinds
    assert tested.notes == ()  # so all anomalous images have a mask or none has
    assert any(sample.mask is not None for sample in tested.samples) == has_masks
    assert shared_files(training, root(name)) == []
    for sample in tested.samples[::9] if has_masks else ():
        assert load_mask(sample, read_header(sample.path)[0]).any() == sample.anomalous


def test_photographs_of_one_part_are_one_group():
    training, tested = read_training(root("magnetic_tile")), open_test_set(root("magnetic_tile"))
    assert (len(training.groups), len({*training.groups} | {s.group for s in tested.samples})) == (44, 160)
    training, tested = read_training(root("crackforest_patches")), open_test_set(root("crackforest_patches"))
    assert len(training.groups) < len(training.samples)
    assert set(training.groups).isdisjoint(sample.group for sample in tested.samples)


def test_protocols():
    screws = root("mvtec_screw")
    pile = contaminate(read_training(screws), open_test_set(screws), 0.1, 0)
    assert (len(pile.drawn), len({s.path for s in pile.training.samples})) == (32, 352)
    training, test = alternative_split(read_training(screws), open_test_set(screws), screws / "resplit_alt.csv")
    assert (len(training.samples), Counter(s.anomalous for s in test.samples)) == (267, {False: 53, True: 119})
