from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blemish.bench.selection import learn_and_judge
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import FitSettings, fit

SETTINGS = FitSettings(
    "nkd", {"epochs": 2, "batch_size": 4}, backbone="resnet18", weights="random", size=64, calibration="none"
)
CONFIGURATION = {"method": "nkd", "at": "input", "per_image_pro": False, "select_by": ["image_auroc", "pixel_auroc"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for place, number in (("train/good", 8), ("test/good", 4), ("test/blot", 4)):
        (root / place).mkdir(parents=True)
        for i in range(number):
            pixels = rng.normal(120, 25, (64, 64))
            if place == "test/blot":
                pixels[20:30, 24:40] += 40
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / place / f"{i}.png")
    return root


def test_last_is_fit_and_evaluate_once(folder):
    test = open_test_set(folder)
    found = learn_and_judge(
        read_training(folder), test, SETTINGS, {**CONFIGURATION, "selection": "last"}, Run(seed=1)
    )
    by_hand = evaluate(fit(folder, SETTINGS, Run(seed=1)), test, Run(seed=1))
    assert (found.test_openings, found.epoch, found.last) == (1, None, None)
    assert found.found.metrics == pytest.approx(by_hand.metrics, nan_ok=True)


def test_best_on_test_is_the_best_of_models_stopped_at_each_epoch(folder):
    test, training = open_test_set(folder), read_training(folder)
    found = learn_and_judge(training, test, SETTINGS, {**CONFIGURATION, "selection": "best_on_test"}, Run(seed=1))
    assert found.test_openings == 2 + 1
    values = []
    for epochs in (1, 2):  # looking at the test set after an epoch must not change how training goes on
        stopped = fit(training, SETTINGS, Run(seed=1), options={"epochs": epochs, "batch_size": 4})
        values.append(evaluate(stopped, test, Run(seed=1)).metrics["image_auroc"])
    assert found.epoch == 1 + int(np.argmax(values))
    assert found.found.metrics["image_auroc"] == pytest.approx(max(values))
    assert found.last["image_auroc"] == pytest.approx(values[-1])
    assert found.found.metrics["image_auroc"] >= found.last["image_auroc"]
