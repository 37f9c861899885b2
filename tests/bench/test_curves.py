"""Jobs that train: resumed inside a job after SIGKILL, and followed over epochs without being changed by it."""

from __future__ import annotations

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
from blemish.bench.jobs import CHECKPOINTS, CURVES, LOG, open_sets, plan
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import load_recipe
from blemish.bench.summary import summarise
from blemish.data.protocols import contaminate
from blemish.data.readers import read_training
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import open_test_set
from blemish.report.bench import write_reports
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import FitSettings, fit

RECIPE = """
seeds = [3]
backbone = "resnet18"
weights = "random"
epochs = 6
metrics = ["image_auroc", "pixel_auroc"]
[[methods]]
label = "CDD"
method = "cdd"
options = { batch_size = 4, domains = [2], layers = [1, 2] }
[[data]]
set = "weave"
[preparation]
size = 64
[protocol]
contaminate = 0.25
overlap = [false, true]
follow = 2
"""


@pytest.fixture(scope="module")
def data(write_weave):
    return write_weave({"train/good": 8, "test/good": 4, "test/blot": 5})


def jobs_of(folder, data, text=RECIPE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pile.toml").write_text(text)
    recipe = load_recipe(folder / "pile.toml")
    return recipe, plan(recipe, folder, data)[0]


def start(job, results):
    folder = replace(job, device="cpu").write(results)
    command = [sys.executable, "-m", "blemish.bench.job", str(folder)]
    with (folder / LOG).open("a") as log:
        return folder, subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def written(path):
    return path.stat().st_mtime_ns if path.is_file() else 0


def rows_of(results):
    return {row["set"]: row for row in Ledger(results / FILE).rows()}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    results = tmp_path_factory.mktemp("undisturbed")
    recipe, jobs = jobs_of(results, data)
    folder, process = start(jobs[0], results)
    assert process.wait(120) == 0, (folder / LOG).read_text()
    return results, recipe, rows_of(results)


def test_a_job_killed_while_it_trains_goes_on_and_ends_with_the_same_row(data, undisturbed, tmp_path):
    _, jobs = jobs_of(tmp_path, data)
    kills = 0
    for _ in range(2):
        folder, process = start(jobs[0], tmp_path)
        notes, deadline = folder / CURVES, time.monotonic() + 60
        seen = [written(notes)]
        while process.poll() is None and len(seen) < 3:  # the second writing comes after the first checkpoint
            assert time.monotonic() < deadline, (folder / LOG).read_text()
            time.sleep(0.002)
            if written(notes) != seen[-1]:
                seen.append(written(notes))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(10)
    assert kills, "the job was never killed: it must be longer"
    folder, process = start(jobs[0], tmp_path)
    assert process.wait(120) == 0, (folder / LOG).read_text()
    assert "goes on after epoch" in (folder / LOG).read_text()
    assert not (folder / CHECKPOINTS).exists()
    found, wanted = rows_of(tmp_path), undisturbed[2]
    assert found.keys() == wanted.keys() == {"weave, no overlap", "weave, overlap"}
    for name in found:
        for what in ("metrics", "curves", "followed", "trusted", "kinds", "test_openings"):
            assert found[name][what] == wanted[name][what], what
        assert found[name]["resumed"]  # so its seconds are not those of the whole job
        assert not wanted[name]["resumed"]


def test_the_test_set_is_judged_after_every_second_epoch_and_at_the_end(undisturbed):
    for row in undisturbed[2].values():
        assert [point["epoch"] for point in row["followed"]] == [2, 4, 6]
        assert row["test_openings"] == 3
        assert row["followed"][-1]["image_auroc"] == row["metrics"]["image_auroc"]
        (curve,) = row["curves"].values()
        assert {len(values) for values in curve.values()} == {6}


def test_looks_count_neither_as_learning_nor_as_judging(undisturbed):
    seconds = undisturbed[2]["weave, overlap"]["seconds"]
    assert seconds["looks"] > 0
    assert seconds["fit"] + seconds["looks"] + seconds["judging"] <= seconds["total"]


def test_places_of_trusted_images_are_not_guessed_where_some_were_left_out(tmp_path):
    pile = [Sample(Path(f"{number}.png"), "unlabelled", group=str(number)) for number in range(4)]
    training = TrainingSet("pile", None, tuple(pile))
    configuration = {"options": {"epochs": 2, "steps": None}, "selection": "last"}
    evaluations = Evaluations(configuration, {}, training, {pile[0].path}, Run(), tmp_path / "notes")
    learning = SimpleNamespace(method=SimpleNamespace(confident=[0, 1], finalize=lambda: None))
    evaluations.on_epoch(1, {}, learning)
    assert evaluations.trusted_columns(4) == {"epoch": [1], "images": [2], "bad": [1], "share": 0.25}
    assert evaluations.trusted_columns(3) is None  # place 0 of three may be any of the first two


def test_a_job_that_holds_images_out_names_no_trusted_ones(data, tmp_path):
    _, jobs = jobs_of(tmp_path, data, RECIPE.replace("follow = 2", 'follow = 2\ncalibration = "holdout"'))
    folder, process = start(jobs[0], tmp_path)
    assert process.wait(120) == 0, (folder / LOG).read_text()
    row = rows_of(tmp_path)["weave, overlap"]
    assert [point["epoch"] for point in row["followed"]] == [2, 4, 6]
    assert row["trusted"] is None


def test_the_share_of_bad_images_among_those_taken_for_good_is_noted(undisturbed):
    trusted = undisturbed[2]["weave, overlap"]["trusted"]
    assert trusted["share"] == pytest.approx(2 / 10, abs=1e-5)  # int(.25 * 8) = 2 join 8
    assert trusted["epoch"] == [1, 2, 3, 4, 5, 6]
    assert trusted["images"] == [int(min(epoch / 6, 0.5) * 10) for epoch in range(6)]
    assert all(0 <= bad <= min(2, images) for bad, images in zip(trusted["bad"], trusted["images"]))


def test_the_planted_images_are_those_that_were_drawn(data, tmp_path):
    _, jobs = jobs_of(tmp_path, data)
    configuration = jobs[0].experiments[0].configuration
    training, _, found = open_sets(data / "weave", configuration)
    drawn = contaminate(read_training(data / "weave"), open_test_set(data / "weave"), 0.25, 3).drawn
    assert found == {sample.path for sample in drawn}
    assert found <= {sample.path for sample in training.normal}
    assert all(path.parent.name == "blot" for path in found)


def test_the_report_draws_curves_and_says_that_nothing_was_chosen(undisturbed, tmp_path):
    results, recipe, _ = undisturbed
    _, html = write_reports(summarise(recipe, Ledger(results / FILE).rows()), results, tmp_path)
    text = html.read_text()
    assert "Over epochs, one seed" in text
    assert "nothing was chosen by them" in text
    assert "20.0% of all that was learned from is bad" in text
    for title in (">image AUROC<", ">Loss<", "Bad among the images taken for good", "CDD: what else it tells"):
        assert title in text


def test_following_leaves_training_and_other_rows_as_they_were(data, undisturbed, tmp_path):
    _, jobs = jobs_of(tmp_path, data, RECIPE.replace("follow = 2\n", ""))
    assert "follow" not in jobs[0].experiments[0].configuration
    folder, process = start(jobs[0], tmp_path)
    assert process.wait(120) == 0, (folder / LOG).read_text()
    row = rows_of(tmp_path)["weave, no overlap"]
    assert row["metrics"] == undisturbed[2]["weave, no overlap"]["metrics"]
    assert row["curves"] == undisturbed[2]["weave, no overlap"]["curves"]
    assert "followed" not in row
    assert row["test_openings"] == 1


def test_best_on_test_is_the_best_of_models_stopped_at_each_epoch(data, tmp_path):
    protocol = RECIPE[RECIPE.index("contaminate") :]
    chosen = 'selection = "best_on_test"\nselect_by = ["image_auroc", "pixel_auroc"]\n'
    text = RECIPE.replace(protocol, chosen).replace("epochs = 6", "epochs = 2")
    text = text.replace(
        'method = "cdd"\noptions = { batch_size = 4, domains = [2], layers = [1, 2] }', 'method = "nkd"'
    )
    _, jobs = jobs_of(tmp_path, data, text)
    folder, process = start(jobs[0], tmp_path)
    assert process.wait(120) == 0, (folder / LOG).read_text()
    (row,) = Ledger(tmp_path / FILE).rows()
    assert row["test_openings"] == 2 + 1
    values = []
    for epochs in (1, 2):  # looking at the test set after an epoch must not change how training goes on
        settings = FitSettings("nkd", backbone="resnet18", weights="random", size=64, calibration="none", epochs=epochs)
        stopped = fit(data / "weave", settings, Run(seed=3))
        values.append(evaluate(stopped, open_test_set(data / "weave"), Run(seed=3)).metrics["image_auroc"])
    assert row["selected_epoch"] == 1 + int(np.argmax(values))
    assert row["metrics"]["image_auroc"] == pytest.approx(max(values))
    assert row["metrics_of_last_epoch"]["image_auroc"] == pytest.approx(values[-1])
