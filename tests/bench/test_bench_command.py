"""The whole way: a recipe, real processes, the ledger, the report; figures equal to those of ``fit`` by hand."""

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command
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
[[data]]
set = "weave"
note = "made up"
[[data]]
set = "elsewhere"
label = "missing <set>"
[preparation]
size = 64
"""


@pytest.fixture(scope="module")
def data(write_weave):
    return write_weave({"train/good": 6, "test/good": 4, "test/blot": 3}, masks=True)


def bench(folder: Path, data: Path, *more: str) -> tuple[int, str]:
    recipe = folder / "tiny.toml"
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


def test_the_row_equals_fit_and_evaluate_by_hand_and_says_how_it_came_about(finished, data):
    (row,) = Ledger(finished / "results" / FILE).rows()
    options = {"options": {"fraction": 0.5}, "size": 64, "calibration": "none", "precision": "fp32"}
    run, test = Run(seed=3), open_test_set(data / "weave")
    inspector = fit(data / "weave", FitSettings("patchcore", backbone="resnet18", weights="random", **options), run)
    by_hand = evaluate(inspector, test, run).as_dict()
    for name, value in row["metrics"].items():
        assert value == pytest.approx(by_hand[name], abs=1e-6), name
    assert row["metrics"]["image_auroc"] is not None
    assert row["kinds"]["blot"]["aupro"] == pytest.approx(by_hand["kinds"]["blot"]["aupro"], abs=1e-6)
    assert (row["status"], row["seed"], row["threads"], row["test_openings"]) == ("done", 3, 1, 1)
    assert row["data_digest"] == data_digest(read_training(data / "weave"), test)
    assert len(row["weights_digest"]) >= 16 and row["peak_memory_mib"] > 50 and row["machine"]["cores"] >= 1
    assert row["seconds"]["total"] >= row["seconds"]["fit"] > 0
    assert set(row["versions"]) >= {"blemish", "torch", "timm"}
    assert not re.search(r'"/\w+/', json.dumps(row)), "no path of this machine"


def test_what_stands_is_skipped_and_changed_images_are_not(finished, data):
    before = (finished / "results" / FILE).read_bytes()
    code, output = bench(finished, data, "--dry-run")
    assert code == 0
    for line in (
        "half on weave, seed 3: stands in the ledger",
        "absent: missing <set>: the data folder holds no elsewhere",
        "0 jobs to run",
    ):
        assert line in output
    listed = json.loads(bench(finished, data, "--dry-run", "--json")[1])
    assert listed["jobs"] == [{"job": "half on weave, seed 3", "stands": True, "seconds": None}]
    assert {missing["what"] for missing in listed["absent"]} == {"missing <set>"}
    ran = json.loads(bench(finished, data, "--json")[1])
    assert [Path(path).name for path in ran["reports"]] == ["tiny.md", "tiny.html"]
    assert (ran["done"], ran["failed"]) == (0, [])
    assert (finished / "results" / FILE).read_bytes() == before
    image, other = (data / "weave" / "test" / "good" / name for name in ("0.png", "1.png"))
    kept = image.read_bytes()
    try:
        image.write_bytes(other.read_bytes())
        assert "1 jobs to run" in bench(finished, data, "--dry-run")[1]
    finally:
        image.write_bytes(kept)


def test_figures_measured_here_stand_beside_the_published_ones(finished, data, tmp_path, monkeypatch):
    """Whoever calls it in a clone finds the published ledger in ``results``, and adds nothing to it unasked."""
    (row,) = Ledger(finished / "results" / FILE).rows()
    published = Ledger(tmp_path / "results" / FILE)
    published.append({**row, "metrics": {**row["metrics"], "image_auroc": row["metrics"]["image_auroc"] - 0.125}})
    shipped = published.path.read_bytes()
    monkeypatch.chdir(tmp_path)
    code, output = bench(finished, data, "--reproduce", "--json")
    assert code == 0, output
    compared = {cell["metric"]: cell for cell in json.loads(output)["reproduced"]}
    assert compared["image AUROC"]["difference"] == "+0.1250" and compared["pixel AUROC"]["difference"] == "+0.0000"
    assert "published" in bench(finished, data, "--reproduce")[1]
    assert published.path.read_bytes() == shipped
    code, output = bench(finished, data, "--reproduce", "--results", "results")
    assert code == 2 and "other --results" in output
    default = next(option.default for option in get_command(app).commands["bench"].params if option.name == "results")
    assert f"{default}/" in (Path(__file__).parents[2] / ".gitignore").read_text().split()


def test_the_page_is_whole_safe_and_asks_nothing_of_the_network(finished):
    page = (finished / "reports" / "tiny.html").read_text()
    assert "<b>& blots" not in page and "Weave &lt;b&gt;&amp; blots" in page and "missing &lt;set&gt;" in page
    assert page.count("data:image/jpeg") == 3 + 4, "three misses, four false alarms"
    assert page.endswith("</html>")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    text = (finished / "reports" / "tiny.md").read_text()
    assert "| weave |" in text and "| blot | 3 |" in text and "### caught at 5 %" in text


def test_a_pattern_without_a_match_says_so(finished, data):
    code, output = bench(finished, data, "--only", "screw", "--dry-run")
    assert code == 2 and "--only screw matches no job" in output
