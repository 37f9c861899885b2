"""Prepared images: what comes back, what is skipped, what stays in memory."""

import hashlib
import time
from unittest.mock import ANY, Mock, call

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.data import loading
from blemish.data.images import read_image
from blemish.data.loading import PreparedImages, fitted_white_level, fitting_size
from blemish.data.preprocessing import Preprocessing
from blemish.data.readers import read_training
from blemish.data.samples import Sample
from blemish.errors import DataError, ImageError
from blemish.run import Run
from blemish.training.setup import FitSettings, load_images

RNG = np.random.default_rng(11)
PREPARATION = Preprocessing(size=16)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good").mkdir()
    for number in range(9):
        shape = ((20, 20), (24, 18, 3), (16, 40))[number % 3]
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"good/{number}.png")
    return tmp_path


def prepared(sample, preparation=PREPARATION):
    return preparation.prepare(read_image(sample.path))


@pytest.mark.parametrize("budget", [0, 3000, loading.BUDGET])
@pytest.mark.parametrize("preparation", [PREPARATION, Preprocessing("opencv", 16), Preprocessing("letterbox", (8, 24))])
def test_batches_equal_images_prepared_one_by_one(folder, budget, preparation):
    samples = read_training(folder).samples
    for workers in (1, 3):
        images = PreparedImages(samples, preparation, workers=workers, budget=budget)
        assert (len(images), images.samples, images.skipped) == (9, samples, ())
        order = [4, 0, 4, 8, 1]
        batch = images.batch(order)
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.images, torch.stack([prepared(samples[index], preparation) for index in order]))
        for index, key in zip(order, batch.keys):
            content = samples[index].path.read_bytes() + preparation.digest.encode()
            assert key == hashlib.sha256(content).hexdigest()
        batch.images.zero_()  # what is kept does not change with what was given out
        assert torch.equal(images.batch([1]).images[0], prepared(samples[1], preparation))


# 256 bytes grey, 768 colour: keeping ends at the first image that does not fit.
@pytest.mark.parametrize(("budget", "kept"), [(1300, 3), (256 + 768 + 256, 3), (256 + 300, 1)])
def test_what_fits_the_budget_is_not_decoded_again(folder, monkeypatch, budget, kept):
    images = PreparedImages(read_training(folder).samples, PREPARATION, budget=budget)
    read = Mock(side_effect=loading.read_bytes)
    monkeypatch.setattr(loading, "read_bytes", read)
    images.batch([*range(kept), 0])
    assert not read.called
    images.batch([5, *range(9), 5])
    assert sorted(done.args[0].name for done in read.call_args_list) == [f"{number}.png" for number in range(kept, 9)]


def test_damaged_files_are_named_and_skipped(folder):
    whole = (folder / "good/4.png").read_bytes()
    (folder / "good/4.png").write_bytes(whole[: len(whole) // 2])
    (folder / "good/6.png").write_text("no image")
    Image.new("L", (1, 1)).save(folder / "good/7.png")
    samples = read_training(folder).samples
    told = Mock(track=Mock(side_effect=lambda items, title, total: items))
    images = PreparedImages(samples, PREPARATION, progress=told)
    assert [sample.path.name for sample in images.samples] == [f"{n}.png" for n in (0, 1, 2, 3, 5, 8)]
    assert [path.name for path, _ in images.skipped] == ["4.png", "6.png", "7.png"]
    assert "is damaged" in images.skipped[0][1] and "at least 8" in images.skipped[2][1]
    assert told.note.call_count == 3 and "6.png is not an image" in told.note.call_args_list[1].args[0]
    assert told.track.call_args == call(ANY, "decoding", total=9)
    assert torch.equal(images.batch([4]).images[0], prepared(samples[5]))
    with pytest.raises(ImageError, match=r"4\.png is damaged"):
        PreparedImages(samples, PREPARATION, strict=True)
    for unusable, said in ((samples[6:7], r"none of the 1 images can be used: .*6\.png"), ((), "none of the 0 images")):
        with pytest.raises(DataError, match=said):
            PreparedImages(unusable, PREPARATION)


def test_subsets_share_the_memory(folder, monkeypatch):
    images = PreparedImages(read_training(folder).samples, PREPARATION)
    whole = images.batch(range(9))
    monkeypatch.setattr(loading, "read_bytes", None)  # nothing is read again
    part = images.subset([7, 2, 3])
    assert (len(images), len(part), part.samples) == (9, 3, tuple(images.samples[i] for i in (7, 2, 3)))
    batch = part.subset([2, 0]).batch([1, 0])
    assert torch.equal(batch.images, whole.images[[7, 3]]) and batch.keys == (whole.keys[7], whole.keys[3])


def test_a_file_that_changes_while_learning(folder):
    samples = read_training(folder).samples
    images = PreparedImages(samples, PREPARATION, budget=0)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(samples[0].path)
    with pytest.raises(DataError, match=r"0\.png changed"):
        images.batch([0])
    samples[1].path.unlink()
    with pytest.raises(ImageError, match=r"1\.png cannot be opened"):
        images.batch([1, 2])


def test_deep_images_take_the_fitted_white_level(folder):
    deep = RNG.integers(0, 3000, (20, 20), dtype=np.uint16)
    deep[3, 4] = 3900
    Image.fromarray(deep).save(folder / "good/9.png")
    (folder / "good/10.png").write_bytes(b"no image")
    samples = read_training(folder).samples
    assert fitted_white_level(samples) == fitted_white_level(samples, workers=1) == 4095
    assert fitted_white_level(samples[:9]) == 255
    images = PreparedImages(samples, Preprocessing(size=20, white_level=4095))
    np.testing.assert_allclose(images.batch([9]).images[0, 2].numpy(), deep / 4095, atol=1e-6)
    # Without the scale the deep one is named and skipped, like any file that does not fit.
    unscaled = PreparedImages(samples, PREPARATION)
    assert [path.name for path, _ in unscaled.skipped] == ["9.png", "10.png"]
    assert "9.png: a 16-bit image" in unscaled.skipped[0][1]


def test_a_known_bad_image_never_sets_what_counts_as_white(tmp_path):
    for name, brightest in (("good", 3900), ("bad", 65535)):
        (tmp_path / name).mkdir()
        for number in range(2):
            deep = RNG.integers(0, 3000, (20, 20), dtype=np.uint16)
            deep[3, 4] = brightest
            Image.fromarray(deep).save(tmp_path / name / f"{number}.png")
    training = read_training(tmp_path)
    assert len(training.anomalous) == 2
    normal, bad = load_images(training, FitSettings(size=20, resize="stretch"), Run())
    assert normal.preparation.white_level == bad.preparation.white_level == 4095
    assert bad.batch([0]).images.max() == 1


def test_stopping_early_ends_the_decoding(folder, monkeypatch):
    samples = read_training(folder).samples * 50
    decoded = []
    original = loading.decode
    monkeypatch.setattr(loading, "decode", lambda content, name: decoded.append(name) or original(content, name))

    def interrupted(items, title, total):
        for _ in items:
            raise KeyboardInterrupt
        yield

    # Held, as a debugger holds it: its frames must not keep the threads going.
    with pytest.raises(KeyboardInterrupt) as held:
        PreparedImages(samples, PREPARATION, workers=2, progress=Mock(track=interrupted))
    number = len(decoded)
    time.sleep(0.05)
    assert number == len(decoded) < len(samples)
    assert held.type is KeyboardInterrupt


@pytest.mark.parametrize(
    ("sizes", "smallest_defect", "expected", "note"),
    [
        ([(300, 300)], None, (288, 288), ""),  # as many pixels as there are, in whole cells
        ([(100, 100)], None, (256, 256), ""),  # no fewer than the lower limit
        (
            [(3024, 4032)],
            None,
            (384, 512),
            "4032 x 3024 becomes 512 x 384: most defects narrower than about 63 pixels are missed",
        ),
        ([(600, 1200), (610, 1200)], None, (304, 624), ""),  # one aspect, to within a twentieth: kept
        ([(500, 1000), (1000, 500)], None, (448, 448), ""),  # several: a square
        ([(1000, 1000)], 20, (400, 400), ""),  # 20 pixels become 8
        ([(100, 60_000)], None, (16, 4096), "becomes 4096 x 16"),  # no side is longer than a network takes
        ([(2000, 2000)], 16, (448, 448), "a defect of 16 pixels is 3.6 wide for the network, and 8 are needed"),
    ],
)
def test_the_size_follows_from_the_images(tmp_path, sizes, smallest_defect, expected, note):
    samples = []
    for number, (height, width) in enumerate(sizes):
        Image.new("L", (width, height)).save(tmp_path / f"{number}.png")
        samples.append(Sample(tmp_path / f"{number}.png", "normal"))
    found, notes = fitting_size(samples, (256, 448), 16, smallest_defect)
    assert found == expected
    assert note in "".join(notes)
    assert bool(notes) == bool(note)


def test_unreadable_images_do_not_decide_the_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert fitting_size([Sample(tmp_path / "a.png", "normal")], (256, 448), 16) == ((256, 256), [])
