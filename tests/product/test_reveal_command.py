"""`blemish reveal`: manifests that fit and evaluate take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


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


def test_every_kind_in_turn_becomes_known_bad(blemish, labelled, quick_fit, tmp_path):
    done = blemish("reveal", labelled, "-o", labelled / "few.csv", "--ratio", "0.1")
    assert done.exit_code == 0, done.output
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [
        "2 bad images labelled, of hole",
        "2 bad images labelled, of scratch",
    ]
    manifest, model = labelled / "few-scratch.csv", tmp_path / "m.blemish"
    done = blemish("fit", manifest, "-o", model, *quick_fit, "--calibration", "none", "--steps", "1", "--json", "-q")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["method"], found["regime"], found["images"]) == ("ckaad", "weak", 18)
    done = blemish("evaluate", model, manifest, "--json", "-q")
    assert done.exit_code == 0, done.output
    kinds = json.loads(done.stdout)["kinds"]
    assert set(kinds) >= {"scratch", "hole"}


def test_several_kinds_are_five_draws(blemish, labelled):
    done = blemish("reveal", labelled, "-o", labelled / "few.csv", "--ratio", "0.1", "--kinds", "2", "--json")
    assert done.exit_code == 0, done.output
    written = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(one["manifest"]).name for one in written] == [f"few-draw{i}.csv" for i in range(5)]
    assert {(one["known_bad"], *one["kinds"]) for one in written} == {(2, "hole", "scratch")}
    assert sorted(path.name for path in labelled.glob("*.csv")) == [f"few-draw{i}.csv" for i in range(5)]


def test_what_cannot_be_revealed_is_one_line(blemish, labelled):
    done = blemish("reveal", labelled, "-o", labelled / "few.csv", "--ratio", "0.5")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "18 / (1 - 0.5) - 18 = 18 labels, and hole have 3 images" in done.stderr
    done = blemish("reveal", labelled, "-o", labelled / "few.csv", "--kinds", "9")
    assert done.exit_code == 2
    assert "9 kinds are to be revealed, and set has 2: hole, scratch" in done.stderr
