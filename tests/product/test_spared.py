"""Nothing that a user has is written over, and nothing that changes a result is kept from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from blemish.inspection.output import find_images


@pytest.fixture
def good(texture, save, tmp_path):
    for i in range(12):
        save(tmp_path / "good parts" / f"{i}.png", texture(i))
    return tmp_path / "good parts"


def test_masks_of_a_layout_folder_are_not_judged(parts):
    assert any("ground_truth" in path.parts for path in parts.root.rglob("*.png"))
    found = find_images([parts.root])
    assert found and not any("ground_truth" in path.parts for path in found)


def test_quiet_keeps_warnings_and_skipped_images(blemish, good, quick_fit, tmp_path):
    (good / "5.png").write_bytes(b"no image")
    done = blemish("fit", good, "--pile", "-m", "patchcore", "-o", tmp_path / "m.blemish", *quick_fit, "-q")
    assert done.exit_code == 0, done.output
    said = done.stderr.splitlines()
    assert any(line.startswith("skipped:") and "5.png" in line for line in said)
    assert any(line.startswith("warning: patchcore takes every unlabelled image as good") for line in said)
    assert all(line.startswith(("warning:", "skipped:")) for line in said)


def test_a_training_that_ran_away_leaves_no_model(blemish, good, quick_fit, tmp_path):
    model = tmp_path / "m.blemish"
    runaway = ("--set", "learning_rate=1e30", "--set", "layers=1,2", "--epochs", "2", "--calibration", "none")
    done = blemish("fit", good, "-m", "rd", "-o", model, *quick_fit, *runaway, "-q")
    assert done.exit_code == 2, done.output
    assert "what rd learned is not finite" in done.stderr
    assert not model.exists()


def test_known_bad_images_are_part_of_where_a_model_comes_from(blemish, good, save, texture, quick_fit, tmp_path):
    digests = set()
    for number, known in enumerate(([], [40], [41])):
        folder = tmp_path / f"set{number}"
        for path in sorted(good.iterdir()):
            save(folder / "good" / path.name, np.asarray(Image.open(path)))
        for seed in known:
            save(folder / "anomalous" / "hole" / f"{seed}.png", texture(seed))
        model = tmp_path / f"{number}.blemish"
        found = json.loads(blemish("fit", folder, "-m", "patchcore", "-o", model, *quick_fit, "--json", "-q").stdout)
        assert found["known_bad"] == len(known)
        digests.add(found["data_digest"])
    assert len(digests) == 3


def test_an_audit_takes_methods_of_the_clean_regime(blemish, good, tmp_path):
    quick = ("--size", "64", "--threads", "1", "--epochs", "1", "--set", "layers=2,3", "-o", tmp_path / "page.html")
    done = blemish("audit", good, "-m", "rd", *quick, "--json", "-q")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 12
    refused = blemish("audit", good, "-m", "devnet", *quick)
    assert "devnet learns from known-bad images, and an audit has none" in refused.stderr
