"""The whole way: a recipe, real processes, the ledger, the report; figures equal to those of ``fit`` by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blemish.bench.jobs import data_digest
from blemish.bench.ledger import FILE, Ledger
from blemish.cli import app
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import FitSettings, fit

RECIPE = """
title = "Weave <b>& blots"
seeds = [3]
backbone = "resnet18"
weights = "random"
precision = "fp32"
[[methods]]
label = "half"
method = "patchcore"
options = { fraction = 0.5 }
[[methods]]
label = "missing <method>"
method = "padim"
[[data]]
set = "weave"
note = "made up"
[[data]]
set = "elsewhere"
[preparation]
size = 64
"""


@pytest.fixture(scope="module")
def data(write_weave):
    return write_weave({"train/good": 6, "test/good": 4, "test/blot": 3}, masks=True)


def bench(folder: Path, data: Path, *more: str) -> tuple[int, str]:
    recipe = folder / "tiny.toml"
    if not recipe.exists():
        recipe.write_text(RECIPE)
    places = ["--data", data, "--results", folder / "results", "--reports", folder / "reports"]
    found = CliRunner().invoke(app, ["bench", str(recipe), *map(str, places), "--threads", "1", "-q", *more])
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A folder in which the recipe has run once."""
    folder = tmp_path_factory.mktemp("bench")
    code, output = bench(folder, data)
    assert code == 0, output
    return folder


def test_the_row_equals_fit_and_evaluate_by_hand(finished, data):
    (row,) = Ledger(finished / "results" / FILE).rows()
    settings = FitSettings(
        method="patchcore",
        options={"fraction": 0.5},
        backbone="resnet18",
        weights="random",
        size=64,
        calibration="none",
        precision="fp32",
    )
    run = Run(seed=3)
    inspector = fit(data / "weave", settings, run)
    by_hand = evaluate(inspector, open_test_set(data / "weave"), run).as_dict()
    for name, value in row["metrics"].items():
        assert value == pytest.approx(by_hand[name], abs=1e-6), name
    assert row["metrics"]["image_auroc"] is not None
    assert row["kinds"]["blot"]["aupro"] == pytest.approx(by_hand["kinds"]["blot"]["aupro"], abs=1e-6)


def test_the_row_says_how_it_came_about(finished, data):
    (row,) = Ledger(finished / "results" / FILE).rows()
    wanted = data_digest(read_training(data / "weave"), open_test_set(data / "weave"))
    assert (row["status"], row["seed"], row["threads"], row["test_openings"]) == ("done", 3, 1, 1)
    assert row["data_digest"] == wanted
    assert row["configuration"]["options"]["patch_size"] == 3, "defaults are written out"
    assert len(row["weights_digest"]) >= 16
    assert row["peak_memory_mib"] > 50
    assert row["seconds"]["total"] >= row["seconds"]["fit"] > 0
    assert set(row["versions"]) >= {"blemish", "torch", "timm"}
    assert row["machine"]["cores"] >= 1
    assert str(data) not in json.dumps(row)
    assert not re.search(r'"/\w+/', json.dumps(row)), "no path of this machine"


def test_what_stands_is_skipped_and_changed_images_are_not(finished, data):
    before = (finished / "results" / FILE).read_bytes()
    code, output = bench(finished, data, "--dry-run")
    assert code == 0
    assert "half on weave, seed 3: stands in the ledger" in output
    assert "absent: elsewhere: the data folder holds no elsewhere" in output
    assert "absent: missing <method>: the method padim is not built yet" in output
    assert "0 jobs to run" in output
    assert bench(finished, data)[0] == 0
    assert (finished / "results" / FILE).read_bytes() == before
    found = json.loads(bench(finished, data, "--dry-run", "--json")[1])
    assert found["jobs"] == [{"job": "half on weave, seed 3", "stands": True, "seconds": None}]
    assert {one["what"] for one in found["absent"]} == {"elsewhere", "missing <method>"}
    assert found["to_run"] == 0
    found = json.loads(bench(finished, data, "--json")[1])
    assert [Path(one).name for one in found["reports"]] == ["tiny.md", "tiny.html"]
    assert (found["done"], found["failed"]) == (0, [])
    image = data / "weave" / "test" / "good" / "0.png"
    kept = image.read_bytes()
    try:
        image.write_bytes((data / "weave" / "test" / "good" / "1.png").read_bytes())
        assert "1 jobs to run" in bench(finished, data, "--dry-run")[1]
    finally:
        image.write_bytes(kept)


def test_the_page_is_whole_safe_and_asks_nothing_of_the_network(finished):
    page = (finished / "reports" / "tiny.html").read_text()
    assert "<b>& blots" not in page
    assert "Weave &lt;b&gt;&amp; blots" in page
    assert "missing &lt;method&gt;" in page
    assert page.count("data:image/jpeg") == 3 + 4, "three misses, four false alarms"
    assert "</html>" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    text = (finished / "reports" / "tiny.md").read_text()
    assert "| weave |" in text
    assert "| blot | 3 |" in text


def test_a_pattern_without_a_match_says_so(finished, data):
    code, output = bench(finished, data, "--only", "screw", "--dry-run")
    assert code == 2
    assert "--only screw matches no job" in output
