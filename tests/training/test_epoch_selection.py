"""The length of a training, chosen by defects painted on good images that were held out."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blemish.contract import Backbone, Method, Prediction, Teacher, TrainingImages
from blemish.data.synthetic import paint
from blemish.errors import Cancelled, ConfigError
from blemish.registry import METHODS, MethodEntry
from blemish.run import Run, epochs
from blemish.training.audit import audit
from blemish.training.epoch_selection import KINDS, described
from blemish.training.fit import FitSettings, fit

SIDE, PARTS, BEST = 96, 20, 6
EPOCHS: list[tuple[str, int]] = []
"""Each epoch that the toy method begins: part of the work, number."""
STOP: list[int] = []
"""An epoch of the choosing at whose beginning the user presses Ctrl-C, once."""


@dataclass(frozen=True)
class ToyConfig:
    layers: tuple[int, ...] = (2,)
    epochs: int = 40
    steps: int | None = None
    batch_size: int = 8


class Toy(Method):
    """Knows what the good images look like, and sees clearly at the age of ``BEST`` epochs alone."""

    Config = ToyConfig
    regimes = frozenset({"clean"})
    config: ToyConfig

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: ToyConfig) -> None:
        super().__init__(backbone, size, config)
        self.aged = nn.Linear(1, 1, bias=False)
        self.normal = nn.Parameter(torch.zeros(3, *size), requires_grad=False)

    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        nn.init.zeros_(self.aged.weight)
        self.normal.copy_(training.normal.batch(range(len(training.normal))).images.mean(dim=0))
        keep = {"aged": self.aged}
        for epoch in epochs(run, "toy", keep, self.config, len(training.normal)):
            if run.scope and epoch.number in STOP:
                STOP.clear()
                raise KeyboardInterrupt
            EPOCHS.append((run.scope, epoch.number))
            for _ in epoch.batches():
                pass
            with torch.no_grad():
                self.aged.weight.add_(1)
            epoch.log(loss=1.0)

    def predict(self, images: Tensor) -> Prediction:
        clear = (images - self.normal).abs().mean(dim=1)
        haze = 0.5 * abs(math.log(float(self.aged.weight) / BEST))
        drops = torch.Generator().manual_seed(int(1000 * images.sum()) % 2**31)
        map_ = clear + haze * torch.rand(clear.shape, generator=drops)
        return Prediction(map_, clear.mean(dim=(1, 2)) + haze * torch.rand(len(images), generator=drops))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", MethodEntry(f"{__name__}:Toy", "clean", "for tests", "none"))
    EPOCHS.clear()
    STOP.clear()


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    woven = 0.5 + 0.15 * np.sin(60 * rows) + 0.15 * np.sin(47 * columns)
    return (woven[..., None] + rng.normal(0, 0.02, (SIDE, SIDE, 3))).clip(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for i in range(PARTS):
        Image.fromarray((255 * texture(i)).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


SETTINGS = FitSettings(method="toy", weights="random", size=SIDE, calibration="none", epochs="auto")


def test_the_epoch_that_tells_painted_defects_best_is_the_length(folder):
    inspector = fit(folder, SETTINGS)
    chosen = inspector.provenance["length_chosen"]
    assert chosen["epochs"] == BEST == inspector.method.config.epochs
    assert chosen["looks"]["epoch"] == [1, 2, 3, 4, 6, 8, 11, 16, 23], "four looks after the best"
    assert (chosen["most"], chosen["held_out"]) == (40, PARTS // 5)
    choosing, learning = ([number for scope, number in EPOCHS if scope == name] for name in ("choosing the length", ""))
    assert (choosing, learning) == (list(range(1, 24)), list(range(1, BEST + 1)))
    for figure in ("image_auroc", "aupro"):
        first, *_, last = values = chosen["looks"][figure]
        assert max(first, last) < values[4] == max(values), figure


def test_the_model_is_the_one_that_this_number_of_epochs_gives_from_all_images(folder):
    chosen, asked = fit(folder, SETTINGS), fit(folder, SETTINGS, epochs=BEST)
    for name, tensor in asked.method.state_dict().items():
        assert torch.equal(chosen.method.state_dict()[name], tensor), name
    mean = torch.tensor(np.mean([texture(i) for i in range(PARTS)], axis=0)).permute(2, 0, 1).float()
    assert torch.allclose(asked.method.normal, mean, atol=0.005)


def test_the_options_say_how_many_epochs_are_tried_and_folds_learn_for_the_chosen_length(folder):
    inspector = fit(folder, SETTINGS, options={"epochs": 5}, calibration="crossfit")
    chosen = inspector.provenance["length_chosen"]
    assert (chosen["looks"]["epoch"], chosen["epochs"]) == ([1, 2, 3, 4, 5], 5)
    folds = Counter(scope for scope, _ in EPOCHS if scope.startswith("fold"))
    assert list(folds.values()) == [5] * 5


def test_a_choice_that_was_stopped_goes_on_where_it_was(folder, tmp_path):
    whole = fit(folder, SETTINGS)
    EPOCHS.clear()
    STOP.append(9)
    run = Run(checkpoint=tmp_path / "kept")
    with pytest.raises(Cancelled, match="--resume"):
        fit(folder, SETTINGS, run)
    began = len(EPOCHS)
    resumed = fit(folder, SETTINGS, replace(run, resume=True))
    again = [number for scope, number in EPOCHS[began:] if scope]
    assert again[0] > 1
    assert again[-1] == 23
    assert resumed.provenance["length_chosen"] == whole.provenance["length_chosen"]
    EPOCHS.clear()
    assert fit(folder, SETTINGS, replace(run, resume=True)).provenance["length_chosen"]["epochs"] == BEST
    assert not [scope for scope, _ in EPOCHS if scope], "what was chosen is not chosen once more"
    run.forget_checkpoints()
    assert not (tmp_path / "kept").exists()


def test_points_of_other_work_are_not_taken_up(folder, tmp_path):
    run = Run(checkpoint=tmp_path / "kept")
    fit(folder, SETTINGS, run)
    run.forget_checkpoints()
    notes = tmp_path / "kept" / "curve.checkpoint"
    notes.parent.mkdir()
    look = {"epoch": 3, "image_auroc": 1, "aupro": 1}
    for content in ("{", "[]", '{"points": [], "work": {}}', json.dumps({"points": [look], "work": {}})):
        notes.write_text(content)
        chosen = fit(folder, SETTINGS, replace(run, resume=True)).provenance["length_chosen"]
        assert (chosen["epochs"], len(chosen["looks"]["epoch"])) == (BEST, 9)
        run.forget_checkpoints()
        notes.parent.mkdir(exist_ok=True)


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


def test_a_painted_picture_differs_where_the_mask_says_and_nowhere_else():
    picture = texture(0)
    for kind in KINDS:
        whole, mask = paint(picture, kind, np.random.default_rng(3))
        assert np.array_equal(whole, paint(picture, kind, np.random.default_rng(3))[0])
        assert np.array_equal(whole[~mask], picture[~mask])
        assert 20 < mask.sum() < 64 * 64 / 2 and np.abs(whole - picture)[mask].mean() > 0.03
        assert whole.min() >= 0 and whole.max() <= 1


def test_what_cannot_be_chosen_from_is_refused(folder, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for i in range(9):
        (few / f"{i}.png").write_bytes((folder / f"{i:02d}.png").read_bytes())
    for data, changes, message in (
        (few, {}, "9 are too few"),
        (folder, {"size": 64}, "larger --size"),
        (folder, {"method": "patchcore"}, "patchcore is not trained in epochs"),
        (folder, {"method": "cdd"}, "cdd follows a schedule over its whole length"),
        (folder, {"method": "deepsad"}, "deepsad follows a schedule over its whole length"),
        (folder, {"steps": 3}, "give one of both"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(data, SETTINGS, **changes)
    with pytest.raises(ConfigError, match="an audit takes a number of epochs"):
        audit(folder, replace(SETTINGS, method="rd"))
    assert EPOCHS == []
