"""Jobs that train: resumed inside a job after SIGKILL, and followed over epochs without being changed by it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from blemish.bench.curves import Evaluations
from blemish.bench.jobs import CHECKPOINTS, CURVES, LOG, plan
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import load_recipe
from blemish.bench.summary import summarise
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import open_test_set
from blemish.report.bench import write_reports
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import FitSettings, fit

HEAD = """
seeds = [3]
backbone = "test_resnet"
weights = "random"
metrics = ["image_auroc", "pixel_auroc"]
[preparation]
size = 64
[[data]]
set = "weave"
"""
RECIPE = f"""epochs = 6
{HEAD}
[[methods]]
label = "CDD"
method = "cdd"
options = {{ batch_size = 4, domains = [2], layers = [1, 2] }}
[protocol]
contaminate = 0.25
overlap = [false, true]
follow = 2
"""
CHOSEN = f"""epochs = 2
{HEAD}
[[methods]]
label = "NKD"
method = "nkd"
[protocol]
selection = "best_on_test"
select_by = ["image_auroc", "pixel_auroc"]
"""


@pytest.fixture(scope="module")
def data(write_weave):
    return write_weave({"train/good": 8, "test/good": 4, "test/blot": 5})


def job_of(results, data, text=RECIPE):
    (results / "pile.toml").write_text(text)
    recipe = load_recipe(results / "pile.toml")
    return recipe, plan(recipe, results, data)[0][0]


def start(job, results):
    folder = replace(job, device="cpu").write(results)
    command = [sys.executable, "-m", "blemish.bench.job", str(folder)]
    with (folder / LOG).open("a") as log:
        return folder, subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(job, results):
    folder, process = start(job, results)
    assert process.wait(120) == 0, (folder / LOG).read_text()
    return {row["set"]: row for row in Ledger(results / FILE).rows()}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    results = tmp_path_factory.mktemp("undisturbed")
    recipe, job = job_of(results, data)
    return results, recipe, finish(job, results)


@pytest.mark.parametrize(("metric", "better"), [("image_auroc", 0.9), ("pixel_fpr95", 0.1)])
def test_the_best_epoch_has_the_highest_figures_or_the_lowest_of_those_where_less_is_better(metric, better):
    chosen = SimpleNamespace(configuration={"select_by": [metric]})
    found = {value: Evaluations._worth(chosen, SimpleNamespace(metrics={metric: value})) for value in (0.1, 0.9)}
    assert max(found, key=found.get) == better


@pytest.mark.slow
def test_a_job_whose_checkpoint_is_damaged_begins_anew(data, undisturbed, tmp_path):
    _, job = job_of(tmp_path, data)
    folder = replace(job, device="cpu").write(tmp_path)
    (folder / CHECKPOINTS).mkdir()
    (folder / CHECKPOINTS / "cdd.checkpoint").write_bytes(b"junk")
    (folder / CURVES).write_text('{"points": {}, "trusted": [{"epoch": 6, "images": 1, "bad": 1}]}')
    found = finish(job, tmp_path)
    assert "the job begins anew" in (folder / LOG).read_text()
    assert {name: row["metrics"] for name, row in found.items()} == {
        name: row["metrics"] for name, row in undisturbed[2].items()
    }
    assert [row.get("trusted") for row in found.values()] == [row.get("trusted") for row in undisturbed[2].values()]


@pytest.mark.slow
def test_a_job_killed_while_it_trains_goes_on_and_ends_with_the_same_row(data, undisturbed, tmp_path):
    _, job = job_of(tmp_path, data)
    kills = 0
    for _ in range(2):
        folder, process = start(job, tmp_path)
        notes, deadline, seen = folder / CURVES, time.monotonic() + 60, set()
        while process.poll() is None and len(seen) < 3:  # the second writing comes after the first checkpoint
            assert time.monotonic() < deadline, (folder / LOG).read_text()
            time.sleep(0.002)
            seen.add(notes.stat().st_mtime_ns if notes.is_file() else 0)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(10)
    assert kills, "the job was never killed: it must be longer"
    found, expected = finish(job, tmp_path), undisturbed[2]
    assert "goes on after epoch" in (folder / LOG).read_text()
    assert not (folder / CHECKPOINTS).exists()
    assert found.keys() == expected.keys() == {"weave, no overlap", "weave, overlap"}
    for name in found:
        for what in ("metrics", "curves", "followed", "trusted", "kinds", "test_openings"):
            assert found[name][what] == expected[name][what], what
        assert found[name]["resumed"] and not expected[name]["resumed"], "its seconds are not those of the whole job"


@pytest.mark.slow
def test_the_test_set_is_judged_after_every_second_epoch_and_at_the_end(undisturbed):
    for row in undisturbed[2].values():
        assert [point["epoch"] for point in row["followed"]] == [2, 4, 6]
        assert row["test_openings"] == 3
        assert row["followed"][-1]["image_auroc"] == row["metrics"]["image_auroc"]
        (curve,) = row["curves"].values()
        assert {len(values) for values in curve.values()} == {6}
        seconds, trusted = row["seconds"], row["trusted"]
        assert trusted["epoch"] == [1, 2, 3, 4, 5, 6]
        assert trusted["share"] == pytest.approx(2 / 10, abs=1e-5)  # int(.25 * 8) = 2 join 8
        assert trusted["images"] == [int(min(epoch / 6, 0.5) * 10) for epoch in range(6)]
        assert all(0 <= bad <= min(2, images) for bad, images in zip(trusted["bad"], trusted["images"]))
    assert seconds["looks"] > 0, "neither learning nor judging"
    assert seconds["fit"] + seconds["looks"] + seconds["judging"] <= seconds["total"]


def test_places_of_trusted_images_are_not_guessed_where_some_were_left_out(tmp_path):
    pile = [Sample(Path(f"{number}.png"), "unlabelled", group=str(number)) for number in range(4)]
    configuration = {"options": {"epochs": 2, "steps": None}, "selection": "last"}
    training = TrainingSet("pile", None, tuple(pile))
    evaluations = Evaluations(configuration, {}, training, {pile[0].path}, Run(), tmp_path / "notes")
    learning = SimpleNamespace(method=SimpleNamespace(confident=[0, 1], finalize=lambda: None))
    evaluations.on_epoch(1, {}, learning)
    assert evaluations.trusted_columns(4) == {"epoch": [1], "images": [2], "bad": [1], "share": 0.25}
    assert evaluations.trusted_columns(3) is None  # place 0 of three may be any of the first two


@pytest.mark.slow
def test_the_report_draws_curves_and_says_that_nothing_was_chosen(undisturbed, tmp_path):
    results, recipe, _ = undisturbed
    _, page = write_reports(summarise(recipe, Ledger(results / FILE).rows()), results, tmp_path)
    text = page.read_text()
    for words in ("Over epochs, one seed", "nothing was chosen by them", "20.0% of all that was learned from is bad"):
        assert words in text
    for title in (">image AUROC<", ">Loss<", "Bad among the images taken for good", "CDD: what else it tells"):
        assert title in text


@pytest.mark.slow
def test_following_leaves_training_and_other_rows_as_they_were(data, undisturbed, tmp_path):
    _, job = job_of(tmp_path, data, RECIPE.replace("follow = 2\n", ""))
    assert "follow" not in job.experiments[0].configuration
    row, followed = finish(job, tmp_path)["weave, no overlap"], undisturbed[2]["weave, no overlap"]
    assert row["metrics"] == followed["metrics"]
    assert row["curves"] == followed["curves"]
    assert "followed" not in row and row["test_openings"] == 1


@pytest.mark.slow
def test_best_on_test_is_the_best_of_models_stopped_at_each_epoch(data, tmp_path):
    row = finish(job_of(tmp_path, data, CHOSEN)[1], tmp_path)["weave"]
    values = []
    for epochs in (1, 2):  # looking at the test set after an epoch must not change how training goes on
        settings = FitSettings("nkd", backbone="resnet18", weights="random", size=64, calibration="none", epochs=epochs)
        stopped = fit(data / "weave", settings, Run(seed=3))
        values.append(evaluate(stopped, open_test_set(data / "weave"), Run(seed=3)).metrics["image_auroc"])
    assert row["test_openings"] == 2 + 1
    assert row["selected_epoch"] == 1 + int(np.argmax(values))
    assert row["metrics"]["image_auroc"] == pytest.approx(max(values))
    assert row["metrics_of_last_epoch"]["image_auroc"] == pytest.approx(values[-1])
