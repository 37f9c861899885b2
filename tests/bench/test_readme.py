import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from blemish.bench.jobs import Experiment, experiments
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import load_recipe
from blemish.registry import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "scripts" / "readme_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_and_page_show_what_the_ledger_holds(script):
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "results/tables.md"))
    assert readme == script.fresh(readme, script.readme_tables(ROOT)), "run python scripts/readme_table.py"
    assert page == script.results_page(ROOT), "run python scripts/readme_table.py"


def test_only_what_is_between_the_markers_changes(script):
    before = f"top\n{script.BEGIN}\nold\n{script.END}\nbottom\n"
    once = script.fresh(before, "| new |")
    assert once == f"top\n{script.BEGIN}\n\n| new |\n\n{script.END}\nbottom\n"
    assert script.fresh(once, "| new |") == once
    with pytest.raises(SystemExit, match=r"README\.md has no"):
        script.fresh("no markers", "")


def test_a_new_row_makes_the_table_another_one(script, tmp_path):
    (tmp_path / "recipes").mkdir()
    shutil.copy(ROOT / "recipes" / "quick.toml", tmp_path / "recipes" / "few-labels.toml")
    (tmp_path / "results").mkdir()
    assert script.readme_tables(tmp_path) == ""
    cell = experiments(load_recipe(tmp_path / "recipes" / "few-labels.toml"))[0]
    row = {
        "key": "k", "status": "done", "set": cell.set_name, "configuration": cell.configuration, "seed": 0,
        "commit": None, "device": "cpu", "machine": {"processor": "some"}, "precision": "fp32", "data_digest": "d",
        "versions": {"torch": "2"}, "finished": "2026-01-01T00:00:00+00:00", "seconds": {"total": 5.0},
        "test_openings": 1, "metrics": {"image_auroc": 0.8765}, "kinds": {},
    }  # fmt: skip
    (tmp_path / "results" / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    tables = script.readme_tables(tmp_path)
    assert "| demo/brick | – | 0.876 | – |" in tables or "| demo/brick | – | 0.877 | – |" in tables
    (tmp_path / "recipes" / "few-labels.toml").rename(tmp_path / "recipes" / "other.toml")
    assert script.readme_tables(tmp_path) == ""  # the README shows a few recipes alone
    assert "blemish bench recipes/other.toml" in script.results_page(tmp_path)


def test_every_row_of_the_ledger_still_belongs_to_a_recipe():
    """Unless its method was raised to another version: days of measurements must not be lost by a renamed option."""
    recipes = [load_recipe(path) for path in sorted((ROOT / "recipes").rglob("*.toml"))]
    signatures = {experiment.signature for recipe in recipes for experiment in experiments(recipe)}
    rows = Ledger(ROOT / "results" / FILE).rows()
    assert len(rows) > 100
    for row in rows:
        asked = row["configuration"]
        own = Experiment(row["label"], row["set"], asked, row["data_digest"])
        assert row["key"] == own.key
        assert own.signature in signatures or asked["method_version"] < METHODS[asked["method"]].version, row["label"]
