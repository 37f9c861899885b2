"""`blemish contaminate` and `blemish reveal`: manifests that fit and evaluate take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blemish.data.manifest import write_manifest
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set


@pytest.fixture
def labelled(texture, save, tmp_path):
    """A folder with 18 good training images, 3 good test images, 4 scratches and 3 holes."""
    root = tmp_path / "set"
    for place, number in (("train/good", 18), ("test/good", 3), ("test/scratch", 4), ("test/hole", 3)):
        for i in range(number):
            pixels = texture(len(place) + 40 * i)
            if "good" not in place:
                pixels[10:40, 10:40] = (250, 0, 250)
                save(root / "ground_truth" / place[5:] / f"{i}_mask.png", np.pad(np.full((30, 30), 255, np.uint8), 17))
            save(root / place / f"{i}.png", pixels)
    return root


@pytest.fixture
def answer(blemish):
    """``answer("evaluate", ...)``: the JSON objects of a command that went well."""

    def run(*arguments):
        done = blemish(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_pile_is_learned_from_once_and_evaluated_twice(blemish, answer, labelled, quick_fit, tmp_path):
    pile, overlap, model = labelled / "pile.csv", labelled / "pile-overlap.csv", tmp_path / "m.blemish"
    draw = ("contaminate", labelled, "--ratio", 0.2, "--seed", 1)
    expected = {"no_overlap": str(pile), "overlap": str(overlap), "training_images": 21, "bad": 3}
    assert answer(*draw, "-o", pile) == [expected]
    content = pile.read_text()
    assert "3 of 21 training images are bad" in blemish(*draw, "-o", pile).stdout
    assert pile.read_text() == content
    quick = (*quick_fit, "--calibration", "none")
    plain = blemish("fit", pile, "-m", "patchcore", "-o", model, *quick)
    assert plain.exit_code == 0, plain.output
    assert "warning: patchcore takes every unlabelled image as good; -m softpatch expects bad ones" in plain.stderr
    soft = blemish("fit", pile, "-o", tmp_path / "s.blemish", *quick)
    assert "method: softpatch; the set is contaminated" in soft.stderr and "warning" not in soft.stderr
    assert [answer("evaluate", model, test, "-q")[0]["anomalous"] for test in (pile, overlap)] == [4, 7]
    refused = blemish("fit", labelled, "-m", "softpatch", "-o", tmp_path / "x.blemish", *quick)
    assert refused.exit_code == 1 and "use -m patchcore" in refused.stderr


def test_every_kind_in_turn_becomes_known_bad(blemish, answer, labelled, quick_fit, tmp_path):
    done = blemish("reveal", labelled, "-o", labelled / "few.csv", "--ratio", "0.1")
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [
        "2 bad images labelled, of hole",
        "2 bad images labelled, of scratch",
    ]
    manifest, model = labelled / "few-scratch.csv", tmp_path / "m.blemish"
    (found,) = answer(
        "fit", manifest, "-m", "ckaad", "-o", model, *quick_fit, "--calibration", "none", "--steps", "1", "-q"
    )
    assert (found["method"], found["regime"], found["images"]) == ("ckaad", "weak", 18)
    assert set(answer("evaluate", model, manifest, "-q")[0]["kinds"]) >= {"scratch", "hole"}


def test_where_one_kind_has_too_few_images_nothing_is_written(blemish, labelled):
    samples = [*read_training(labelled).samples, *open_test_set(labelled).samples]
    last = max(sample.path for sample in samples if sample.anomalous)
    rare = [replace(s, kind="rare") if s.path == last else s for s in samples]
    done = blemish("reveal", write_manifest(labelled / "set.csv", rare), "-o", labelled / "few.csv", "--ratio", "0.1")
    assert done.exit_code == 1 and not done.stdout
    assert not list(labelled.glob("few*"))


def test_a_kind_whose_name_no_file_can_have(blemish, labelled):
    samples = [*read_training(labelled).samples, *open_test_set(labelled).samples]
    renamed = [replace(s, kind=s.kind.replace("hole", "hole/deep")) for s in samples]
    done = blemish(
        "reveal", write_manifest(labelled / "set.csv", renamed), "-o", labelled / "few.csv", "--ratio", "0.1"
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in labelled.glob("few*")} == {"few-hole-deep-0.csv", "few-scratch.csv"}


def test_several_kinds_are_five_draws(answer, labelled):
    written = answer("reveal", labelled, "-o", labelled / "few.csv", "--ratio", "0.1", "--kinds", "2")
    names = [f"few-draw{i}.csv" for i in range(5)]
    assert [Path(draw["manifest"]).name for draw in written] == names == sorted(p.name for p in labelled.glob("*.csv"))
    assert {(draw["known_bad"], *draw["kinds"]) for draw in written} == {(2, "hole", "scratch")}


def test_what_cannot_be_revealed_is_one_line(blemish, labelled):
    for options, code, words in (
        (("--ratio", "0.5"), 1, "18 / (1 - 0.5) - 18 = 18 labels, and hole have 3 images"),
        (("--kinds", "9"), 2, "9 kinds are to be revealed, and set has 2: hole, scratch"),
    ):
        done = blemish("reveal", labelled, "-o", labelled / "few.csv", *options)
        assert (done.exit_code, done.stdout) == (code, "") and words in done.stderr
