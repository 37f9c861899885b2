from __future__ import annotations

import importlib
import itertools
import sys

import numpy as np
import pytest
from scipy import stats

from blemish.bench.artifacts import Artifacts
from blemish.bench.jobs import experiments
from blemish.bench.recipe import Recipe
from blemish.bench.summary import CHOSEN, metric_table, paper_table, summarise, timing_table
from blemish.errors import ConfigError
from blemish.metrics import auroc
from blemish.report.bench import roc_curve, write_reports

SETS = ("a", "b", "c", "d")
MACHINE = {"processor": "some", "cores": 2, "memory_gib": 4.0, "system": "Linux", "python": "3.11"}


def recipe_of(**changes):
    given = {
        "name": "mine",
        "methods": [
            {"label": "one", "method": "patchcore", "options": {"fraction": 0.01}},
            {"label": "ten", "method": "patchcore", "options": {"fraction": 0.1}},
            {"label": "later", "method": "padim"},
        ],
        "data": [{"set": name} for name in SETS],
        "seeds": [0, 1, 2],
        "reference": "ten",
        **changes,
    }
    return Recipe.model_validate(given)


def row_of(cell, value, **changes):
    metrics = {"image_auroc": value, "pixel_auroc": value / 2, "aupro": None, "aupro_05": None}
    metrics |= {"trivial_brightness_auroc": 0.1, "trivial_contrast_auroc": 0.7, "trivial_gradient_auroc": 0.5}
    return {
        "key": f"{cell.signature}/{value}",
        "status": "done",
        "label": "written by another recipe",
        "set": cell.set_name,
        "configuration": cell.configuration,
        "seed": cell.configuration["seed"],
        "commit": "0123456789abcdef",
        "dirty": False,
        "source_digest": "s",
        "data_digest": cell.set_name,
        "machine": MACHINE,
        "device": "cpu",
        "threads": 1,
        "precision": "fp32",
        "seconds": {"fit": value, "total": 10 * value},
        "peak_memory_mib": 100.0,
        "test_openings": 1,
        "metrics": metrics,
        "kinds": {"scratch": {"images": 3.0, "image_auroc": value, "pixel_auroc": None, "aupro": None}},
        "test": {"images": 9, "anomalous": 3},
        "learned_from": {"images": 20, "groups": 20},
        "versions": {"torch": "2"},
        "finished": "2026-01-01T00:00:00+00:00",
        **changes,
    }


def text_of(summary, folder):
    """The report as Markdown."""
    return write_reports(summary, folder, folder)[0].read_text()


@pytest.fixture
def measured():
    """Random figures: by (label, set, seed), and the rows that hold them."""
    rng = np.random.default_rng(0)
    figures, rows = {}, []
    for cell in experiments(recipe_of()):
        figures[cell.label, cell.set_name, cell.configuration["seed"]] = value = rng.uniform(0.6, 1.0)
        rows.append(row_of(cell, value))
    return figures, rows


def test_cells_and_averages(measured):
    figures, rows = measured
    summary = summarise(recipe_of(), rows)
    table = {key: np.array([[figures[key, s, seed] for seed in range(3)] for s in SETS]) for key in ("one", "ten")}
    for label, (number, name) in itertools.product(table, enumerate(SETS)):
        assert summary.values(label, name, "image_auroc").tolist() == table[label][number].tolist()
    _, cells = metric_table(summary, "image_auroc")
    assert cells[0][2] == f"{table['one'][0].mean():.3f} ± {table['one'][0].std(ddof=1):.3f}"
    averages = summary.averages("one", "image_auroc")
    assert summary.complete_sets("image_auroc") == list(SETS)
    assert averages.tolist() == pytest.approx(table["one"].mean(axis=0).tolist()), "the spread is of whole tables"
    assert summary.values("one", "a", "aupro").empty
    assert summary.trivial("a") == ("brightness", pytest.approx(0.9)), "0.1 separates as well as 0.9"


def test_pairs_use_shared_seeds_only_and_count_each_set_once(measured):
    figures, rows = measured
    lost = [r for r in rows if not (r["set"] == "b" and r["configuration"]["options"]["fraction"] == 0.1
                                    and r["seed"] == 2)]  # fmt: skip
    (pair,) = summarise(recipe_of(), lost).comparisons("image_auroc")
    wanted = [
        np.mean([figures["one", name, seed] - figures["ten", name, seed] for seed in range(2 if name == "b" else 3)])
        for name in SETS
    ]
    assert (pair.label, pair.against, pair.pairs) == ("one", "ten", 11)
    assert pair.by_set.tolist() == pytest.approx(wanted)
    assert pair.mean == pytest.approx(np.mean(wanted))
    reach = stats.t.ppf(0.975, len(wanted) - 1) * np.std(wanted, ddof=1) / np.sqrt(len(wanted))
    assert pair.interval == pytest.approx([np.mean(wanted) - reach, np.mean(wanted) + reach])
    assert (pair.better, pair.worse) == (sum(d > 0 for d in wanted), sum(d < 0 for d in wanted))


def test_settings_of_the_same_images_count_as_one_set(measured):
    figures, rows = measured
    same = {"a": "a", "b": "b", "c": "b", "d": "d"}
    assert set(same) == set(SETS)
    summary = summarise(recipe_of(), rows)
    for row in summary.rows:
        row["configuration"] = {**row["configuration"], "set": same[row["set"]]}
    (pair,) = summary.comparisons("image_auroc")
    gains = {
        name: np.mean([figures["one", name, seed] - figures["ten", name, seed] for seed in range(3)]) for name in SETS
    }
    wanted = [gains["a"], (gains["b"] + gains["c"]) / 2, gains["d"]]
    assert list(pair.by_set.index) == ["a", "b", "d"]
    assert pair.by_set.tolist() == pytest.approx(wanted)
    reach = stats.t.ppf(0.975, len(wanted) - 1) * np.std(wanted, ddof=1) / np.sqrt(len(wanted))
    assert pair.interval == pytest.approx([np.mean(wanted) - reach, np.mean(wanted) + reach])
    assert metric_table(summary, "image_auroc")[1][-1][0] == "mean over 4 settings of 3 sets"


def test_jobs_that_were_killed_and_went_on_are_not_timed(measured):
    _, rows = measured
    for row in rows:
        row["seconds"] = {"fit": 2.0, "total": 3.0}
    slow = [{**row, "seconds": {"fit": 90.0, "total": 99.0}, "resumed": True} for row in rows[:20]]
    _, lines = timing_table(summarise(recipe_of(), [*slow, *rows[20:]]))
    assert [line[2] for line in lines] == ["2.0", "2.0"]


def test_rows_of_another_configuration_or_version_do_not_stand(measured):
    _, rows = measured
    old = [{**row, "configuration": {**row["configuration"], "method_version": 0}} for row in rows]
    larger = [{**row, "configuration": {**row["configuration"], "size": 320}} for row in rows]
    summary = summarise(recipe_of(), [*old, *larger])
    assert summary.rows == ()
    assert len(summary.open) == 2 * 4 * 3


def test_failures_stand_only_until_the_job_succeeds(measured, tmp_path):
    _, rows = measured
    failed = {**rows[0], "status": "failed", "reason": "out of memory"}
    assert [row["reason"] for row in summarise(recipe_of(), [failed, *rows[1:]]).failed] == ["out of memory"]
    again = summarise(recipe_of(), [failed, *rows])
    assert again.failed == ()
    assert "out of memory" in text_of(summarise(recipe_of(), [failed, *rows[1:]]), tmp_path)


def test_a_papers_figures_stand_beside_ours(measured):
    figures, rows = measured
    paper = {
        "citation": "Somebody 2020",
        "sets": 15,
        "setting": {"backbone": "wide_resnet50_2", "size": 256},
        "figures": {"one": {"image_auroc": {"average": 90.0, "a": 80.0, "zipper": 70.0}}},
    }
    summary = summarise(recipe_of(paper=paper), rows)
    _, table = paper_table(summary)
    ours = np.mean([figures["one", "a", seed] for seed in range(3)])
    assert [line[2] for line in table] == ["average (paper: 15 sets, ours: 4)", "a"], "what was not run is left out"
    assert table[1][3] == "0.800"
    assert float(table[1][5].replace("−", "-")) == pytest.approx(ours - 0.8, abs=5e-4)
    assert summary.departures() == ["backbone: wide_resnet50_2 in the paper, efficientnet_lite0 here"]


def test_the_trivial_figure_stands_beside_every_image_auroc_and_absent_methods_are_named(measured, tmp_path):
    _, rows = measured
    summary = summarise(recipe_of(), rows)
    header, table = metric_table(summary, "image_auroc")
    assert header[:2] == ("set", "trivial")
    assert all(line[1] == "0.90 (brightness)" for line in table[:4])
    assert metric_table(summary, "pixel_auroc")[0][1] == "one"
    assert "| later | absent | the method padim is not built yet |" in text_of(summary, tmp_path)


def test_best_on_test_and_oracles_are_marked(measured, tmp_path):
    _, rows = measured
    assert CHOSEN not in text_of(summarise(recipe_of(), rows), tmp_path)
    chosen = summarise(recipe_of(metrics=["image_f1_max_oracle", "image_auroc"]), rows)
    for row in chosen.rows:
        row["metrics"]["image_f1_max_oracle"] = 0.9
        row["configuration"]["selection"] = "best_on_test"
    text = text_of(chosen, tmp_path)
    assert f"one {CHOSEN} | ten {CHOSEN}" in text
    assert "by looking at the test set" in text
    assert "image F1 (oracle)" in text
    assert "oracle: with the threshold that is best on the test labels" in text


def test_draws_of_different_seeds_are_no_different_states_of_the_images():
    drawn = recipe_of(protocol={"contaminate": 0.1})
    rows = [row_of(cell, 0.5, data_digest=str(cell.configuration["seed"])) for cell in experiments(drawn)]
    assert summarise(drawn, rows).warnings() == []
    rows[0]["data_digest"] = "other"
    assert summarise(drawn, rows).warnings() == ["a, no overlap: the rows are of 2 different states of the images"]


def test_rows_of_different_code_or_images_are_warned_of(measured):
    _, rows = measured
    rows[0]["source_digest"], rows[-1]["data_digest"], rows[1]["dirty"] = "other", "other", True
    warnings = " ".join(summarise(recipe_of(), rows).warnings())
    assert "one: the rows come from 2 states of the code" in warnings
    assert "d: the rows are of 2 different states of the images" in warnings
    assert "1 of 24 rows were measured with changes" in warnings


def test_the_roc_curves_area_is_the_auroc():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 12, 80).astype(float), rng.random(80) < 0.4
    x, y = roc_curve(Artifacts(scores, labels, np.empty(0), {}))
    assert np.trapezoid(y, x) == pytest.approx(auroc(scores, labels))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_without_pandas_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.delitem(sys.modules, "blemish.bench.summary")
    with pytest.raises(ConfigError, match=r"pip install 'blemish\[bench\]'"):
        importlib.import_module("blemish.bench.summary")
