"""What a profile makes of a set of images, and what is said before a long training."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blemish import load
from blemish.data.readers import read_training
from blemish.errors import Cancelled, ConfigError, WeightsError
from blemish.registry import PROFILES
from blemish.run import Run, Silent
from blemish.training import forecast
from blemish.training.fit import fit
from blemish.training.profiles import Trial, begin_trial, resolve
from blemish.training.setup import FitSettings, method_config


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def bars(folder, count, turn, size=(192, 192)):
    """Photographs of a threaded bar, in the same direction or in any."""
    rng = np.random.default_rng(1)
    (folder / "good").mkdir(parents=True)
    for number in range(count):
        noise = rng.normal(120, 4, (400, 400)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(noise)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((100, 170, 300, 230), fill=200)
        for x in range(104, 300, 12):
            draw.line((x, 170, x + 6, 230), fill=60, width=3)
        picture = picture.rotate(rng.uniform(0, 360) if turn else rng.normal(0, 1), fillcolor=120, resample=2)
        picture.crop((80, 80, 320, 320)).resize(size[::-1]).save(folder / f"good/{number:02}.png")
    return read_training(folder)


@pytest.mark.parametrize(("turn", "expected"), [(True, "all"), pytest.param(False, "none", marks=pytest.mark.slow)])
def test_parts_that_lie_in_any_direction_are_learned_in_all(tmp_path, turn, expected):
    notes = Notes()
    settled = resolve(bars(tmp_path, 15, turn), FitSettings(profile="fast"), Run(progress=notes))
    assert settled.poses == expected
    lie = "in any direction" if turn else "as photographed"
    assert any(f"your parts lie {lie}" in said and "painted defects" in said for said in notes.said)
    turned = PROFILES["fast"].turned if turn else PROFILES["fast"]
    assert settled.options == {name: value for name, value in turned.options.items() if name != "weighting"}
    assert settled.size == (256, 256)


@pytest.mark.parametrize(
    ("apart", "bad", "options", "expected"),
    [
        ({0: 1.0, 5: 1.3}, 6, {}, 5),
        ({0: 1.0, 5: 1.2}, 6, {}, 0),  # which may be chance
        ({0: 1.0, 5: 1.3}, 5, {}, 0),  # too few to tell
        ({0: 1.0, 5: 1.3}, 6, {"coarse": 0}, 0),  # as was asked for
        ({0: 1.0, 5: 1.3}, 0, {}, 0),
        (None, 6, {"reweight": 3}, 0),  # with which it does not go
    ],
)
def test_known_bad_images_choose_a_second_scale(tmp_path, monkeypatch, apart, bad, options, expected):
    bars(tmp_path, 8, False)
    for number in range(bad):
        (tmp_path / "bad").mkdir(exist_ok=True)
        picture = np.array(Image.open(tmp_path / f"good/{number:02}.png"))
        picture[60:90, 60:90] = 0
        Image.fromarray(picture).save(tmp_path / f"bad/{number}.png")
    tried = dataclasses.replace(PROFILES["fast"], tried={"coarse": 5}, tried_as="a second memory")
    monkeypatch.setitem(PROFILES, "fast", tried)
    if apart:
        monkeypatch.setattr(Trial, "stand_out", lambda trial, *_: apart[trial.learner.config.coarse])
    notes, training = Notes(), read_training(tmp_path)
    settled = resolve(training, FitSettings(profile="fast", poses="none", options=options), Run(progress=notes))
    assert method_config("patchcore", settled).coarse == expected
    said = [note for note in notes.said if "with a second memory" in note]
    assert len(said) == (bad == 6 and not options) and all(("is kept" in note) == (expected == 5) for note in said)


@pytest.mark.parametrize(("count", "folds"), [(11, 3), (12, 1)])
def test_of_few_parts_each_third_is_held_out_in_turn(tmp_path, count, folds):
    training, settings = bars(tmp_path, count, False), FitSettings("patchcore", size=64)
    trial, parts = begin_trial("patchcore", training, settings, Run())
    held = sorted(index for fold in trial.folds for index in fold)
    assert (parts, len(trial.folds)) == (count, folds)
    assert held == [*range(count)] if folds == 3 else len(set(held)) == 4


def test_the_small_network_learns_a_pile_by_banks_and_all_else_as_the_paper(tmp_path):
    training = bars(tmp_path, 6, False)
    pile = tuple(dataclasses.replace(sample, label="unlabelled") for sample in training.samples)
    training = dataclasses.replace(training, samples=pile)
    for profile, expected in (("fast", "banks"), (None, "lof")):
        settled = resolve(training, FitSettings("softpatch", profile=profile), Run())
        assert method_config("softpatch", settled).weighting == expected
    assert all("weighting" not in PROFILES[name].options for name in ("balanced", "best"))


@pytest.mark.slow
def test_what_is_asked_for_stays_and_sizes_are_whole_cells(tmp_path):
    training, notes = bars(tmp_path, 6, False, (96, 192)), Notes()
    asked = FitSettings(profile="fast", poses="flips", size=(90, 200), options={"memory": 77, "layers": (1, 2)})
    settled = resolve(training, asked, Run(progress=notes))
    assert (settled.poses, settled.size, settled.options["memory"]) == ("flips", (88, 200), 77)
    assert any("200 x 90 becomes 200 x 88" in said for said in notes.said)
    own = resolve(training, FitSettings(backbone="efficientnet_lite0", poses="none"), Run())
    assert own.size == (176, 352)  # as many pixels as in a square of 256, and twice as wide as high
    cropped = resolve(training, FitSettings(profile="fast", resize="crop"), Run())  # poses are tried on the crops, too
    assert (cropped.size, cropped.poses) == (256, "none")
    deep = resolve(training, FitSettings(profile="fast", options={"layers": (4,)}), Run())
    assert deep.options["layers"] == (4,)
    assert resolve(training, FitSettings("patchcore"), Run()) == FitSettings("patchcore")
    large = FitSettings(profile="fast", size=448, resize="crop", crop=392)
    assert resolve(training, large, Run()).crop == 392  # more than a trial's whole image
    with pytest.raises(ConfigError, match="no profile 'fats': did you mean 'fast'"):
        resolve(training, FitSettings(profile="fats"), Run())
    with pytest.raises(ConfigError, match=r"rd has no profiles, which patchcore, .*softpatch"):
        resolve(training, FitSettings("rd", profile="fast"), Run())


def test_the_default_gives_way_where_its_weights_are_absent_and_a_profile_asked_for_does_not(tmp_path, monkeypatch):
    def absent(name, layers):
        raise WeightsError(f"the weights of {name} are absent.")

    training, notes = bars(tmp_path / "parts", 4, False), Notes()
    monkeypatch.setattr("blemish.training.profiles.build_backbone", absent)
    monkeypatch.setattr("blemish.training.profiles.DEFAULT_PROFILE", "balanced")
    settled = resolve(training, FitSettings(), Run(progress=notes))
    assert (settled.profile, settled.backbone) == ("fast", PROFILES["fast"].backbone)
    assert any(said.startswith("note: the profile balanced finds more, but") for said in notes.said)
    with pytest.raises(WeightsError, match="absent"):
        resolve(training, FitSettings(profile="balanced"), Run())


def test_defects_painted_on_unseen_good_images_say_what_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr("blemish.training.fit.PAINTED_DEFECTS", 120)
    settings = {"backbone": "efficientnet_lite0", "size": 128, "poses": "none"}
    model = fit(bars(tmp_path, 10, False), FitSettings(**settings))
    expected = model.would_find
    # A few of 40 leave no trace, and those on images that are not ok without them are not counted either.
    flagged = {score for score in model.provenance["unpainted"] if model.calibration.decide(score) != "ok"}
    counted = [score not in flagged for score in model.provenance["unpainted"]]
    assert 36 <= len(counted) <= 40 and flagged and expected["defects"] == sum(counted) < len(counted)
    assert len(expected["widths"]) == 3
    assert expected["widths"][0][0] < expected["widths"][2][0]
    assert expected["widths"][2][1] > 0.5  # a quarter of the picture's side is hard to miss
    assert expected["of_bad"] in model.promise
    assert load(model.save(tmp_path / "model.blemish")).would_find == expected
    strict = dataclasses.replace(model, calibration=dataclasses.replace(model.calibration, rate=0.3))
    assert strict.would_find["rejected"] >= expected["rejected"]


def test_a_long_training_is_announced_and_may_be_declined(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "LONG", 0.0)
    training, notes, asked = bars(tmp_path, 6, False), Notes(), []
    settings = FitSettings("nkd", backbone="resnet18", weights="random", size=64, calibration="none", epochs=60)

    def decline(text):
        asked.append(text)
        return False

    with pytest.raises(Cancelled, match="nothing was begun"):
        fit(training, settings, Run(progress=notes, confirm=decline))
    with pytest.raises(Cancelled):
        fit(training, settings, Run(progress=notes, confirm=decline), poses="all")
    turned, text = asked[::-1]
    assert text.startswith("training takes about")
    assert "(60 steps)" in text and "(300 steps)" in turned  # 6 images in 12 directions are five batches of 16
    assert f"note: {text.removesuffix('. Begin?')}" in notes.said


@pytest.mark.slow
def test_of_students_whose_later_steps_take_longer_the_least_time_is_told(tmp_path, monkeypatch):
    notes, options = Notes(), {"filters": 2, "fields": (17,), "students": 1, "spacing": 8}
    settings = FitSettings("students", options, "resnet18", "random", 64, calibration="none", steps=60)
    monkeypatch.setattr("blemish.training.fit.announce", lambda *given: (forecast.announce(*given), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        fit(bars(tmp_path, 6, False), settings, Run(progress=notes))
    assert any(said.startswith("note: training takes at least") for said in notes.said)


def test_steps_that_a_method_counts_by_itself_are_announced(tmp_path):
    bars(tmp_path, 6, False)
    (tmp_path / "anomalous").mkdir()
    Image.new("RGB", (192, 192), "red").save(tmp_path / "anomalous/0.png")
    notes, settings = Notes(), FitSettings("devnet", backbone="resnet18", weights="random", size=64, epochs=3)
    with pytest.raises(Cancelled):
        fit(tmp_path, settings, Run(progress=notes, time_limit=0), calibration="none")
    assert any("training takes about" in note and note.endswith("(60 steps)") for note in notes.said)


def test_the_first_step_of_all_is_slow_and_not_counted(tmp_path, monkeypatch):
    clock = [0.0]

    def learn(self, indices, run):
        clock[0] += 30  # beginning
        for number in run.progress.track(range(50), lambda: "a training", 50):
            clock[0] += 10 if number < 2 else 2  # seconds a step

    monkeypatch.setattr(forecast.Learner, "learn", learn)
    monkeypatch.setattr(forecast.time, "monotonic", lambda: clock[0])
    notes = Notes()
    settings = FitSettings("nkd", backbone="resnet18", weights="random", size=64, calibration="none", epochs=50)
    monkeypatch.setattr("blemish.training.fit.announce", lambda *given: (forecast.announce(*given), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        fit(bars(tmp_path, 6, False), settings, Run(progress=notes))
    assert "note: training takes about 100 s on this machine (50 steps)" in notes.said
