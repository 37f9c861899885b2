"""Protocols in the bench: one draw for all methods by the job's seed, one training for two test sets."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from blemish.bench.jobs import Job, open_sets, plan
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import load_recipe
from blemish.cli import app
from blemish.data.protocols import contaminate, label_anomalies
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import FitSettings, fit

PILE = """
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


FEW_LABELS = """
seeds = [3, 5]
backbone = "resnet18"
weights = "random"
[[methods]]
label = "Recon"
method = "ckaad"
options = { strategy = "recon" }
[[methods]]
label = "Deep SAD"
method = "deepsad"
[[data]]
set = "weave"
[[data]]
set = "weave"
reveal = 0.2
kinds = ["blot"]
[[data]]
set = "weave"
reveal = 0.2
kinds = ["blot", "hole"]
"""


@pytest.fixture(scope="module")
def data(write_weave):
    return write_weave({"train/good": 10, "test/good": 4, "test/blot": 5})


@pytest.fixture(scope="module")
def two_kinds(write_weave):
    return write_weave({"train/good": 12, "test/good": 4, "test/blot": 6, "test/hole": 4})


def recipe_at(path, text=PILE):
    path.write_text(text)
    return path


def test_one_job_judges_both_test_sets(data, tmp_path):
    recipe = load_recipe(recipe_at(tmp_path / "pile.toml"))
    jobs, _ = plan(recipe, tmp_path, data)
    assert [[experiment.title for experiment in job.experiments] for job in jobs[:2]] == [
        ["PatchCore on weave, no overlap, seed 3", "PatchCore on weave, overlap, seed 3"],
        ["SoftPatch on weave, no overlap, seed 3", "SoftPatch on weave, overlap, seed 3"],
    ]
    assert len(jobs) == len({job.key for job in jobs}) == 4
    assert Job.read(jobs[0].write(tmp_path)) == jobs[0]
    training, test = read_training(data / "weave"), open_test_set(data / "weave")
    experiments = [experiment for job in jobs for experiment in job.experiments]
    for experiment in experiments:
        drawn = contaminate(training, test, 0.2, experiment.configuration["seed"])
        expected = drawn.training, drawn.test if "no overlap" in experiment.title else drawn.overlap
        assert open_sets(data / "weave", experiment.configuration)[:2] == expected
    digests = [experiment.data_digest for experiment in experiments]
    assert digests[:2] == digests[2:4], "one draw for all methods"
    assert digests[0] != digests[4], "another seed, another draw"


def test_an_epoch_chosen_on_one_test_set_is_no_model_for_another(data, tmp_path):
    text = PILE.replace(
        'label = "PatchCore"\nmethod = "patchcore"\noptions = { fraction = 0.5 }', 'label = "RD"\nmethod = "rd"'
    )
    recipe = load_recipe(recipe_at(tmp_path / "pile.toml", text + 'selection = "best_on_test"\n'))
    assert [len(job.experiments) for job in plan(recipe, tmp_path, data)[0][:3]] == [1, 1, 2]


def test_clean_recipes_keep_their_signatures(data, tmp_path):
    """Rows measured before there was this protocol still stand."""
    text = PILE.replace("contaminate = 0.2", "").replace("overlap = [false, true]", "")
    (job, *_), _ = plan(load_recipe(recipe_at(tmp_path / "clean.toml", text)), tmp_path, data)
    (experiment,) = job.experiments
    assert {"contaminate", "overlap"}.isdisjoint(experiment.configuration)
    assert (experiment.configuration["regime"], experiment.set_name) == ("clean", "weave")


def test_too_few_bad_images_leave_the_set_out_with_the_reason(data, tmp_path):
    text = PILE.replace("contaminate = 0.2", "contaminate = 0.6")
    jobs, missing = plan(load_recipe(recipe_at(tmp_path / "greedy.toml", text)), tmp_path, data)
    assert jobs == []
    assert "is 6 bad ones, and the test set has 5" in missing["weave"]


def test_one_model_is_judged_twice_and_equals_fit_by_hand(data, tmp_path):
    recipe = recipe_at(tmp_path / "pile.toml", PILE.replace("seeds = [3, 5]", "seeds = [3]"))
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
        for row, test in zip(pair, (drawn.test, drawn.overlap)):
            by_hand = evaluate(inspector, test, Run(seed=3)).metrics
            assert row["metrics"]["image_auroc"] == pytest.approx(by_hand["image_auroc"], abs=1e-6)
            assert row["test"]["anomalous"] == sum(sample.anomalous for sample in test.samples)
    report = (tmp_path / "reports" / "pile.md").read_text()
    assert "weave, no overlap" in report and "weave, overlap" in report


def test_every_method_and_seed_has_its_draw_of_labels_and_says_so(two_kinds, tmp_path):
    jobs, missing = plan(load_recipe(recipe_at(tmp_path / "weak.toml", FEW_LABELS)), tmp_path, two_kinds)
    experiments = [experiment for job in jobs for experiment in job.experiments]
    assert missing == {}
    assert len(experiments) == len(jobs) == 3 * 2 * 2
    names = {"weave", "weave, blot known", "weave, blot + hole known"}
    assert {experiment.set_name for experiment in experiments} == names
    training, test = read_training(two_kinds / "weave"), open_test_set(two_kinds / "weave")
    digests = {}
    for experiment in experiments:
        configuration = experiment.configuration
        digests.setdefault((experiment.set_name, configuration["seed"]), set()).add(experiment.data_digest)
        ours, judged, _ = open_sets(two_kinds / "weave", configuration)
        if experiment.set_name == "weave":
            assert configuration["regime"] == "clean"
            assert not {"reveal", "kinds"} & set(configuration)
            assert (ours.samples, judged.samples) == (training.samples, test.samples)
            continue
        expected = label_anomalies(training, test, 0.2, configuration["kinds"], configuration["seed"])
        assert (ours.samples, judged.samples) == (expected.training.samples, expected.test.samples)
        assert len(ours.anomalous) == 3
        assert {s.kind for s in ours.anomalous} == set(configuration["kinds"])
        assert (configuration["regime"], configuration["reveal"]) == ("weak", 0.2)
    assert all(len(found) == 1 for found in digests.values()), "the same for all methods"
    assert all((digests[name, 3] == digests[name, 5]) == (name == "weave") for name in names)


def test_labels_that_cannot_be_drawn_are_missing_with_the_reason(two_kinds, tmp_path):
    text = FEW_LABELS.replace('kinds = ["blot"]', 'kinds = ["bloat"]').replace("0.2", "0.5")
    jobs, missing = plan(load_recipe(recipe_at(tmp_path / "weak.toml", text)), tmp_path, two_kinds)
    assert "no bad image of kind bloat" in missing["weave, bloat known"]
    assert "= 12 labels, and blot, hole have 10 images" in missing["weave, blot + hole known"]
    assert {experiment.set_name for job in jobs for experiment in job.experiments} == {"weave"}
