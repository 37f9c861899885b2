"""A few known-bad images in the bench: one draw for all methods, by the job's seed, told in the row."""

from __future__ import annotations

import pytest

from blemish.bench.jobs import place_of, plan
from blemish.bench.recipe import load_recipe
from blemish.bench.sets import open_sets
from blemish.data.protocols import label_anomalies
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.errors import ConfigError

RECIPE = """
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
    return write_weave({"train/good": 12, "test/good": 4, "test/blot": 6, "test/hole": 4})


def recipe_at(path, text=RECIPE):
    path.write_text(text)
    return load_recipe(path)


def test_every_method_and_seed_has_its_draw(data, tmp_path):
    made = plan(recipe_at(tmp_path / "weak.toml"), data, tmp_path)
    assert made.absent == ()
    assert len(made.jobs) == 3 * 2 * 2
    names = {"weave", "weave, blot known", "weave, blot + hole known"}
    assert {job.wish.set_name for job in made.jobs} == names
    for name in names:
        ours = [job for job in made.jobs if job.wish.set_name == name]
        digests = {seed: {j.data_digest for j in ours if j.wish.configuration["seed"] == seed} for seed in (3, 5)}
        assert all(len(found) == 1 for found in digests.values())
        assert (digests[3] == digests[5]) == (name == "weave")


def test_a_job_opens_what_the_protocol_draws_and_says_so(data, tmp_path):
    made = plan(recipe_at(tmp_path / "weak.toml"), data, tmp_path)
    training, test = read_training(data / "weave"), open_test_set(data / "weave")
    for job in made.jobs:
        configuration = job.wish.configuration
        ours, judged = open_sets(place_of(job))
        if job.wish.set_name == "weave":
            assert configuration["regime"] == "clean"
            assert not {"reveal", "kinds"} & set(configuration)
            assert (ours.samples, judged.samples) == (training.samples, test.samples)
            continue
        expected = label_anomalies(training, test, 0.2, configuration["kinds"], configuration["seed"])
        assert (ours.samples, judged.samples) == (expected.training.samples, expected.test.samples)
        assert len(ours.anomalous) == 3
        assert {s.kind for s in ours.anomalous} == set(configuration["kinds"])
        assert (configuration["regime"], configuration["reveal"]) == ("weak", 0.2)


def test_what_cannot_be_drawn_is_absent_with_the_reason(data, tmp_path):
    text = RECIPE.replace('kinds = ["blot"]', 'kinds = ["bloat"]').replace("0.2", "0.5")
    made = plan(recipe_at(tmp_path / "weak.toml", text), data, tmp_path)
    reasons = [absent.reason for absent in made.absent]
    assert any("no bad image of kind bloat" in reason for reason in reasons)
    assert any("= 12 labels, and blot, hole have 10 images" in reason for reason in reasons)
    assert {job.wish.set_name for job in made.jobs} == {"weave"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kinds = ["blot"]', "", "reveal and kinds belong together"),
        ("reveal = 0.2\nkinds = [\"blot\"]", 'kinds = ["blot"]', "reveal and kinds belong together"),
        ("reveal = 0.2", "reveal = 1.5", "less than 1"),
        ("seeds = [3, 5]", "protocol = { contaminate = 0.1 }", "keep one"),
    ],
)
def test_what_contradicts_itself_is_refused(old, new, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        recipe_at(tmp_path / "weak.toml", RECIPE.replace(old, new, 1))
