from pathlib import Path

import pytest

from blemish.bench.jobs import experiments
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
PROTOCOL = SMALL + "[protocol]\n"


def recipe_of(folder: Path, text: str):
    (folder / "mine.toml").write_text(text)
    return load_recipe(folder / "mine.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("seeds", "seedz"), ["'seedz'", "'seeds'"]),
        (SMALL.replace("[0, 1]", "[0, -1]"), ["seeds[1]", "greater than or equal to 0"]),
        (SMALL.replace("options", "optoins"), ["methods[0]", "'optoins'", "'options'"]),
        (PROTOCOL + "select = 'last'", ["protocol", "'select'", "'selection'"]),
        (
            SMALL.replace('"patchcore"', '"patchcor"'),
            [".toml: methods[0].method: there is no method 'patchcor': did you"],
        ),
        ("metrics = ['image_auroq']" + SMALL, ["metrics[0]", "'image_auroc'"]),
        (SMALL.replace('"tiles"', '"/data/tiles"'), ["data[0]", "not a path"]),
        (SMALL.replace('"tiles"', '"../tiles"'), ["data[0]", "not a path"]),
        (SMALL + '[[data]]\nset = "tiles"', ["'tiles'", "twice"]),
        ("reference = 'oen'" + SMALL, ["'oen'", "'one'"]),
        ("epochs = 3\nsteps = 4" + SMALL, ["one length"]),
        (SMALL.replace('set = "tiles"', 'note = "x"'), ["data[0].set: this key is needed"]),
        (SMALL + "kinds = []\n[[methods]]\nlabel = 'x'\nmethod = 'rd'\nsweep = { dim = [] }", ["methods[1].sweep.dim"]),
        (SMALL.replace("[[data]]", "by_category = { tlies = {} }\n[[data]]"), ["by_category names 'tlies'"]),
        ("metrics = ['aupro_per_image']" + SMALL, ["per_image_pro = true"]),
        ("seeds = [", ["is not TOML"]),
        ("seeds = " + "[" * 20_000 + "]" * 20_000, ["is not TOML"]),
        ("seeds = " + "9" * 5_000, ["is not TOML"]),
        ('name = "../../x"' + SMALL, ["name", "not a path"]),
        ("name = 'C:x'" + SMALL, ["name", "not a path"]),
        ("name = '..'" + SMALL, ["name", "not a path"]),
        ('name = ""' + SMALL, ["name", "not a path"]),
        (PROTOCOL + "selection = 'best'", ["protocol.selection", "best_on_test"]),
        (PROTOCOL + "selection = 'best_on_test'\nfollow = 2", ["leave follow out"]),
        (PROTOCOL + "contaminate = 1.5", ["protocol.contaminate", "1.5"]),
        (PROTOCOL + "contaminate = 0.1\nregime = 'clean'", ["leave regime out"]),
        (PROTOCOL + "overlap = [true]", ["give contaminate"]),
        (PROTOCOL + "contaminate = 0.1\noverlap = [true, true]", ["twice"]),
        (SMALL + "reveal = 0.2", ["reveal and kinds belong together"]),
        (SMALL + "kinds = ['crack']", ["reveal and kinds belong together"]),
        (SMALL + "reveal = 1.5\nkinds = ['crack']", ["data[0].reveal", "less than 1"]),
        (SMALL + "reveal = 0.2\nkinds = ['crack']\n[protocol]\ncontaminate = 0.1", ["keep one"]),
    ],
)
def test_mistakes_are_named_with_file_and_key(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, text)
    for part in ["mine.toml", *said]:
        assert part in str(caught.value)
    assert "Tuple should have" not in str(caught.value)  # of what holds the mistake


def test_a_missing_recipe_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        load_recipe(tmp_path / "nowhere.toml")


def test_shipped_recipes_hold_together():
    for path in ROOT.glob("recipes/**/*.toml"):
        recipe = load_recipe(path)
        assert recipe.title and experiments(recipe), path
