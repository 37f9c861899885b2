"""fit --budget: what is chosen from times given here, and that times are taken of what would judge."""

import dataclasses

import numpy as np
import pytest
import typer
from PIL import Image

from blemish.cli.options import parse_milliseconds
from blemish.data.readers import read_training
from blemish.errors import ConfigError
from blemish.inspection.inspector import Inspector
from blemish.registry import PROFILES
from blemish.run import Run, Silent
from blemish.training import budget
from blemish.training.profiles import resolve
from blemish.training.setup import FitSettings


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def training(tmp_path):
    (tmp_path / "good").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (256, 256, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"good/{number}.png")
    return read_training(tmp_path)


def by_hand(training, settings, method, run):
    """A millisecond for each 1,000 patches in the memory and for each 6,553.6 pixels."""
    milliseconds = settings.options["memory"] / 1000 + settings.size[0] * settings.size[1] / 6553.6
    return budget.Candidate(settings, milliseconds, milliseconds)


@pytest.mark.parametrize(
    ("milliseconds", "asked", "size", "memory"),
    [
        (20, {}, 256, 10_000),  # 10 + 10
        (19.9, {}, 256, 2_500),  # 2.5 + 10
        (10, {}, 192, 2_500),  # 2.5 + 5.6
        (5, {}, 128, 1_250),  # 1.25 + 2.5
        (19.9, {"size": 256}, 256, 2_500),
        (10, {"options": {"memory": 4_000}}, 192, 4_000),
    ],
)
def test_the_first_that_keeps_to_the_budget_is_taken(milliseconds, asked, size, memory, training, monkeypatch):
    monkeypatch.setattr(budget, "_measured", by_hand)
    notes = Notes()
    wish = FitSettings(profile="fast", poses="none", budget=milliseconds, **asked)
    wanted = resolve(training, wish, Run())
    found = budget.within_budget(training, wanted, wish, "patchcore", Run(progress=notes))
    assert (found.size, found.options["memory"]) == ((size, size), memory)
    assert notes.said[0].startswith(f"budget: {PROFILES['fast'].backbone} at {size} x {size}, memory {memory:,}")
    costs = [said for said in notes.said if said.startswith("budget: without it")]
    assert len(costs) == (found != wanted)
    assert all("too few good parts to tell what that costs" in cost for cost in costs)


def test_what_keeps_to_the_budget_as_it_is_stays_as_it_is(training, monkeypatch):
    monkeypatch.setattr(budget, "_measured", by_hand)
    wish = FitSettings(profile="fast", poses="all", budget=1000)  # a profile whose options are not those of ``fast``
    wanted = dataclasses.replace(resolve(training, wish, Run()), options={"layers": (2, 3), "memory": 5_000})
    assert budget.within_budget(training, wanted, wish, "patchcore", Run()) == wanted


def test_a_pile_has_a_budget_too(tmp_path, training):
    pile = read_training(tmp_path / "good", unlabelled=True)
    wish = FitSettings(profile="fast", size=64, options={"memory": 50}, budget=10_000)
    assert budget.within_budget(pile, resolve(pile, wish, Run()), wish, "softpatch", Run()).size == (64, 64)


def test_where_nothing_keeps_to_it_the_fastest_is_named(training, monkeypatch):
    monkeypatch.setattr(budget, "_measured", by_hand)
    wish = FitSettings(profile="fast", poses="none", budget=3)
    wanted = resolve(training, wish, Run())
    with pytest.raises(ConfigError, match=r"in 3 ms here: the fastest is .* at 128 x 128, memory 1,250: 4 ms"):
        budget.within_budget(training, wanted, wish, "patchcore", Run())
    whole = dataclasses.replace(wish, options={"fraction": 1.0})
    with pytest.raises(ConfigError, match="set memory in its place"):
        budget.within_budget(training, resolve(training, whole, Run()), whole, "patchcore", Run())
    with pytest.raises(ConfigError, match="give --profile"):
        budget.within_budget(training, FitSettings("rd"), wish, "rd", Run())


def test_times_are_of_verdicts_with_a_full_memory(training, monkeypatch):
    monkeypatch.setattr(budget, "MEASURED", 6)
    memories = []
    call = Inspector.__call__

    def counted(self, image):
        memories.append(len(self.method.memory))
        return call(self, image)

    monkeypatch.setattr(Inspector, "__call__", counted)
    wish = FitSettings(profile="fast", poses="none", size=64, options={"memory": 150}, budget=1e9)
    found = budget._measured(training, resolve(training, wish, Run()), "patchcore", Run())
    assert 0 < found.p50 <= found.p95
    assert memories == [128] * 9  # two images of 8 x 8 cells fit into 150 places; three verdicts to warm up
    slow = dataclasses.replace(wish, budget=1e-6)
    memories.clear()
    budget._measured(training, resolve(training, slow, Run()), "patchcore", Run())
    assert len(memories) == 8  # five that are too slow say enough


@pytest.mark.parametrize(
    ("text", "expected"), [("30ms", 30), ("0.5s", 500), ("12.5", 12.5), ("0", None), ("fast", None)]
)
def test_times_as_people_write_them(text, expected):
    if expected is not None:
        assert parse_milliseconds(text) == expected
        return
    with pytest.raises(typer.BadParameter, match="30ms"):
        parse_milliseconds(text)
