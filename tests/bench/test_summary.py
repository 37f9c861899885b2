import dataclasses
import importlib
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


def recipe_of(**changes):
    given = {
        "name": "mine",
        "methods": [
            {"label": "one", "method": "patchcore", "options": {"fraction": 0.01}},
            {"label": "ten", "method": "patchcore", "options": {"fraction": 0.1}},
        ],
        "data": [{"set": name} for name in SETS],
        "seeds": [0, 1, 2],
        "reference": "ten",
        **changes,
    }
    return Recipe.model_validate(given)


def row_of(cell, value, **changes):
    metrics = {"image_auroc": value, "pixel_auroc": value / 2, "aupro": None, "aupro_05": None}
    cues = {"trivial_brightness_auroc": 0.1, "trivial_contrast_auroc": 0.7, "trivial_gradient_auroc": 0.5}
    row = {
        "key": "k", "status": "done", "label": "written by another recipe", "set": cell.set_name,
        "configuration": cell.configuration, "seed": cell.configuration["seed"], "commit": "0123456789abcdef",
        "dirty": False, "source_digest": "s", "data_digest": cell.set_name, "machine": {"processor": "some"},
        "device": "cpu", "threads": 1, "precision": "fp32", "seconds": {"fit": 2.0, "total": 3.0},
        "peak_memory_mib": 100.0, "test_openings": 1, "metrics": metrics | cues,
        "kinds": {"scratch": {"images": 3.0, "image_auroc": value, "pixel_auroc": None, "aupro": None}},
        "test": {"images": 9, "anomalous": 3}, "learned_from": {"images": 20, "groups": 20},
        "versions": {"torch": "2"}, "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return row | changes


def text_of(summary, folder):
    """The report as Markdown."""
    return write_reports(summary, folder, folder)[0].read_text()


@pytest.fixture
def measured():
    """Random figures: by method, sets by seeds, and the rows that hold them."""
    rng = np.random.default_rng(0)
    figures = {label: rng.uniform(0.6, 1.0, (4, 3)) for label in ("one", "ten")}
    places = [(cell, (SETS.index(cell.set_name), cell.configuration["seed"])) for cell in experiments(recipe_of())]
    return figures, [row_of(cell, figures[cell.label][place]) for cell, place in places]


def test_cells_and_averages(measured):
    figures, rows = measured
    summary = summarise(recipe_of(), rows)
    header, lines = metric_table(summary, "image_auroc")
    assert header == ("set", "trivial", "one", "ten")
    for line, one, ten in zip(lines, figures["one"], figures["ten"]):
        cells = [f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in (one, ten)]
        assert line[1:] == ("0.90 (brightness)", *cells), "0.1 separates as well as 0.9"
    tables = figures["one"].mean(axis=0)
    assert lines[-1][0] == "mean over 4 sets"
    assert lines[-1][2] == f"{tables.mean():.3f} ± {tables.std(ddof=1):.3f}", "the spread is of whole tables"
    assert metric_table(summary, "pixel_auroc")[0][1] == "one"
    assert metric_table(summary, "aupro")[1] == []


def check_pair(pair, gains):
    gains = np.array(gains)
    reach = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    assert (pair.label, pair.against) == ("one", "ten")
    assert pair.by_set.tolist() == pytest.approx(gains.tolist())
    assert pair.mean == pytest.approx(gains.mean())
    assert pair.interval == pytest.approx([gains.mean() - reach, gains.mean() + reach])
    assert (pair.better, pair.worse) == (sum(gains > 0.0005), sum(gains < -0.0005))


def test_pairs_use_shared_seeds_only_and_count_each_set_once(measured):
    figures, rows = measured
    gains = figures["one"] - figures["ten"]
    (lost,) = (i for i, cell in enumerate(experiments(recipe_of())) if cell.title == "ten on b, seed 2")
    del rows[lost]
    (pair,) = summarise(recipe_of(), rows).comparisons("image_auroc")
    assert pair.pairs == 11
    check_pair(pair, [gains[0].mean(), gains[1, :2].mean(), gains[2].mean(), gains[3].mean()])


def test_settings_of_the_same_images_count_as_one_set(measured):
    figures, rows = measured
    gains = (figures["one"] - figures["ten"]).mean(axis=1)
    summary = summarise(recipe_of(), rows)
    for row in summary.rows:
        row["configuration"] = row["configuration"] | {"set": "b" if row["set"] == "c" else row["set"]}
    (pair,) = summary.comparisons("image_auroc")
    assert list(pair.by_set.index) == ["a", "b", "d"]
    check_pair(pair, [gains[0], (gains[1] + gains[2]) / 2, gains[3]])
    assert metric_table(summary, "image_auroc")[1][-1][0] == "mean over 4 settings of 3 sets"


def test_jobs_that_were_killed_and_went_on_are_not_timed(measured):
    _, rows = measured
    slow = [row | {"seconds": {"fit": 90.0, "total": 99.0}, "resumed": True} for row in rows[:20]]
    _, lines = timing_table(summarise(recipe_of(), [*slow, *rows[20:]]))
    assert [line[2] for line in lines] == ["2.0", "2.0"]


@pytest.mark.parametrize("change", [{"method_version": 0}, {"size": 320}])
def test_rows_of_another_configuration_or_version_do_not_stand(measured, change):
    _, rows = measured
    summary = summarise(recipe_of(), [row | {"configuration": row["configuration"] | change} for row in rows])
    assert summary.rows == () and len(summary.open) == 2 * 4 * 3


def test_failures_stand_only_until_the_job_succeeds(measured, tmp_path):
    _, rows = measured
    failed = rows[0] | {"status": "failed", "reason": "out of memory"}
    text = text_of(summarise(recipe_of(), [failed, *rows[1:]], {"e": "the data folder holds no e"}), tmp_path)
    assert "| one on a, seed 0 | failed | out of memory |" in text
    assert "| e | absent | the data folder holds no e |" in text
    assert summarise(recipe_of(), [failed, *rows]).failed == ()


def test_a_papers_figures_stand_beside_ours(measured):
    figures, rows = measured
    printed = {"one": {"aupro": {"average": 50}, "image_auroc": {"average": 90.0, "a": 80.0, "zipper": 70.0}}}
    setting = {"backbone": "wide_resnet50_2", "size": 256}
    summary = summarise(recipe_of(paper={"citation": "S", "sets": 15, "setting": setting, "figures": printed}), rows)
    ours = [figures["one"].mean(), figures["one"][0].mean()]
    lines = [[*line[:4], line[5]] for line in paper_table(summary)[1]]
    assert lines == [
        ["one", "image AUROC", "average (paper: 15 sets, ours: 4)", "0.900", f"{ours[0] - 0.9:+.3f}".replace("-", "−")],
        ["one", "image AUROC", "a", "0.800", f"{ours[1] - 0.8:+.3f}".replace("-", "−")],
        ["one", "AU-PRO .30", "average (paper: 15 sets, ours: 0)", "0.500", "not run"],
    ], "what was not run is left out, unless it is an average"
    assert summary.departures() == ["backbone: wide_resnet50_2 in the paper, efficientnet_lite0 here"]


def test_best_on_test_and_oracles_are_marked(measured, tmp_path):
    _, rows = measured
    assert CHOSEN not in text_of(summarise(recipe_of(), rows), tmp_path)
    summary = summarise(recipe_of(metrics=["image_f1_max_oracle", "image_auroc"]), rows)
    for row in summary.rows:
        row["metrics"]["image_f1_max_oracle"] = 0.9
        row["configuration"]["selection"] = "best_on_test"
    text = text_of(summary, tmp_path)
    for words in (
        f"one {CHOSEN} | ten {CHOSEN}",
        "by looking at the test set",
        "image F1 (oracle)",
        "best on the test",
    ):
        assert words in text
    for row in summary.rows:
        row["configuration"] |= {"selection": "last", "options": {"normalise": "test"}}
    marked = dataclasses.replace(summary)  # its columns are told once
    assert set(marked.columns.values()) == {f"one {CHOSEN}", f"ten {CHOSEN}"}


def test_draws_of_different_seeds_are_no_different_states_of_the_images():
    drawn = recipe_of(protocol={"contaminate": 0.1})
    rows = [row_of(cell, 0.5, data_digest=str(cell.configuration["seed"])) for cell in experiments(drawn)]
    assert summarise(drawn, rows).warnings() == []
    rows[0]["data_digest"] = "other"
    assert summarise(drawn, rows).warnings() == ["a, no overlap: the rows are of 2 different states of the images"]


def test_rows_of_different_code_or_images_are_warned_of(measured):
    _, rows = measured
    rows[0]["source_digest"], rows[-1]["data_digest"], rows[1]["dirty"] = "other", "other", True
    assert summarise(recipe_of(), rows).warnings() == [
        "1 of 24 rows were measured with changes that no commit holds",
        "one: the rows come from 2 states of the code (same method version)",
        "d: the rows are of 2 different states of the images",
    ]


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
