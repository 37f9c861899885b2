"""What known-bad images changed: who learns from what, who is judged by whom, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from blemish.errors import ConfigError
from blemish.run import Run, Silent
from blemish.training.ablation import _halves, change_in_words
from blemish.training.fit import fit
from blemish.training.learner import Learner
from blemish.training.setup import FitSettings

QUICK = {
    "method": "ckaad",
    "backbone": "resnet18",
    "weights": "random",
    "size": 64,
    "precision": "fp32",
    "options": {"batch_size": 4},
}


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def parts(save_part, tmp_path):
    """``parts(good, bad)``: a folder with good images and known-bad ones, which have a bright square."""

    def write(good=8, bad=4):
        for i in range(good):
            save_part(tmp_path / "good" / f"{i}.png", i)
        for i in range(bad):
            save_part(tmp_path / "anomalous" / "dot" / f"{i}.png", 100 + i, square=(20, 24, 255))
        return tmp_path

    return write


@pytest.mark.slow
def test_each_half_is_judged_by_models_that_have_not_seen_it(parts, monkeypatch):
    learned = []
    learn = Learner.learn

    def watched(self, indices, run, on_epoch=None):
        bad = {sample.path.name for sample in self.anomalous.samples}
        learned.append((run.scope, self.config.strategy, set(indices), bad))
        return learn(self, indices, run, on_epoch)

    monkeypatch.setattr(Learner, "learn", watched)
    notes = Notes()
    model = fit(parts(), FitSettings(**QUICK, steps=2, calibration="none", compare=True), Run(progress=notes))
    assert [(strategy, len(good), len(bad)) for _, strategy, good, bad in learned] == [
        ("ckapatch", 8, 4),
        *[("ckapatch", 4, 2)] * 2,
        *[("recon", 4, 2)] * 2,
    ]
    (_, _, good, bad), (_, _, other_good, other_bad) = learned[1:3]
    assert good | other_good == set(range(8))
    assert bad | other_bad == {f"{i}.png" for i in range(4)}
    assert len({scope for scope, *_ in learned}) == 5
    changed = model.provenance["known_bad_changed"]
    assert changed["images"] == 4
    assert 0 <= changed["auroc"] <= 1
    assert changed["above"] <= 4 >= changed["above_without"]
    assert any("of 4 stand above every held-out good image" in text for text in notes.said)


def test_the_sentence_doubts_small_numbers():
    figures = {"auroc": 0.9, "auroc_without": 0.8, "above": 4, "above_without": 3}
    few, many = (change_in_words({"images": images, **figures}) for images in (5, 40))
    assert "4 of 5 stand above every held-out good image, 3 without them" in few
    assert "AUROC 0.900, 0.800 without; of so few images one more or less may be chance" in few
    assert "chance" not in many


@pytest.mark.parametrize(
    ("bad", "changes", "message"),
    [
        (1, {"steps": 1}, "half of the known-bad parts, and there are 1"),
        (4, {"options": {}, "method": "patchcore"}, "patchcore as set learns from none: use a weak one"),
        (4, {"steps": 1, "options": {"strategy": "recon"}}, "ckaad as set learns from none"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(parts, bad, changes, message):
    with pytest.raises(ConfigError, match=message):
        fit(parts(8, bad), FitSettings(**QUICK, calibration="none", compare=True), **changes)


@pytest.mark.parametrize("shared", [0, 2, 6])
def test_a_part_s_good_and_bad_photographs_and_copies_lie_in_one_half(shared):
    """``shared`` bad parts are known by good photographs, too; the last bad image is a copy of a good one."""

    class Images(SimpleNamespace):
        def __len__(self):
            return len(self.keys)

    def images(start, keys):
        return Images(samples=[SimpleNamespace(group=f"p{start + i}") for i in range(len(keys))], keys=keys)

    good, bad = images(0, [f"g{i}" for i in range(8)]), images(8 - shared, [*(f"b{i}" for i in range(6)), "g0"])
    halves, anomalous_halves = _halves(good, bad, 0)
    assert sorted(halves[0] + halves[1]) == [*range(8)] and sorted([*anomalous_halves[0], *anomalous_halves[1]]) == [
        *range(7)
    ]
    bad_parts = [*(f"p{8 - shared + i}" for i in range(6)), "p0"]  # of the copy, that of the good image
    parts = [{f"p{i}" for i in half} | {bad_parts[i] for i in other} for half, other in zip(halves, anomalous_halves)]
    assert not parts[0] & parts[1]


@pytest.mark.slow
def test_verdicts_on_known_bad_images_that_were_learned_from_are_called_so(parts):
    notes = Notes()
    model = fit(parts(6, 2), FitSettings(**QUICK, steps=1), Run(progress=notes))
    assert model.provenance["regime"] == "weak"
    (said,) = [text for text in notes.said if text.startswith("of 2 known-bad images this model rejects")]
    assert "but it has learned from them; --compare says what they changed" in said
    notes = Notes()
    fit(parts(6, 2), FitSettings(**{**QUICK, "options": {"strategy": "recon"}}, steps=1), Run(progress=notes))
    assert not any("learned from them" in text for text in notes.said)
