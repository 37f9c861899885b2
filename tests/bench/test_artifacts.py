"""What a job leaves for the report: the same bad images for every method, side by side on the page."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blemish.bench.artifacts import SHOWN, gather, load_artifacts, save_artifacts
from blemish.data.preprocessing import Preprocessing
from blemish.data.samples import Sample
from blemish.report.bench import _strips
from blemish.training.evaluate import Evaluation, Judged


@pytest.fixture
def samples(tmp_path):
    found = []
    for i in range(20):
        path = tmp_path / f"{i:02d}.png"
        Image.new("RGB", (32, 32), (10 * i, 90, 90)).save(path)
        found.append(
            Sample(path, "anomalous" if i >= 6 else "normal", "test", "blot" if i >= 6 else "good", f"part{i}")
        )
    return found


def judged(samples, seed):
    rng = np.random.default_rng(seed)
    heats = [rng.random((32, 32)).astype(np.float32) for _ in samples]
    some = tuple(Judged(one, float(rng.random()), heat, np.zeros((32, 32), bool)) for one, heat in zip(samples, heats))
    return Evaluation({}, {}, {}, some, "input", ())


def test_examples_are_the_same_images_whatever_the_scores(samples, tmp_path):
    preparation = Preprocessing("stretch", 32, None)
    kept = []
    for seed in (1, 2):
        save_artifacts(tmp_path / f"{seed}.npz", gather(judged(samples, seed), preparation))
        kept.append(load_artifacts(tmp_path / f"{seed}.npz"))
    names = [[picture.name for picture in one.pictures["example"]] for one in kept]
    assert names[0] == names[1] == sorted(names[0])
    assert len(names[0]) == SHOWN and len(set(names[0])) == SHOWN
    assert all(picture.kind == "blot" for picture in kept[0].pictures["example"])
    assert [p.name for p in kept[0].pictures["miss"]] != [p.name for p in kept[1].pictures["miss"]]

    methods, strips = _strips({"RD": kept[0], "NKD": kept[1]})
    assert methods == "RD, NKD"
    assert [picture["caption"] for picture in strips] == names[0]
    assert _strips({"RD": kept[0]}) == ("", [])


def test_few_bad_images_are_all_shown(samples):
    some = judged(samples[:9], 0)
    found = gather(some, Preprocessing("stretch", 32, None))
    assert [picture.name[-6:] for picture in found.pictures["example"]] == ["06.png", "07.png", "08.png"]
