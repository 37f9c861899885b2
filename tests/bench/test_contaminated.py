"""The contamination protocol in the bench: one draw for all methods, one training for two test sets."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from blemish.bench.jobs import Job, place_of, plan
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import load_recipe
from blemish.bench.sets import open_sets
from blemish.cli import app
from blemish.data.protocols import contaminate
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.errors import ConfigError
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import FitSettings, fit

RECIPE = """
seeds = [3, 5]
backbone = "resnet18"
weights = "random"
[[methods]]
label = "PatchCore"
method = "patchcore"
options = { fraction = 0.5 }
[[methods]]
label = "SoftPatch"
method = "softpatch"
options = { fraction = 0.5 }
[[data]]
set = "weave"
[preparation]
size = 64
[protocol]
contaminate = 0.2
overlap = [false, true]
"""


@pytest.fixture(scope="module")
def data(write_weave):
    return write_weave({"train/good": 10, "test/good": 4, "test/blot": 5})


def recipe_at(path, text=RECIPE):
    path.write_text(text)
    return path


def test_each_method_and_seed_has_a_job_for_each_test_set(data, tmp_path):
    recipe = load_recipe(recipe_at(tmp_path / "pile.toml"))
    jobs = plan(recipe, data, tmp_path).jobs
    titles = [job.title for job in jobs]
    assert titles[:4] == [
        "PatchCore on weave, no overlap, seed 3",
        "PatchCore on weave, overlap, seed 3",
        "SoftPatch on weave, no overlap, seed 3",
        "SoftPatch on weave, overlap, seed 3",
    ]
    assert len(jobs) == len({job.key for job in jobs}) == 8
    for first, second in zip(jobs[::2], jobs[1::2]):
        assert [one.key for one in first.siblings] == [second.key]
        assert [one.key for one in second.siblings] == [first.key]
        assert Job.from_dict(first.to_dict()).siblings[0].key == second.key
        assert first.to_dict()["family"] == second.to_dict()["family"]
    training, test = read_training(data / "weave"), open_test_set(data / "weave")
    for job in jobs:
        drawn = contaminate(training, test, 0.2, job.wish.configuration["seed"])
        assert open_sets(place_of(job)) == (drawn.training, drawn.test("no overlap" not in job.title))
    assert jobs[0].data_digest == jobs[2].data_digest, "one draw for all methods"
    assert jobs[0].data_digest != jobs[4].data_digest, "another seed, another draw"


def test_clean_recipes_keep_their_signatures(data, tmp_path):
    """Rows measured before there was this protocol still stand."""
    text = RECIPE.replace("contaminate = 0.2", "").replace("overlap = [false, true]", "")
    (job, *_) = plan(load_recipe(recipe_at(tmp_path / "clean.toml", text)), data, tmp_path).jobs
    assert {"contaminate", "overlap"}.isdisjoint(job.wish.configuration)
    assert job.wish.configuration["regime"] == "clean"
    assert (job.wish.set_name, job.siblings) == ("weave", ())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("contaminate = 1.5", "contaminate"),
        ("contaminate = 0.1\nregime = 'clean'", "leave regime out"),
        ("overlap = [true]", "give contaminate"),
        ("contaminate = 0.1\noverlap = [true, true]", "twice"),
    ],
)
def test_protocols_that_do_not_hold_together(tmp_path, line, message):
    text = RECIPE.replace("contaminate = 0.2\noverlap = [false, true]", line)
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_at(tmp_path / "wrong.toml", text))


def test_too_few_bad_images_leave_the_set_out_with_the_reason(data, tmp_path):
    text = RECIPE.replace("contaminate = 0.2", "contaminate = 0.6")
    found = plan(load_recipe(recipe_at(tmp_path / "greedy.toml", text)), data, tmp_path)
    assert found.jobs == ()
    assert "is 6 bad ones, and the test set has 5" in next(one.reason for one in found.absent if one.what == "weave")


def test_one_model_is_judged_twice_and_equals_fit_by_hand(data, tmp_path):
    recipe = recipe_at(tmp_path / "pile.toml", RECIPE.replace("seeds = [3, 5]", "seeds = [3]"))
    places = ["--data", data, "--results", tmp_path / "results", "--reports", tmp_path / "reports"]
    done = CliRunner().invoke(app, ["bench", str(recipe), *map(str, places), "--threads", "1", "-q", "--jobs", "2"])
    assert done.exit_code == 0, done.output
    rows = {(row["label"], row["set"]): row for row in Ledger(tmp_path / "results" / FILE).rows()}
    assert len(Ledger(tmp_path / "results" / FILE).rows()) == len(rows) == 4
    for label in ("PatchCore", "SoftPatch"):
        pair = [rows[label, f"weave, {which}"] for which in ("no overlap", "overlap")]
        learned = [row.get("learned_by", row["key"]) for row in pair]
        assert learned[0] == learned[1], "one training for both"
        drawn = contaminate(read_training(data / "weave"), open_test_set(data / "weave"), 0.2, 3)
        settings = FitSettings(
            label.lower(), {"fraction": 0.5}, backbone="resnet18", weights="random", size=64, calibration="none"
        )
        inspector = fit(drawn.training, settings, Run(seed=3))
        for row, test in zip(pair, (drawn.no_overlap, drawn.overlap)):
            by_hand = evaluate(inspector, test, Run(seed=3)).metrics
            assert row["metrics"]["image_auroc"] == pytest.approx(by_hand["image_auroc"], abs=1e-6)
            assert row["test"]["anomalous"] == sum(sample.anomalous for sample in test.samples)
    report = (tmp_path / "reports" / "pile.md").read_text()
    assert "weave, no overlap" in report and "weave, overlap" in report
