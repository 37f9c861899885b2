"""fit --budget: what is chosen from times given here, and that times are taken of what would judge."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image

import blemish
from blemish.cli.options import parse_milliseconds
from blemish.data.readers import read_training
from blemish.errors import ConfigError, OutputError
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
    found, facts = budget.within_budget(training, wanted, wish, "patchcore", Run(progress=notes))
    assert facts["budget"]["p95"] == pytest.approx(memory / 1000 + size**2 / 6553.6)
    assert facts["budget"] | {"p95": 0} == {"asked": milliseconds, "p95": 0, "engine": "torch", "precision": "auto"}
    assert (found.size, found.options["memory"]) == ((size, size), memory)
    assert notes.said[0].startswith(f"budget: {PROFILES['fast'].backbone} at {size} x {size}, memory {memory:,}")
    costs = [said for said in notes.said if said.startswith("budget: without it")]
    assert len(costs) == (found != wanted)
    assert all("too few good parts to tell what that costs" in cost for cost in costs)


def test_what_keeps_to_the_budget_as_it_is_stays_as_it_is(training, monkeypatch):
    monkeypatch.setattr(budget, "_measured", by_hand)
    wish = FitSettings(profile="fast", poses="all", budget=1000)  # a profile whose options are not those of ``fast``
    wanted = dataclasses.replace(resolve(training, wish, Run()), options={"layers": (2, 3), "memory": 5_000})
    assert budget.within_budget(training, wanted, wish, "patchcore", Run())[0] == wanted


def test_a_size_for_the_smallest_defect_is_kept(training, monkeypatch):
    monkeypatch.setattr(budget, "_measured", by_hand)
    wish = FitSettings(profile="fast", poses="none", smallest_defect=8, budget=13)
    wanted = resolve(training, wish, Run())
    found, _ = budget.within_budget(training, wanted, wish, "patchcore", Run())
    assert (found.size, found.options["memory"]) == (wanted.size, 2_500)


def test_a_damaged_image_is_left_out_as_in_fit(tmp_path, training, monkeypatch):
    monkeypatch.setattr(budget, "MEASURED", 1)
    (tmp_path / "good" / "0.png").write_bytes(b"no image")
    wish = FitSettings(profile="fast", poses="none", size=64, options={"memory": 150}, budget=1e9)
    assert budget._measured(training, resolve(training, wish, Run()), "patchcore", Run()).p95 > 0


def test_a_pile_has_a_budget_too(tmp_path, training):
    pile = read_training(tmp_path / "good", unlabelled=True)
    wish = FitSettings(profile="fast", size=64, options={"memory": 50}, budget=10_000)
    assert budget.within_budget(pile, resolve(pile, wish, Run()), wish, "softpatch", Run())[0].size == (64, 64)


def test_where_nothing_keeps_to_it_the_fastest_is_named(training, monkeypatch):
    monkeypatch.setattr(budget, "_measured", by_hand)
    wish = FitSettings(profile="fast", poses="none", budget=3)
    wanted = resolve(training, wish, Run())
    with pytest.raises(ConfigError, match=r"in 3 ms here: the fastest is .* at 128 x 128, memory 1,250: 4 ms"):
        budget.within_budget(training, wanted, wish, "patchcore", Run())
    few = dataclasses.replace(wanted, size=(64, 64))  # 8 x 8 cells of three images: any of these memories holds them
    assert len(budget._smaller(training, few, dataclasses.replace(wish, size=64), "patchcore", Run())) == 1
    wish = dataclasses.replace(wish, budget=0.9)
    with pytest.raises(ConfigError, match="engines gain 4 times at most, and were not tried"):
        budget.within_budget(training, wanted, wish, "patchcore", Run())
    whole = dataclasses.replace(wish, options={"fraction": 1.0})
    with pytest.raises(ConfigError, match="set memory in its place"):
        budget.within_budget(training, resolve(training, whole, Run()), whole, "patchcore", Run())
    for method, words in (("patchcore", "give --profile"), ("rd", "rd has none"), ("cdd", "cdd has none")):
        with pytest.raises(ConfigError, match=words):
            budget.within_budget(training, FitSettings(method, {"memory": 500}), wish, method, Run())


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


def exported_by_hand(monkeypatch, milliseconds):
    """As if exporting took no time: by precision the time of the faster engine, or None where it does not pay."""
    tried = []

    def convert(source, target, precision, images, threads):
        tried.append((precision, len(images)))
        if milliseconds[precision] is None:
            raise (ConfigError if precision == "bf16" else OutputError)("no such engine, or it does not pay here")
        target.write_text(precision)
        return f"what {precision} costs"

    def times(file, images, threads):
        taken = milliseconds[file.read_text()]
        return {"openvino": {"p50": taken - 1, "p95": taken}, "onnxruntime": {"p50": taken, "p95": taken + 1}}

    monkeypatch.setattr("blemish.deploy.export.described_graph", lambda inspector: ("graph", {}))
    monkeypatch.setattr("blemish.deploy.export.save", lambda graph, about, file, promise: file.write_text("fp32"))
    monkeypatch.setattr("blemish.deploy.precision.convert", convert)
    monkeypatch.setattr("blemish.deploy.precision.times", times)
    return tried


@pytest.mark.parametrize(
    ("milliseconds", "expected", "tried"),
    [
        ({"fp32": 20}, ("openvino", "fp32", 20), []),
        ({"fp32": 40, "bf16": 25}, ("openvino", "bf16", 25), ["bf16"]),
        ({"fp32": 40, "bf16": None, "int8": 30}, ("openvino", "int8", 30), ["bf16", "int8"]),
        ({"fp32": 40, "bf16": 35, "int8": 20}, ("openvino", "bf16", 35), ["bf16"]),
        ({"fp32": 70, "bf16": None, "int8": None}, ("torch", "auto", 60), ["bf16", "int8"]),
    ],
)
def test_where_torch_is_too_slow_engines_are_tried_and_what_costs_least_is_taken(
    milliseconds, expected, tried, training, monkeypatch
):
    asked = exported_by_hand(monkeypatch, milliseconds)
    wish = resolve(training, FitSettings(profile="fast", poses="none", budget=30), Run())
    by_torch, judge = budget.Candidate(wish, 50, 60), SimpleNamespace(promise="")
    found = budget._exported(judge, [training.normal[0].path], training.normal[1:], by_torch, 30)
    assert (found.engine, found.precision, found.p95) == expected
    assert [precision for precision, _ in asked] == tried and {images for _, images in asked} <= {2}
    assert found.cost == ("" if found.precision in ("fp32", "auto") else f"what {found.precision} costs")


def test_what_an_engine_keeps_to_is_said_and_noted(training, monkeypatch):
    def measured(training, settings, method, run):
        return budget.Candidate(settings, 20, 25, "openvino", "int8", "a tenth is decided otherwise")

    monkeypatch.setattr(budget, "_measured", measured)
    notes, wish = Notes(), FitSettings(profile="fast", poses="none", budget=30)
    wanted = resolve(training, wish, Run())
    found, facts = budget.within_budget(training, wanted, wish, "patchcore", Run(progress=notes))
    assert found == dataclasses.replace(wanted, precision="fp32") and len(notes.said) == 2  # as the file computes
    assert facts == {"budget": {"asked": 30, "p95": 25, "engine": "openvino", "precision": "int8"}}
    assert "exported in int8 and judged by openvino: 25 ms" in notes.said[0]
    command = "`blemish export MODEL -o FILE.onnx --check GOOD_IMAGES --budget 30ms` writes what keeps to it"
    assert command in notes.said[1]
    assert notes.said[1].endswith("a tenth is decided otherwise")


@pytest.mark.parametrize(("slower", "engines_are_tried"), [(1.5, True), (5, False)])
def test_engines_are_tried_where_they_could_be_fast_enough(slower, engines_are_tried, training, monkeypatch):
    tried, wish = [], FitSettings(profile="fast", poses="none", size=64, options={"memory": 150}, budget=20)
    monkeypatch.setattr(Inspector, "__call__", lambda *_: time.sleep(slower * 20 / 1000))
    monkeypatch.setattr(budget, "_exported", lambda *given: tried.append(given[-1]) or given[-2])
    budget._measured(training, resolve(training, wish, Run()), "patchcore", Run())
    assert tried == [20] * engines_are_tried


@pytest.mark.slow
def test_a_file_exported_for_a_trial_is_judged_by_the_engines_here(training):
    pytest.importorskip("onnxscript", reason="needs the extra export")
    wish = resolve(training, FitSettings(profile="fast", poses="none", size=64, options={"memory": 150}), Run())
    judge = blemish.fit(training, wish)
    by_torch = budget.Candidate(wish, 1e6, 1e6)
    found = budget._exported(judge, [sample.path for sample in training.normal], (), by_torch, 1e5)
    assert (
        found.engine in ("onnxruntime", "openvino") and found.precision == "fp32" and 0 < found.p50 <= found.p95 < 1e5
    )
    assert f"exported in fp32 and judged by {found.engine}" in str(found)


@pytest.mark.parametrize(
    ("text", "expected"), [("30ms", 30), ("0.5s", 500), ("12.5", 12.5), ("0", None), ("fast", None)]
)
def test_times_as_people_write_them(text, expected):
    if expected is not None:
        assert parse_milliseconds(text) == expected
        return
    with pytest.raises(typer.BadParameter, match="30ms"):
        parse_milliseconds(text)
