"""The table and the picture of all methods, from a ledger made up here."""

import importlib.util
from pathlib import Path

import pytest

from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.bench.ledger import FILE, Ledger
from blemish.registry import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "scripts" / "methods_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(method, place, auroc, label="", options=None, **changes):
    protocol = {"regime": "clean", "selection": "last", "calibration": "none"}
    asked = {"method": method, "options": options or {}, "set": place, "backbone": DEFAULT_BACKBONE, **protocol}
    asked["method_version"] = METHODS[method].version
    asked |= {"alt_split": "resplit_alt.csv" if place == "mvtec_screw" else "", "size": 256, "resize": "stretch"}
    seconds = {"fit": 12.0, "judging": 5.0, "total": 20.0}
    return {
        "label": label or method, "configuration": asked | changes, "metrics": {"image_auroc": auroc},
        "seconds": seconds, "test": {"images": 100}, "model_mib": 3.0,
    }  # fmt: skip


def test_the_guide_shows_what_the_ledger_holds(script):
    page = script.PAGE.read_text(encoding="utf-8")
    rows = list(Ledger(ROOT / "results" / FILE).done().values())
    assert page == script.fresh(page, script.tables(script.frame(rows))), "run python scripts/methods_table.py"


def test_methods_are_averaged_over_seeds_and_compared_where_they_saw_the_same(script):
    sets = ("magnetic_tile", "mvtec_screw", "crackforest_patches", "elpv_mono", "brain_mri")
    rows = [row("patchcore", place, 0.8 + 0.01 * i) for i, place in enumerate(sets)]
    rows += [row("patchcore", "magnetic_tile", 0.9), row("rd", "magnetic_tile", 0.7, "RD", {"steps": 50})]
    rows += [row("rd", "brain_mri", 0.6, "RD", {"steps": 50}), row("padim", "brain_mri", 0.9)]
    rows += [row("patchcore", "brain_mri", 0.1, **changed) for changed in ({"size": 512}, {"backbone": "resnet18"})]
    rows += [row("meds", place, 0.75, regime="contaminated", contaminate=0.1, overlap=True) for place in sets[:2]]
    rows += [row("meds", "magnetic_tile", 0.1, regime="contaminated", contaminate=0.1, overlap=False)]
    figures = script.frame(rows)
    lines = [line for line in script.tables(figures).splitlines() if line.startswith("| [")]
    assert lines == [
        "| [patchcore](../methods/patchcore.md) | .850 | .810 | .820 | .830 | .840 | .830 | 12 | 50 | 3 |",
        "| [padim](../methods/padim.md) | – | – | – | – | .900 | – | 12 | 50 | 3 |",
        "| [RD, 50 steps](../methods/rd.md) | .700 | – | – | – | .600 | – | 12 | 50 | 3 |",
        "| [meds](../methods/meds.md) | .750 | .750 | – | – | – | – | 12 | 50 | 3 |",
        "| [meds](../methods/meds.md) | .100 | – | – | – | – | – | 12 | 50 | 3 |",  # a table of its own
    ]
    (drawn,) = [text.get_text() for text in script.picture(figures).axes[0].texts]
    assert drawn == "patchcore"
    with pytest.raises(SystemExit, match=r"has no <!-- figures:begin -->"):
        script.fresh("no markers", "")


def test_a_method_s_page_has_each_training_s_figures_below_what_one_trivial_cue_separates(script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = importlib.import_module("method_pages")
    rows = [row("rd", "magnetic_tile", auroc, "RD", {"steps": 50}) for auroc in (0.7, 0.8)]
    rows += [row("rd", "brain_mri", 0.6, "RD", {"steps": 50}), row("rd", "magnetic_tile", 0.9, "RD", {"epochs": 9})]
    rows += [row("rd", "elpv_mono", 0.5, "RD", {"steps": 50}, regime="contaminated", contaminate=0.1, overlap=False)]
    for line in rows:
        line["metrics"] |= {"trivial_brightness_auroc": 0.2, "trivial_contrast_auroc": 0.7, "caught_at_5": 0.25}
    rows[0]["metrics"]["aupro"], rows[1]["metrics"]["aupro"] = 0.4, 0.5
    assert page.figures_of("rd", script.frame(rows))[2:] == [
        "| learned from | tiles | screws | cracks | cells | brains |",
        "|---|---|---|---|---|---|",
        "| good images: one trivial cue | .800 (brightness) |  |  |  | .800 (brightness) |",
        "| RD, 50 steps, 2 seeds | .750 / .250 / .450 |  |  |  | .600 / .250 / – |",
        "| RD, 9 epochs | .900 / .250 / – |  |  |  |  |",
        "| a pile: one trivial cue |  |  |  | .800 (brightness) |  |",
        "| RD, 50 steps |  |  |  | .500 / .250 / – |  |",
    ]
    assert page.figures_of("padim", script.frame(rows)) == ["None yet on the sets that all methods are compared on."]
