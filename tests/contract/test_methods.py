"""What every method in the registry must do, whatever it is: learned on tiny images over a small random backbone.

A method that is registered is tested here without being named. Those that are trained learn for a few steps only:
enough to see a plain defect, by no means enough to say how good they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from blemish.backbones.backbone import build_backbone
from blemish.contract import Method, Prediction, TrainingImages
from blemish.errors import BlemishError, Cancelled, ConfigError, DataError, RegimeError
from blemish.inspection.inspector import Inspector, load
from blemish.registry import METHODS, make_config, method_class, option_table
from blemish.run import Run, choose_device
from blemish.training import setup
from blemish.training.fit import fit

SIDE = 64
STEPS = 15
"""Of the fit that has to see a defect; fits that only have to work take one or two."""

QUICK = {"fraction": 0.2, "batch_size": 4, "domains": (2,), "perturbation": 0.0, "batchnorm": "frozen"}
QUICK |= {"hidden": 64, "flow_steps": 2, "test_turns": 2}
QUICK |= {"filters": 4, "fields": (33,), "spacing": 4, "taught": 0.2}
QUICK |= {"first_width": 8, "widen": 1, "side": 16, "repeats": 2}
QUICK |= {"measure": "l2", "iterations": 3}
QUICK |= {"network_width": 4, "enlarge": 1, "deviation": 2.0, "heads_rate": 0.01, "rate": 0.01}
"""Options that make fits small, or learn something in few steps, for methods that have them."""

OWN = {"supersimplenet": {"hidden": 1024}, "dra": {"hidden": 256}}  # what a narrower head does not see in so few steps

DEVICE = choose_device(os.environ.get("BLEMISH_TEST_DEVICE", "cpu"))
"""The whole contract may be asked of a graphics card: scripts/gpu/check.sh does."""

REGIMES = ("clean", "contaminated", "weak")
Pixels = NDArray[np.uint8]


def cloth(seed: int, shape: tuple[int, int] = (SIDE, SIDE), grey: bool = False) -> Pixels:
    """A good part."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = 0.5 + 0.2 * np.sin(0.7 * rows + rng.uniform(0, 6)) * np.cos(0.5 * columns + rng.uniform(0, 6))
    pixels = waves[..., None] * (1, 1, 1 if grey else 0.8) + (rng.normal(0, 0.02, (*shape, 1 if grey else 3)))
    return (255 * pixels.clip(0, 1)).astype(np.uint8)


def spoiled(seed: int) -> Pixels:
    """The good part of that seed with something on it."""
    pixels = cloth(seed)
    pixels[24:44, 16:40] = (255, 0, 60)
    return pixels


def as_tensor(pictures: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training folder for each regime, one of grey wide images, one of grey images alone."""
    root = tmp_path_factory.mktemp("contract")

    def write(place: str, pictures: list[Pixels]) -> None:
        (root / place).mkdir(parents=True)
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(root / place / f"{i}.png")

    good, bad = [cloth(i) for i in range(8)], [spoiled(50 + i) for i in range(2)]
    write("clean/good", good)
    write("contaminated/unlabelled", [*good, *bad])
    write("weak/good", good)
    write("weak/anomalous/paint", bad)
    grey = [cloth(i, (48, 72), grey=True)[..., 0] for i in range(8)]
    write("copies clean/good", good[:1] * 5)
    write("copies contaminated/unlabelled", good[:1] * 5)
    write("copies weak/good", good[:1] * 5)
    write("copies weak/anomalous/paint", bad)
    write("wide/good", grey)
    write("wide-pile/unlabelled", grey)
    write("wide-weak/good", grey)
    write("wide-weak/anomalous/hole", [np.where(np.eye(48, 72) > 0, 255, grey[i]).astype(np.uint8) for i in range(2)])
    wide = {"clean": "wide", "contaminated": "wide-pile", "weak": "wide-weak"}
    places = [*REGIMES, *(f"copies {regime}" for regime in REGIMES)]
    return {place: root / place for place in places} | {f"wide {r}": root / place for r, place in wide.items()}


@pytest.fixture(scope="module", params=list(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    """A method's name; all tests of one method run together."""
    return request.param


@pytest.fixture(scope="module")
def backbones():
    """``build_backbone``, once for each set of arguments."""
    return cache(build_backbone)


@pytest.fixture(scope="module")
def learn(folders: dict[str, Path], backbones, name: str):
    """``learn(name, regime, steps, ...)``: an inspector without calibration; the same call gives the same object."""

    @cache
    def learned(
        name: str,
        regime: str,
        steps: int | None = None,
        size: int | tuple[int, int] = SIDE,
        again: int = 0,
        seed: int = 0,
        epochs: int = 1,
        precision: str = "fp32",
        run: Run | None = None,
    ) -> Inspector:
        known = {field.name for field in dataclasses.fields(method_class(name).Config)}
        wanted = {**QUICK, **OWN.get(name, {}), "steps": steps, "epochs": epochs}
        options = {key: value for key, value in wanted.items() if key in known}
        with pytest.MonkeyPatch.context() as patch:
            # The shared backbone stays in fp32.
            patch.setattr(setup, "build_backbone", backbones if precision == "fp32" else build_backbone)
            return fit(
                folders[regime],
                method=name,
                options=options,
                # timm's own miniature of a ResNet, for tests
                backbone=None if method_class(name).on_pixels else "test_resnet",
                weights="random",
                size=size,
                calibration="none",
                precision=precision,
                run=dataclasses.replace(run or Run(seed=seed), device=DEVICE),
            )

    return learned


def home(name: str) -> str:
    return METHODS[name].regime


def judged(inspector: Inspector, pictures: list[Pixels]) -> Prediction:
    return inspector.predict(as_tensor(pictures))


def test_the_entry_is_whole(name: str) -> None:
    entry, cls = METHODS[name], method_class(name)
    assert issubclass(cls, Method)
    assert entry.regime in REGIMES
    assert cls.regimes <= set(REGIMES)
    assert entry.regime in cls.regimes
    assert entry.idea
    assert entry.paper
    assert dataclasses.is_dataclass(cls.Config)
    assert cls.Config.__dataclass_params__.frozen
    assert make_config(cls, {}) == cls.Config()
    assert cls.on_pixels or tuple(make_config(cls, {}).layers)


def test_options_are_described_one_by_one(name: str) -> None:
    for option, said in option_table(method_class(name)).items():
        assert said["meaning"], option


def test_options_survive_json_and_are_refused_out_of_their_bounds(name: str) -> None:
    cls = method_class(name)
    assert make_config(cls, json.loads(json.dumps(dataclasses.asdict(cls.Config())))) == cls.Config()
    for option, schema in TypeAdapter(cls.Config).json_schema(mode="serialization")["properties"].items():
        schemas = [schema, *schema.get("anyOf", ())]
        wrong = [limits["minimum"] - 1 for limits in schemas if "minimum" in limits]
        wrong += [limits["exclusiveMinimum"] for limits in schemas if "exclusiveMinimum" in limits]
        wrong += [limits["maximum"] + 1 for limits in schemas if "maximum" in limits]
        wrong += ["no such word"] if "enum" in schema else []
        wrong += [[]] if "minItems" in schema else []
        numeric = {"integer", "number"} & {limits.get("type") for limits in schemas}
        assert wrong or not numeric, f"{option} is a number without bounds"
        for value in wrong:
            with pytest.raises(ConfigError, match=option):
                make_config(cls, {option: value})


def test_nothing_to_learn_from_and_nothing_learned_are_said(name: str, tiny_backbone, tiny_images) -> None:
    cls = method_class(name)
    config = make_config(cls, {} if cls.on_pixels else {"layers": (2, 3)})
    method = cls(tiny_backbone((2, 3)), (SIDE, SIDE), config)
    with pytest.raises(ConfigError, match="learned nothing yet: call fit or load_fitted"):
        method(tiny_images(1).images)
    with pytest.raises(RegimeError, match="normal images and was given none"):
        method.fit(TrainingImages(tiny_images(0), tiny_images(3), home(name)), method.backbone, Run())
    if home(name) == "weak" and cls.without_anomalous(config) is None:
        with pytest.raises(RegimeError, match="4 images taken as normal and 0 known to be bad: use a method"):
            method.fit(TrainingImages(tiny_images(4), tiny_images(0), "weak"), method.backbone, Run())
    assert not method.is_fitted


def test_shapes_and_finite_numbers(name: str, learn) -> None:
    pictures = [cloth(100), cloth(101), spoiled(102)]
    found = judged(learn(name, home(name), STEPS), pictures)
    assert found.score.shape == (3,)
    assert found.score.dtype == torch.float32
    assert found.score.isfinite().all()
    assert (found.map is not None) == METHODS[name].has_map
    if found.map is not None:
        assert found.map.shape == (3, SIDE, SIDE)
        assert found.map.isfinite().all()
        assert not found.map.requires_grad


def test_uniform_images_give_finite_numbers(name: str, learn) -> None:
    """A lens cap, a dead camera: black, white and grey all over."""
    flat = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in (0, 128, 255)]
    found = judged(learn(name, home(name), STEPS), flat)
    assert found.score.isfinite().all()
    assert found.map is None or found.map.isfinite().all()


def test_copies_of_one_image_are_learned_or_refused_in_words(name: str, learn) -> None:
    try:
        inspector = learn(name, f"copies {home(name)}", 1)
    except DataError as error:
        assert "copies" in str(error) or "more good parts" in str(error)
        return
    found = judged(inspector, [cloth(0), spoiled(102)])
    assert found.score.isfinite().all()
    assert found.map is None or found.map.isfinite().all()


def test_a_planted_defect_scores_higher(name: str, learn) -> None:
    """On average over twins with and without it; the map too is higher there than elsewhere.

    A method that learns slowly may take three times as long, or nine: how far it comes before is chance, which on
    another processor falls otherwise.
    """
    seeds, sees = range(200, 208), {}
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[24:44, 16:40] = True
    for steps in (STEPS, 3 * STEPS, 9 * STEPS):
        inspector = learn(name, home(name), steps)
        good, bad = judged(inspector, [cloth(i) for i in seeds]), judged(inspector, [spoiled(i) for i in seeds])
        sees["pairs"] = bool((bad.score > good.score).float().mean() >= 0.75)
        sees["on average"] = bool(bad.score.mean() > good.score.mean())
        if bad.map is not None and good.map is not None:
            grown = bad.map.mean(0) - good.map.mean(0)
            sees["where it is"] = bool(grown[inside].mean() > grown[~inside].mean())
        if all(sees.values()) or not is_trained(name):
            break
    assert all(sees.values()), sees


def test_judging_is_deterministic_and_changes_nothing(name: str, learn) -> None:
    inspector = learn(name, home(name), STEPS)
    before = {key: value.clone() for key, value in inspector.method.state_dict().items()}
    first, second = (judged(inspector, [cloth(300), spoiled(301)]) for _ in range(2))
    torch.testing.assert_close(first.score, second.score, rtol=0, atol=0)
    for key, value in inspector.method.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert not inspector.method.training


def test_company_does_not_change_a_verdict(name: str, learn) -> None:
    """Alone or in a batch. Rounding to bf16 may tip a feature to its neighbouring number: hence the tolerance."""
    inspector = learn(name, home(name), STEPS)
    pictures = [cloth(i) for i in range(400, 404)] + [spoiled(404)]
    together = judged(inspector, pictures)
    for i, picture in enumerate(pictures):
        alone = judged(inspector, [picture])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-2, atol=1e-4)
        if together.map is not None and alone.map is not None:
            range_ = float(together.map.max() - together.map.min())
            torch.testing.assert_close(alone.map[0], together.map[i], rtol=1e-2, atol=1e-2 * range_)


def test_the_same_seed_gives_the_same_bits(name: str, learn) -> None:
    first, second = (learn(name, home(name), 2, again=again) for again in (0, 1))
    assert first is not second
    ours, theirs = first.method.state_dict(), second.method.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")


def is_trained(name: str) -> bool:
    """In epochs, from first values that depend on the seed."""
    return {"epochs", "steps"} <= {field.name for field in dataclasses.fields(method_class(name).Config)}


def test_another_seed_trains_another_network(name: str, learn) -> None:
    if not is_trained(name):
        return
    first, other = (learn(name, home(name), 2, seed=seed).method.state_dict() for seed in (0, 1))
    own = [key for key in first if not key.startswith("backbone.")]
    assert any(first[key].shape != other[key].shape or not torch.equal(first[key], other[key]) for key in own)


def test_stopped_and_resumed_it_ends_at_the_same_bits(name: str, learn, tmp_path: Path) -> None:
    if not is_trained(name):
        return
    whole = learn(name, home(name), epochs=3).method.state_dict()
    for done in (1, 2):
        stopped = Run(checkpoint=tmp_path, resume=True, time_limit=0.0)
        with pytest.raises(Cancelled, match=f"epoch {done} of 3"):
            learn(name, home(name), epochs=3, run=stopped)
    run = Run(checkpoint=tmp_path, resume=True)
    resumed = learn(name, home(name), epochs=3, run=run).method.state_dict()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    (curve,) = run.curves.values()
    assert len(curve) == 3
    assert all(np.isfinite(mean) for means in curve for mean in means.values())


def test_bf16_learns_and_judges_about_the_same(name: str, learn) -> None:
    exact = learn(name, home(name), 2, again=0)  # which another test has learned
    short = learn(name, home(name), 2, precision="bf16")
    pictures = [cloth(100), spoiled(102)]
    ours, theirs = judged(exact, pictures), judged(short, pictures)
    assert theirs.map is None or theirs.map.dtype == torch.float32
    torch.testing.assert_close(theirs.score, ours.score, rtol=0.5, atol=0.05)


def test_a_saved_and_loaded_method_is_the_same_to_the_bit(name: str, learn, tmp_path: Path) -> None:
    inspector = learn(name, home(name), STEPS)
    again = load(inspector.save(tmp_path / "m.blemish"), precision="fp32")
    assert again.method.config == inspector.method.config
    pictures = [cloth(500), spoiled(501)]
    ours, theirs = judged(inspector, pictures), judged(again, pictures)
    torch.testing.assert_close(theirs.score, ours.score, rtol=0, atol=0)
    assert (theirs.map is None) == (ours.map is None)
    if ours.map is not None:
        torch.testing.assert_close(theirs.map, ours.map, rtol=0, atol=0)


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_are_served_or_refused_with_a_way_out(name: str, regime: str, learn) -> None:
    if home(name) == "clean" or regime in method_class(name).regimes:
        found = judged(learn(name, regime, 2 if regime == home(name) else 1), [cloth(600)])
        assert found.score.isfinite().all()
    else:
        with pytest.raises(RegimeError, match="use"):
            learn(name, regime, 1)


def test_grey_images_and_inputs_that_are_not_square(name: str, learn) -> None:
    inspector = learn(name, f"wide {home(name)}", 1, (64, 96))
    grey = cloth(700, (48, 72), grey=True)[..., 0]
    verdict = inspector(grey)
    assert verdict.size == (48, 72)
    assert np.isfinite(verdict.score)
    assert verdict.heatmap is None or verdict.heatmap.shape == (48, 72)


def test_an_input_size_that_no_stride_divides_works_or_is_refused_in_words(name: str, learn) -> None:
    try:
        inspector = learn(name, home(name), 1, (72, 60))
    except BlemishError as error:
        assert "72" in str(error) or "60" in str(error)
        return
    found = inspector.predict(torch.rand((1, 3, 72, 60), generator=torch.Generator().manual_seed(0)))
    assert found.map is None or found.map.shape == (1, 72, 60)
