"""``fit`` goes on where it was stopped, shares kept features between folds, and hands the length of training on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.errors import Cancelled, ConfigError
from blemish.inspection.inspector import Inspector
from blemish.registry import METHODS, MethodEntry
from blemish.run import Run, epochs
from blemish.training.fit import FitSettings, fit

STEPS: list[str] = []
"""Each step that the toy method takes, as the name of its part of the work."""


@dataclass(frozen=True)
class ToyConfig:
    layers: tuple[int, ...] = (2,)
    epochs: int = 2
    steps: int | None = None
    batch_size: int = 4


class Toy(Method):
    """A student of one 1x1 convolution, whose first weights come from torch's own random state."""

    Config = ToyConfig
    regimes = frozenset({"clean"})

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: ToyConfig) -> None:
        super().__init__(backbone, size, config)
        self.student = nn.Conv2d(backbone.levels[0].channels, backbone.levels[0].channels, 1)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        optimiser = torch.optim.Adam(self.student.parameters(), lr=0.01)
        keep = {"student": self.student, "optimiser": optimiser}
        for epoch in epochs(run, "toy", keep, self.config, len(training.normal)):
            for indices in epoch.batches():
                if STEPS.count("stop") and len(STEPS) > 14:
                    raise KeyboardInterrupt
                STEPS.append(run.scope)
                (features,) = teacher(training.normal.batch(indices))
                loss = (self.student(features + torch.randn(features.shape)) - features).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                epoch.log(loss=loss.detach())

    def predict(self, images: Tensor) -> Prediction:
        (features,) = self.backbone(images)
        return Prediction(None, (self.student(features) - features).square().mean(dim=(1, 2, 3)))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", MethodEntry(f"{__name__}:Toy", "clean", "for tests", "none"))
    STEPS.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    generator = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


SETTINGS = FitSettings(method="toy", weights="random", size=32, calibration="crossfit")


def learned(inspector: Inspector) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in inspector.method.state_dict().items() if name.startswith("student")}


def scores(inspector: Inspector) -> np.ndarray:
    return np.asarray(inspector.calibration.to_tensors()["scores"])


def test_stopped_in_a_fold_and_resumed_is_the_same(folder: Path, tmp_path: Path) -> None:
    expected = fit(folder, SETTINGS)
    steps_in_all = len(STEPS)
    assert steps_in_all == 5 * 2 * 4 + 2 * 5  # 16 of 20 images in each fold, batches of 4, two epochs
    STEPS[:] = ["stop"]
    run = Run(checkpoint=tmp_path / "model.checkpoint")
    with pytest.raises(Cancelled, match=r"epoch 2 of 2 of toy \(fold 2 of 5\); all up to epoch 1 .* is kept"):
        fit(folder, SETTINGS, run)
    STEPS.clear()
    resumed = fit(folder, SETTINGS, replace(run, resume=True))
    assert "fold 1 of 5" not in STEPS
    assert STEPS.count("fold 2 of 5") == 4  # its second epoch
    for name, tensor in learned(expected).items():
        assert torch.equal(tensor, learned(resumed)[name])
    assert np.array_equal(scores(expected), scores(resumed))


def test_a_checkpoint_of_other_images_or_options_is_refused(folder: Path, tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path / "model.checkpoint", resume=True)
    once = replace(SETTINGS, calibration="none", epochs=1)
    fit(folder, once, run)
    with pytest.raises(ConfigError, match=r"options was .*epochs"):
        fit(folder, once, run, epochs=2)
    with pytest.raises(ConfigError, match="preparation was"):
        fit(folder, once, run, resize="opencv")


@pytest.mark.parametrize("method", ["toy", "patchcore"])
def test_each_image_is_seen_once_for_all_folds(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    compute = FrozenTeacher._compute

    def counting(self: FrozenTeacher, images: Tensor) -> list[Tensor]:
        seen.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(FrozenTeacher, "_compute", counting)
    kept = fit(folder, SETTINGS, method=method)
    assert sum(seen) == 20 + 2  # one beforehand, seen twice over because it comes alone
    seen.clear()
    plain = fit(folder, SETTINGS, method=method, cache="off")
    assert sum(seen) >= 20 * 5
    assert np.array_equal(scores(kept), scores(plain))


def test_features_on_disk_serve_the_next_fit(folder: Path, tmp_path: Path) -> None:
    once = replace(SETTINGS, calibration="none", cache=str(tmp_path / "features"))
    first = fit(folder, once)
    assert len(list((tmp_path / "features").rglob("*.features"))) == 20
    run = Run()
    second = fit(folder, once, run)
    assert run.log.facts == {"feature cache": "disk"}
    assert all(torch.equal(tensor, learned(second)[name]) for name, tensor in learned(first).items())


def test_the_length_is_handed_on(folder: Path) -> None:
    # What is said by its own name goes before the options.
    for changes, steps in (({"epochs": 1}, 5), ({"steps": 3}, 3), ({"epochs": 1, "options": {"steps": 2}}, 5)):
        STEPS.clear()
        fit(folder, SETTINGS, calibration="none", **changes)
        assert len(STEPS) == steps


def test_a_watcher_is_told_of_the_model_and_of_its_epochs_alone(folder: Path) -> None:
    told: list[tuple[int, float, Inspector]] = []

    def on_epoch(number: int, means: dict[str, float], inspector: Inspector) -> None:
        inspector.method.finalize()
        inspector.predict(torch.rand(2, 3, 32, 32))
        told.append((number, means["loss"], inspector))

    torch.manual_seed(11)
    before, run = torch.get_rng_state(), Run()
    watched = fit(folder, SETTINGS, run, on_epoch)
    assert [number for number, *_ in told] == [1, 2]
    assert all(inspector.method is watched.method for *_, inspector in told)
    assert run.curves["toy"] == [{"loss": loss} for _, loss, _ in told]
    plain = fit(folder, SETTINGS)
    assert all(torch.equal(tensor, learned(plain)[name]) for name, tensor in learned(watched).items())
    assert torch.equal(torch.get_rng_state(), before), "fitting leaves torch's random state alone"
