"""What a job leaves for the report: the same bad images for every method, side by side on the page."""

import numpy as np
import pytest
from PIL import Image

from blemish.bench.artifacts import SHOWN, gather, load_artifacts, save_artifacts
from blemish.data.preprocessing import Preprocessing
from blemish.data.samples import Sample
from blemish.errors import DataError
from blemish.report.bench import _strips
from blemish.training.evaluate import Evaluation, ScoredSample


def kept_of(folder, seed, images=20):
    """What is kept of random scores and maps, read back from the file."""
    rng, judged = np.random.default_rng(seed), []
    for i in range(images):
        path, label, kind = folder / f"{i:02d}.png", *(("anomalous", "blot") if i >= 6 else ("normal", "good"))
        Image.new("RGB", (32, 32), (10 * i, 90, 90)).save(path)
        sample, heat = Sample(path, label, "test", kind, f"part{i}"), rng.random((32, 32)).astype(np.float32)
        judged.append(ScoredSample(sample, float(rng.random()), heat, np.zeros((32, 32), bool)))
    artifacts = gather(Evaluation({}, {}, {}, tuple(judged), "input", ()), Preprocessing("stretch", 32, None))
    save_artifacts(folder / "evidence.npz", artifacts)
    return load_artifacts(folder / "evidence.npz")


def names(artifacts, role):
    return [picture.name[-6:] for picture in artifacts.pictures[role]]


def test_examples_are_the_same_images_whatever_the_scores(tmp_path):
    one, other = (kept_of(tmp_path, seed) for seed in (1, 2))
    assert names(one, "example") == names(other, "example") == sorted(set(names(one, "example")))
    assert len(names(one, "example")) == SHOWN
    assert all(picture.kind == "blot" for picture in one.pictures["example"])
    assert names(one, "miss") != names(other, "miss")
    methods, strips = _strips({"RD": one, "NKD": other})
    assert methods == "RD, NKD"
    assert [strip["caption"][-6:] for strip in strips] == names(one, "example")
    assert _strips({"RD": one}) == ("", [])
    assert names(kept_of(tmp_path, 0, images=9), "example") == ["06.png", "07.png", "08.png"], "few are all shown"


def test_a_damaged_file_is_no_pictures_and_not_the_end_of_the_report(tmp_path):
    kept_of(tmp_path, 1)
    path = tmp_path / "evidence.npz"
    whole, refused, rng = path.read_bytes(), 0, np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            load_artifacts(path)
        except DataError:
            refused += 1
    assert refused > 200, "each flipped bit of what is read is noticed"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="--afresh"):
        load_artifacts(path)
