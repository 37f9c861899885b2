"""``fit`` goes on where it was stopped, shares kept features between folds, and hands the length of training on."""

from __future__ import annotations

import warnings
from dataclasses import replace
from inspect import signature
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from toy_method import Toy

from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import TrainingImages
from blemish.errors import BlemishWarning, Cancelled, ConfigError
from blemish.run import Run, Silent
from blemish.training.fit import fit
from blemish.training.setup import Changes, FitSettings

SETTINGS = FitSettings(method="toy", weights="random", size=32, calibration="crossfit")
ONCE = replace(SETTINGS, calibration="none")


def scores(inspector):
    return inspector.calibration.to_tensors()["scores"]


def assert_same(one, other):
    tensors = other.method.state_dict()
    for name, tensor in one.method.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def test_neither_good_nor_bad_photographs_of_a_held_out_part_are_learned(save_part, tmp_path, monkeypatch):
    rows = ["path,label,group"]
    for part in range(6):
        for label in ("normal", "anomalous"):
            save_part(tmp_path / f"{label}/{part}.png", part, 64, (20, 20, 250) if label == "anomalous" else None)
            rows.append(f"{label}/{part}.png,{label},part {part}")
    (tmp_path / "parts.csv").write_text("\n".join(rows))
    learned = []

    def training_images(normal, anomalous, regime):
        learned.append((len(normal), len(anomalous)))
        return TrainingImages(normal, anomalous, regime)

    monkeypatch.setattr("blemish.training.learner.TrainingImages", training_images)
    fit(tmp_path / "parts.csv", method="deepsad", backbone="resnet18", weights="random", size=32, steps=1)
    assert len(learned) == 6 and learned[-1] == (6, 6), "five folds and the model"
    assert all(good == bad < 6 for good, bad in learned[:-1])


@pytest.mark.parametrize("colour", [(255, 0, 0), None])
def test_painted_defects_alone_do_not_condemn_a_model_that_finds_the_known_bad_images(
    colour, save_part, tmp_path, monkeypatch
):
    for number in range(8):
        save_part(tmp_path / f"good/{number}.png", number, 64)
        save_part(tmp_path / f"bad/{number}.png", number + 20 * (colour is not None), 64, colour)
        if colour is None:  # all but the same as the good one, which by itself would be refused
            pixels = np.array(Image.open(tmp_path / f"bad/{number}.png"))
            pixels[0, 0] ^= 1
            Image.fromarray(pixels).save(tmp_path / f"bad/{number}.png")
    monkeypatch.setattr(
        "blemish.training.fit.estimate_detection", lambda *_: {"rejected": 0, "reviewed": 0, "sentence": "None."}
    )
    settings = {"backbone": "test_resnet", "weights": "random", "size": 64, "options": {"memory": 100}}
    with pytest.warns(BlemishWarning) as told:
        warnings.warn("one is always there", BlemishWarning, stacklevel=1)
        inspector = fit(tmp_path, method="patchcore", **settings)
    scores_of_bad = inspector.provenance["known_bad_scores"]
    finds = sum(inspector.calibration.decide(score) != "ok" for score in scores_of_bad) >= 4
    assert finds == (colour is not None)
    assert any("next to nothing" in str(one.message) for one in told) != finds


def test_settings_and_the_keyword_arguments_that_editors_show_are_the_same():
    assert get_type_hints(Changes) == get_type_hints(FitSettings)
    shown = [name for name in signature(fit).parameters if name not in ("data", "settings", "run", "on_epoch")]
    assert shown == list(get_type_hints(FitSettings))


@pytest.fixture(scope="module")
def whole(folder):
    Toy.steps.clear()
    inspector = fit(folder, SETTINGS)
    assert len(Toy.steps) == 5 * 2 * 4 + 2 * 5  # 16 of 20 images in each fold, batches of 4, two epochs
    return inspector


def test_stopped_in_a_fold_and_resumed_is_the_same(folder, whole, tmp_path):
    Toy.stop = ("fold 2 of 5", 2)
    run = Run(checkpoint=tmp_path / "model.checkpoint")
    with pytest.raises(Cancelled, match=r"epoch 2 of 2 of toy \(fold 2 of 5\); all up to epoch 1 .* is kept"):
        fit(folder, SETTINGS, run)
    Toy.steps.clear()
    Toy.stop = None
    resumed = fit(folder, SETTINGS, replace(run, resume=True))
    assert "fold 1 of 5" not in dict(Toy.steps)
    assert [number for scope, number in Toy.steps if scope == "fold 2 of 5"] == [2] * 4
    assert_same(whole, resumed)
    assert np.array_equal(scores(whole), scores(resumed))


def test_methods_see_no_name_of_a_file_which_may_tell_the_truth_of_a_pile(save_part, tmp_path, monkeypatch):
    for i in range(4):
        save_part(tmp_path / "secret" / "train" / "good" / f"secret{i}.png", i)

    def told(thing, depth=4):
        """All that anybody can read of it without an underscore."""
        yield repr(thing)
        if isinstance(thing, (list, tuple)):
            yield from (text for part in thing for text in told(part, depth - 1))
        for name in dir(thing) if depth and not isinstance(thing, (str, int, list, tuple, torch.Tensor)) else ():
            if not name.startswith("_") and not callable(value := getattr(thing, name)):
                yield from told(value, depth - 1)

    def spy(method, training, teacher, run):
        texts = [*told(training), *told(training.normal.batch([0, 3])), *told(run), *told(teacher)]
        assert len(texts) > 20 and "secret" not in " ".join(texts)
        seen.append(len(training.normal))
        raise ConfigError("seen")

    seen = []
    monkeypatch.setattr(Toy, "train_on", spy)
    with pytest.raises(ConfigError, match="seen"):
        fit(tmp_path / "secret", ONCE)
    assert seen == [4]


def test_a_checkpoint_of_other_images_or_options_is_refused(folder, tmp_path):
    run = Run(checkpoint=tmp_path / "model.checkpoint", resume=True)
    fit(folder, ONCE, run, epochs=1)
    with pytest.raises(ConfigError, match=r"options was .*epochs"):
        fit(folder, ONCE, run, epochs=2)
    with pytest.raises(ConfigError, match="preparation was"):
        fit(folder, ONCE, run, epochs=1, resize="opencv")


@pytest.fixture
def seen(monkeypatch):
    """How many images the backbone was shown, each time."""
    numbers = []
    compute = FrozenTeacher._compute

    def counting(self, images):
        numbers.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(FrozenTeacher, "_compute", counting)
    return numbers


@pytest.mark.parametrize("option", [{}, {"coarse": 5}, {"whitened": 0.07}])
def test_without_folds_each_image_is_seen_once_too_by_what_looks_again(folder, option, seen):
    fit(folder, replace(SETTINGS, calibration="none"), method="patchcore", options=option)
    assert sum(seen) == 20 + 2 * bool(option)  # one beforehand, seen twice over because it comes alone


@pytest.mark.parametrize("method", ["toy", "patchcore"])
def test_each_image_is_seen_once_for_all_folds(folder, method, seen):
    kept = fit(folder, SETTINGS, method=method)
    assert sum(seen) == 20 + 2  # one beforehand, seen twice over because it comes alone
    seen.clear()
    plain = fit(folder, SETTINGS, method=method, cache="off")
    assert sum(seen) >= 20 * 5
    assert np.array_equal(scores(kept), scores(plain))


def test_features_on_disk_serve_the_next_fit(folder, tmp_path):
    on_disk = replace(ONCE, cache=str(tmp_path / "features"))
    first = fit(folder, on_disk)
    assert len(list((tmp_path / "features").rglob("*.features"))) == 20
    run = Run()
    assert_same(first, fit(folder, on_disk, run))
    assert run.log.facts == {"feature cache": "disk"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": "64"}, "size 64: one side or"),
        ({"size": 64.5}, "size 64.5: one side or"),
        ({"size": (64, None)}, "size .64, None.: one side or"),
        ({"smallest_defect": 0.0}, "0.0 pixels: 1 or more"),
        ({"smallest_defect": float("nan")}, "nan pixels: 1 or more"),
    ],
)
def test_numbers_of_the_wrong_kind_are_refused_before_anything_is_read(changes, said):
    with pytest.raises(ConfigError, match=said):
        fit("nowhere", ONCE, **changes)


def test_an_image_that_is_both_good_and_known_bad_is_named(save_part, tmp_path):
    for name in ("good/0", "good/1", "anomalous/1"):
        save_part(tmp_path / f"{name}.png", int(name[-1]))
    said, progress = [], Silent()
    progress.note = said.append
    fit(tmp_path, ONCE, Run(progress=progress))
    assert [note for note in said if "among the known-bad ones" in note] == [
        "warning: 1 images are among the good and among the known-bad ones, such as 1.png: take them out of one"
    ]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"epochs": 1}, 5), ({"steps": 3}, 3), ({"epochs": 1, "options": {"steps": 2}}, 5)],
)
def test_the_length_is_handed_on_and_goes_before_the_options(folder, changes, steps):
    fit(folder, ONCE, **changes)
    assert len(Toy.steps) == steps


def test_a_watcher_is_told_of_the_model_and_of_its_epochs_alone(folder, whole):
    told = []

    def on_epoch(number, means, inspector):
        inspector.method.finalize()
        inspector.predict(torch.rand(2, 3, 32, 32))
        told.append((number, means["loss"], inspector))

    torch.manual_seed(11)
    before, run = torch.get_rng_state(), Run()
    watched = fit(folder, SETTINGS, run, on_epoch)
    assert [number for number, *_ in told] == [1, 2]
    assert all(inspector.method is watched.method for *_, inspector in told)
    assert run.curves["toy"] == [{"loss": loss} for _, loss, _ in told]
    assert_same(whole, watched)
    assert torch.equal(torch.get_rng_state(), before), "fitting leaves torch's random state alone"
