"""From a recipe to jobs: one draw for all methods by the job's seed, one training for two test sets."""

import pytest

from blemish.bench.jobs import Job, experiments, open_sets, plan
from blemish.bench.recipe import load_recipe
from blemish.data.protocols import contaminate, label_anomalies
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.errors import ConfigError

HEAD = """
seeds = [3, 5]
backbone = "resnet18"
weights = "random"
"""
METHODS = """
[[methods]]
label = "PatchCore"
method = "patchcore"
options = { fraction = 0.5 }
[[methods]]
label = "RD"
method = "rd"
"""
CLEAN = HEAD + METHODS + '[[data]]\nset = "weave"\n'
PILE = CLEAN + "[protocol]\ncontaminate = 0.2\noverlap = [false, true]\n"
FEW_LABELS = f"""{HEAD}
[[methods]]
label = "Recon"
method = "ckaad"
options = {{ strategy = "recon" }}
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


def recipe_of(folder, text):
    (folder / "mine.toml").write_text(text)
    return load_recipe(folder / "mine.toml")


def test_every_cell_is_an_experiment_of_its_own(tmp_path):
    cells = experiments(recipe_of(tmp_path, CLEAN + 'categories = ["a", "b"]\n'))
    assert len({cell.signature for cell in cells}) == len(cells) == 2 * 2 * 2
    assert [cell.set_name for cell in cells] == ["weave/a"] * 4 + ["weave/b"] * 4
    assert cells[0].configuration["options"]["fraction"] == 0.5
    assert cells[0].configuration["options"]["patch_size"] == 3, "defaults are written out"


def test_a_recipe_s_backbone_is_not_for_what_sees_pixels(tmp_path):
    text = CLEAN.replace('method = "rd"', 'method = "ae"')
    given = {cell.label: cell.configuration["backbone"] for cell in experiments(recipe_of(tmp_path, text))}
    assert given == {"PatchCore": "resnet18", "RD": None}


def test_a_folder_of_masks_for_an_image_is_digested(write_weave, tmp_path):
    root = write_weave({"train/good": 2, "test/good": 1, "test/blot": 1}, masks=True)
    truth = root / "weave/ground_truth/blot"
    before = plan(recipe_of(tmp_path, CLEAN), tmp_path, root)[0][0].experiments[0].data_digest
    (truth / "0").mkdir()
    (truth / "0_mask.png").rename(truth / "0/first.png")
    assert plan(recipe_of(tmp_path, CLEAN), tmp_path, root)[0][0].experiments[0].data_digest == before
    (truth / "0/second.png").write_bytes((root / "weave/test/good/0.png").read_bytes())
    assert plan(recipe_of(tmp_path, CLEAN), tmp_path, root)[0][0].experiments[0].data_digest != before


def test_a_label_or_title_changes_no_signature(tmp_path):
    before, renamed, other = (
        experiments(recipe_of(tmp_path, text))[0].signature
        for text in (CLEAN, "title = 'x'\n" + CLEAN.replace('"PatchCore"', '"uno"'), CLEAN.replace("0.5", "0.25"))
    )
    assert before == renamed != other


def test_a_sweep_is_a_variant_a_value_and_a_category_may_have_options_of_its_own(tmp_path):
    text = CLEAN.replace(
        'method = "rd"',
        'method = "rd"\nsweep = { sigma = [2.0, 4.0], score = ["max", "mean"] }\nby_category = { a = { epochs = 7 } }',
    )
    cells = experiments(recipe_of(tmp_path, text.replace("[3, 5]", "[3]") + 'categories = ["a", "b"]\n'))
    found = [
        (c.label, c.configuration["options"].get("epochs"), c.configuration["options"].get("score")) for c in cells
    ]
    labels = [f"RD sigma={sigma} score={score}" for sigma in ("2.0", "4.0") for score in ("max", "mean")]
    assert [row for row in found if row[0] != "PatchCore"] == [
        (label, epochs, "mean" if "mean" in label else None) for epochs in (7, 200) for label in labels
    ], "an option that came later is left out while it has its default"


def test_a_ratio_of_nothing_is_a_protocol_too(data, tmp_path):
    pile = recipe_of(tmp_path, PILE.replace("0.2", "0.0"))
    few = recipe_of(tmp_path, HEAD + METHODS + '[[data]]\nset = "weave"\nreveal = 0.0\nkinds = ["blot"]\n')
    for recipe, regime in ((pile, "contaminated"), (few, "clean")):
        training, test, planted = open_sets(data / "weave", experiments(recipe)[0].configuration)
        assert (training.regime, len(training.samples), len(planted)) == (regime, 12, 0)
        assert sum(sample.anomalous for sample in test.samples) == 10


def test_an_unknown_option_names_recipe_and_label(tmp_path):
    recipe = recipe_of(tmp_path, CLEAN.replace("fraction", "fractoin"))
    with pytest.raises(ConfigError, match=r"recipe mine, method 'PatchCore': .*'fractoin'.*'fraction'"):
        experiments(recipe)


def test_one_job_judges_both_test_sets(data, tmp_path):
    jobs, _ = plan(recipe_of(tmp_path, PILE), tmp_path, data)
    assert [[cell.title for cell in job.experiments] for job in jobs[:2]] == [
        ["PatchCore on weave, no overlap, seed 3", "PatchCore on weave, overlap, seed 3"],
        ["RD on weave, no overlap, seed 3", "RD on weave, overlap, seed 3"],
    ]
    assert len(jobs) == len({job.key for job in jobs}) == 4
    assert Job.read(jobs[0].write(tmp_path)) == jobs[0]
    training, test = read_training(data / "weave"), open_test_set(data / "weave")
    cells = [cell for job in jobs for cell in job.experiments]
    for cell in cells:
        dealt = contaminate(training, test, 0.2, cell.configuration["seed"])
        planted = {sample.path for sample in dealt.drawn}
        judged = dealt.test if "no overlap" in cell.title else dealt.overlap
        assert open_sets(data / "weave", cell.configuration) == (dealt.training, judged, planted)
    digests = [cell.data_digest for cell in cells]
    assert digests[:2] == digests[2:4], "one draw for all methods"
    assert digests[0] != digests[4], "another seed, another draw"


def test_an_epoch_chosen_on_one_test_set_is_no_model_for_another(data, tmp_path):
    jobs, _ = plan(recipe_of(tmp_path, PILE + 'selection = "best_on_test"\n'), tmp_path, data)
    assert [len(job.experiments) for job in jobs[:3]] == [2, 1, 1], "PatchCore has no epochs to choose from"


def test_every_method_and_seed_has_its_draw_of_labels_and_says_so(data, tmp_path):
    jobs, missing = plan(recipe_of(tmp_path, FEW_LABELS), tmp_path, data)
    cells = [cell for job in jobs for cell in job.experiments]
    names = {"weave", "weave, blot known", "weave, blot + hole known"}
    assert missing == {} and {cell.set_name for cell in cells} == names
    assert len(cells) == len(jobs) == 3 * 2 * 2
    training, test = read_training(data / "weave"), open_test_set(data / "weave")
    digests = {}
    for cell in cells:
        asked = cell.configuration
        digests.setdefault((cell.set_name, asked["seed"]), set()).add(cell.data_digest)
        learned, judged, _ = open_sets(data / "weave", asked)
        if cell.set_name == "weave":
            assert asked["regime"] == "clean", "rows from before there were such protocols still stand"
            assert not {"reveal", "kinds", "contaminate", "overlap"} & set(asked)
            assert (learned, judged) == (training, test)
            continue
        dealt = label_anomalies(training, test, 0.2, asked["kinds"], asked["seed"])
        assert (learned.samples, judged.samples) == (dealt.training.samples, dealt.test.samples)
        assert (asked["regime"], asked["reveal"], len(learned.anomalous)) == ("weak", 0.2, 3)
    assert all(len(same) == 1 for same in digests.values()), "the same for all methods"
    assert all((digests[name, 3] == digests[name, 5]) == (name == "weave") for name in names)


@pytest.mark.parametrize(
    ("text", "what", "reason"),
    [
        (CLEAN.replace('"weave"', '"tiles"'), "tiles", "the data folder holds no tiles"),
        (PILE.replace("0.2", "0.9"), "weave", "is 10 bad ones, and then no bad part is left"),
        (FEW_LABELS.replace('["blot"]', '["bloat"]'), "weave, bloat known", "no bad image of kind bloat"),
        (FEW_LABELS.replace("0.2", "0.5"), "weave, blot + hole known", "= 12 labels, and blot, hole have 10 images"),
    ],
)
def test_what_cannot_be_measured_here_is_missing_with_the_reason(data, tmp_path, text, what, reason):
    jobs, missing = plan(recipe_of(tmp_path, text), tmp_path, data)
    assert reason in missing[what]
    assert all(what not in cell.title for job in jobs for cell in job.experiments)
