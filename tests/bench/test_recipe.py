from __future__ import annotations

from pathlib import Path

import pytest

from blemish.bench.jobs import experiments, plan
from blemish.bench.recipe import load_recipe
from blemish.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = """
seeds = [0, 1]
[[methods]]
label = "one"
method = "patchcore"
options = { fraction = 0.5 }
[[data]]
set = "tiles"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("seeds", "seedz"), ["mine.toml", "'seedz'", "'seeds'"]),
        (SMALL.replace("options", "optoins"), ["methods[0]", "'optoins'", "'options'"]),
        (SMALL + "[protocol]\nselect = 'last'\n", ["protocol", "'select'", "'selection'"]),
        (SMALL.replace('"patchcore"', '"patchcor"'), ["methods[0].method", "'patchcor'", "'patchcore'"]),
        ("metrics = ['image_auroq']\n" + SMALL, ["metrics[0]", "'image_auroc'"]),
        (SMALL.replace('"tiles"', '"/data/tiles"'), ["data[0]", "not a path"]),
        (SMALL.replace('"tiles"', '"../tiles"'), ["data[0]", "not a path"]),
        (SMALL + '[[data]]\nset = "tiles"\n', ["'tiles'", "twice"]),
        ("reference = 'oen'\n" + SMALL, ["'oen'", "'one'"]),
        ("epochs = 3\nsteps = 4\n" + SMALL, ["one length"]),
        (SMALL.replace('set = "tiles"', 'note = "x"'), ["data[0].set: this key is needed"]),
        ("seeds = [", ["is not TOML"]),
        (SMALL + "[protocol]\nselection = 'best'\n", ["protocol.selection", "best_on_test"]),
        (SMALL + "[protocol]\nselection = 'best_on_test'\nfollow = 2\n", ["leave follow out"]),
        (SMALL + "[protocol]\ncontaminate = 1.5\n", ["protocol.contaminate", "1.5"]),
        (SMALL + "[protocol]\ncontaminate = 0.1\nregime = 'clean'\n", ["leave regime out"]),
        (SMALL + "[protocol]\noverlap = [true]\n", ["give contaminate"]),
        (SMALL + "[protocol]\ncontaminate = 0.1\noverlap = [true, true]\n", ["twice"]),
        (SMALL + "reveal = 0.2\n", ["reveal and kinds belong together"]),
        (SMALL + "kinds = ['crack']\n", ["reveal and kinds belong together"]),
        (SMALL + "reveal = 1.5\nkinds = ['crack']\n", ["data[0].reveal", "less than 1"]),
        (SMALL + "reveal = 0.2\nkinds = ['crack']\n[protocol]\ncontaminate = 0.1\n", ["keep one"]),
    ],
)
def test_mistakes_are_named_with_file_and_key(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(tmp_path, text))
    message = str(caught.value)
    assert "mine.toml" in message
    for part in said:
        assert part in message


def test_a_missing_recipe_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        load_recipe(tmp_path / "nowhere.toml")


def test_an_unknown_option_names_recipe_and_label(tmp_path):
    recipe = load_recipe(written(tmp_path, SMALL.replace("fraction", "fractoin")))
    with pytest.raises(ConfigError, match=r"recipe mine, method 'one': .*'fractoin'.*'fraction'"):
        list(experiments(recipe))


def test_methods_to_come_and_missing_sets_are_listed_as_missing(tmp_path):
    text = SMALL + '[[methods]]\nlabel = "later"\nmethod = "padim"\n'
    recipe = load_recipe(written(tmp_path, text))
    jobs, missing = plan(recipe, tmp_path / "results", tmp_path)
    assert jobs == []
    assert missing == {
        "later": "the method padim is not built yet",
        "tiles": "the data folder holds no tiles",
    }


def test_every_cell_is_an_experiment_of_its_own(tmp_path):
    text = SMALL.replace("[[data]]", '[[methods]]\nlabel = "two"\nmethod = "patchcore"\n[[data]]')
    text += 'categories = ["a", "b"]\n'
    found = list(experiments(load_recipe(written(tmp_path, text))))
    assert len({cell.signature for cell in found}) == len(found) == 2 * 2 * 2
    assert [cell.set_name for cell in found] == ["tiles/a"] * 4 + ["tiles/b"] * 4
    assert found[0].configuration["options"]["fraction"] == 0.5
    assert found[1].configuration["options"]["fraction"] == 0.01, "defaults are written out"


def test_a_label_or_title_changes_no_signature(tmp_path):
    before = experiments(load_recipe(written(tmp_path, SMALL)))[0]
    after = experiments(load_recipe(written(tmp_path, "title = 'x'\n" + SMALL.replace('"one"', '"uno"'))))[0]
    assert before.signature == after.signature
    other = experiments(load_recipe(written(tmp_path, SMALL.replace("0.5", "0.25"))))[0]
    assert before.signature != other.signature


def test_shipped_recipes_hold_together():
    for path in ROOT.glob("recipes/**/*.toml"):
        recipe = load_recipe(path)
        assert recipe.title and list(experiments(recipe)), path
