"""The length of a training, chosen by defects painted on good images that were held out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_method import BEST, Toy

from blemish.data.synthetic import Surface, paint
from blemish.errors import Cancelled, ConfigError
from blemish.run import Run
from blemish.training.audit import audit
from blemish.training.epoch_selection import KINDS, described
from blemish.training.fit import fit
from blemish.training.setup import FitSettings

OPTIONS = {"epochs": 40, "batch_size": 8}
SETTINGS = FitSettings("toy", OPTIONS, weights="random", size=96, calibration="none", epochs="auto")


def epochs_of(name):
    return list(dict.fromkeys(number for scope, number in Toy.steps if scope == name))


def read(path):
    return np.asarray(Image.open(path)) / 255


@pytest.fixture(scope="module")
def whole(folder):
    """The inspector, and the epochs of choosing and of learning."""
    Toy.steps.clear()
    return fit(folder, SETTINGS), epochs_of("choosing the length"), epochs_of("")


def test_the_epoch_that_tells_painted_defects_best_is_the_length(whole):
    inspector, choosing, learning = whole
    chosen = inspector.provenance["length_chosen"]
    assert chosen["epochs"] == BEST == inspector.method.config.epochs
    assert chosen["looks"]["epoch"] == [1, 2, 3, 4, 6, 8, 11, 16, 23], "four looks after the best"
    assert (chosen["most"], chosen["held_out"]) == (40, 20 // 5)
    assert (choosing, learning) == (list(range(1, 24)), list(range(1, BEST + 1)))
    for figure in ("image_auroc", "aupro"):
        first, *_, last = values = chosen["looks"][figure]
        assert max(first, last) < values[4] == max(values), figure


def test_the_model_is_the_one_that_this_number_of_epochs_gives_from_all_images(folder, whole):
    asked = fit(folder, SETTINGS, epochs=BEST).method
    for name, tensor in asked.state_dict().items():
        assert torch.equal(whole[0].method.state_dict()[name], tensor), name
    mean = np.mean([read(path) for path in folder.iterdir()], axis=0)
    np.testing.assert_allclose(asked.normal.permute(1, 2, 0), mean, atol=1e-5)


def test_the_options_say_how_many_epochs_are_tried_and_folds_learn_for_the_chosen_length(folder):
    inspector = fit(folder, SETTINGS, options=OPTIONS | {"epochs": 5}, calibration="crossfit")
    chosen = inspector.provenance["length_chosen"]
    assert (chosen["looks"]["epoch"], chosen["epochs"]) == ([1, 2, 3, 4, 5], 5)
    folds = Counter(scope for scope, _ in set(Toy.steps) if scope.startswith("fold"))
    assert list(folds.values()) == [5] * 5


def test_a_choice_that_was_stopped_goes_on_where_it_was(folder, whole, tmp_path):
    Toy.stop = ("choosing the length", 9)
    run = Run(checkpoint=tmp_path / "kept")
    with pytest.raises(Cancelled, match="--resume"):
        fit(folder, SETTINGS, run)
    Toy.steps.clear()
    Toy.stop = None
    resumed = fit(folder, SETTINGS, replace(run, resume=True))
    again = epochs_of("choosing the length")
    assert again[0] > 1
    assert again[-1] == 23
    assert resumed.provenance["length_chosen"] == whole[0].provenance["length_chosen"]
    Toy.steps.clear()
    assert fit(folder, SETTINGS, replace(run, resume=True)).provenance["length_chosen"]["epochs"] == BEST
    assert epochs_of("choosing the length") == [], "what was chosen is not chosen once more"
    run.forget_checkpoints()
    assert not (tmp_path / "kept").exists()


LOOK = {"epoch": 3, "image_auroc": 1, "aupro": 1}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"points": [], "work": {}}', json.dumps({"points": [LOOK], "work": {}})]
)
def test_points_of_other_work_are_not_taken_up(folder, tmp_path, content):
    run = Run(checkpoint=tmp_path / "kept", resume=True)
    run.checkpoint.mkdir()
    (run.checkpoint / "curve.checkpoint").write_text(content)
    chosen = fit(folder, SETTINGS, run).provenance["length_chosen"]
    assert (chosen["epochs"], len(chosen["looks"]["epoch"])) == (BEST, 9)


def test_a_sentence_says_what_was_chosen_and_whether_more_may_help():
    def points(*figures):
        return [dict(zip(("epoch", "image_auroc", "aupro"), point)) for point in figures]

    facts, sentence = described(points((1, 0.6, 0.5), (2, 0.9, 0.7), (3, 0.8, 0.8)), 40, 9)
    assert facts["epochs"] == 2, "the first of equal ones"
    assert facts["looks"] == {"epoch": [1, 2, 3], "image_auroc": [0.6, 0.9, 0.8], "aupro": [0.5, 0.7, 0.8]}
    assert sentence == (
        "length: 2 of at most 40 epochs, by defects painted on 9 held-out good images (image AUROC 0.900, "
        "AU-PRO 0.700; by epoch 1: 0.550, 2: 0.800, 3: 0.800)"
    )
    _, late = described(points((1, 0.6, None), (3, 0.7, None)), 3, 12)
    assert late.endswith("(image AUROC 0.700; by epoch 1: 0.600, 3: 0.700); it was still getting better: allow more")


def test_a_painted_picture_differs_where_the_mask_says_and_nowhere_else(folder):
    picture = read(folder / "00.png")
    for kind in KINDS:
        whole, mask = paint(Surface(picture), kind, np.random.default_rng(3))
        assert np.array_equal(whole, paint(Surface(picture), kind, np.random.default_rng(3))[0])
        assert np.array_equal(whole[~mask], picture[~mask])
        assert 20 < mask.sum() < 64 * 64 / 2 and np.abs(whole - picture)[mask].mean() > 0.03
        assert whole.min() >= 0 and whole.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 64}, "larger --size"),
        ({"method": "patchcore"}, "patchcore is not trained in epochs"),
        ({"method": "cdd"}, "cdd follows a schedule over its whole length"),
        ({"method": "deepsad"}, "deepsad follows a schedule over its whole length"),
        ({"steps": 3}, "give one of both"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        fit(folder, replace(SETTINGS, options={}), **changes)
    assert Toy.steps == []


def test_too_few_images_and_an_audit_are_refused(folder, save_part, tmp_path):
    for i in range(9):
        save_part(tmp_path / f"{i}.png", i, side=96)
    with pytest.raises(ConfigError, match="9 are too few"):
        fit(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="an audit takes a number of epochs"):
        audit(folder, replace(SETTINGS, method="rd", options={}))
    assert Toy.steps == []
