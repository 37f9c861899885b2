"""The rules of the house that a machine can check."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import blemish
from blemish.backbones.catalogue import BACKBONES
from blemish.cli import app, options
from blemish.contract import Regime
from blemish.data.preprocessing import ResizeMode
from blemish.inspection.calibration import Wanted
from blemish.registry import DEFAULT_METHOD, METHODS, method_class
from blemish.run import PrecisionName
from blemish.training.evaluate import At

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "blemish"
SOURCE = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in SOURCE.items()}
NODES = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]

BUDGET = {
    "the redesign": 11_998,
    "defaults that find the defects": 1_015,
    "everything that broke": 1_270,
    "one file that runs anywhere": 2_205,
    "the station": 3_279,
    "the station's page": 560,
    "on a graphics card": 222,
    "exported files, faster and without SciPy": 155,
    "systems the papers compare with, part one": 785,
    "teachers that learn, and CFA": 654,
    "flows": 609,
    "part one, students and memories": 751,
    "systems that learn from pixels: adversarial, energy, self-made labels": 760,
    "made-up defects and weak heads": 761,
    "reconstruction, first half, and AA-BiGAN": 841,
    "sources that fail, engines that tell": 40,
    "a stranger with several models": 42,
    "read by three more, twice": 232,
    "large images in portions": 10,
    "what painted defects share is found once": 20,
    "read by three more, a third time": 115,
    "read by two against the issues": 79,
    "grey cameras": 12,
    "what a newcomer found": 42,
    "two scales, and links to nothing": 169,
    "engines and precision for a budget, DMAD, and what reviews found": 669,
}
"""Lines that ``src`` may have, by what was built: whatever is added states its own share."""

TEST_BUDGET = 22445
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

GENERAL = ("bench/", "cli/", "data/", "inspection/", "report/", "run/", "training/")
"""Folders that know no method and no backbone by name."""


@pytest.mark.parametrize(("folder", "budget"), [(PACKAGE, sum(BUDGET.values())), (ROOT / "tests", TEST_BUDGET)])
def test_source_and_tests_stay_within_their_budget(folder: Path, budget: int) -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")) <= budget


def test_files_and_functions_are_short() -> None:
    """A function is counted without its docstring."""
    long = [name for name, text in SOURCE.items() if len(text.splitlines()) > LONGEST_FILE]
    functions = [(name, node) for name, node in NODES if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for name, node in functions:
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        if (node.end_lineno or 0) - first.lineno >= LONGEST_FUNCTION:
            long.append(f"{name}: {node.name}")
    assert long == []


def test_nothing_prints_and_nothing_asserts() -> None:
    """Notes go to progress; ``python -O`` removes asserts, so errors are raised."""
    asserts = [f"{name}:{node.lineno}" for name, node in NODES if isinstance(node, ast.Assert)]
    calls = [(name, node) for name, node in NODES if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert asserts + [f"{name}:{node.lineno}" for name, node in calls if node.func.id == "print"] == []


def test_no_room_for_odds_and_ends() -> None:
    forbidden = {"utils", "util", "helpers", "helper", "base", "common", "misc", "core"}
    assert [name for name in SOURCE if {Path(name).stem, Path(name).parent.name} & forbidden] == []


def test_imports_point_downwards() -> None:
    """The contracts in pyproject.toml: layers, independent methods, metrics alone, test sets for evaluation only."""
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command as main; main()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_import_goes_round_in_a_circle() -> None:
    """Also not one for type hints alone, nor one inside a function."""
    found = pytest.importorskip("grimp").build_graph("blemish", cache_dir=None)
    graph = {module: found.find_modules_directly_imported_by(module) for module in found.modules}
    assert len(graph) == len(SOURCE) and "blemish.run.run" in graph["blemish.contract"]
    TopologicalSorter(graph).prepare()  # a CycleError names the modules of a circle
    with pytest.raises(CycleError):
        TopologicalSorter({**graph, "blemish.errors": {"blemish.cli"}}).prepare()


def test_general_layers_know_no_method_and_no_backbone_by_name() -> None:
    """Only the registry and the catalogue do, and the method itself: defaults are read from there."""
    names = "|".join([*METHODS, *BACKBONES, r"resnet\d*", r"efficientnet\w*", r"wide_resnet\w*"])
    named = re.compile(rf"(?<![\w.-])({names})(?!\w)")
    assert named.search("use -m softpatch")
    general = [(name, node) for name, node in NODES if name.startswith(GENERAL)]
    docstrings = {id(node.value) for _, node in general if isinstance(node, ast.Expr)}  # may name what they like
    constants = [
        (name, node) for name, node in general if isinstance(node, ast.Constant) and id(node) not in docstrings
    ]
    assert [f"{name}:{node.lineno} {node.value!r}" for name, node in constants if named.search(str(node.value))] == []


def test_words_that_options_may_be_are_those_of_the_library() -> None:
    ours = (options.Precision, options.Resize, options.Calibration, options.Resolution)
    theirs = (PrecisionName, ResizeMode, Wanted, At)
    assert [set(get_args(words)) for words in ours] == [set(get_args(words)) for words in theirs]


def test_every_regime_has_a_default_method_that_serves_it() -> None:
    assert set(DEFAULT_METHOD) == set(get_args(Regime))
    assert all(regime in method_class(name).regimes for regime, name in DEFAULT_METHOD.items())


def test_fit_reaches_the_first_gradient_in_six_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who follows a batch from ``blemish.fit`` goes through no more functions of ours than that."""
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    frames: list[str] = []

    def backward(*_: object, **__: object) -> None:
        stack = inspect.stack()[1:]
        frames.extend(frame.function for frame in stack if Path(frame.filename).is_relative_to(PACKAGE))
        raise blemish.BlemishError("seen")

    monkeypatch.setattr("torch.Tensor.backward", backward)
    settings = {"method": "rd", "backbone": "test_resnet", "weights": "random", "size": 64, "calibration": "none"}
    with pytest.raises(blemish.BlemishError, match="seen"):
        blemish.fit(tmp_path, **settings)
    assert frames[-1] == "fit"
    assert len(frames) <= 6, frames


@pytest.mark.parametrize("name", blemish.__all__)
def test_public_names_resolve_and_explain_themselves(name: str) -> None:
    public = getattr(blemish, name)
    assert inspect.getdoc(public)
    if inspect.isfunction(public):
        described = inspect.getdoc(public) + " run" + inspect.getdoc(blemish.FitSettings) * (name == "fit")
        assert all(argument in described for argument in inspect.signature(public).parameters)


def test_all_lists_what_can_be_imported_and_no_more() -> None:
    assert list(blemish.__all__) == sorted(blemish.__all__) == dir(blemish)
    with pytest.raises(AttributeError, match="nonsense"):
        blemish.nonsense  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_and_opens_with_its_paper(name: str) -> None:
    """One paper, one file, readable alone: its opening says idea, score and differences from what was published."""
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# ") and len(page.split()) > 80
    module = METHODS[name].target.partition(":")[0]
    opening = ast.get_docstring(TREES[module.removeprefix("blemish.").replace(".", "/") + ".py"]) or ""
    assert len(opening.split()) > 60
    assert re.search(r"(?i)\b(19|20)\d\d\b|supplement", opening), "name the paper and its year"


@pytest.mark.parametrize("name", sorted(get_command(app).commands))
def test_every_command_shows_an_example(name: str) -> None:
    command = get_command(app).commands[name]
    assert f"Example: blemish {name}" in (command.help or "")
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


def test_no_machine_s_path_and_no_large_file_is_tracked() -> None:
    """Neither in code nor in results: nobody else has these folders."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Written in pieces, so that this file does not name them itself.
    homes = [f"/{home}" + r"/(?!me/|you/)\w+/" for home in ("home", "Users")]
    paths = re.compile("|".join(["/" + "work/", "/" + "tmp/env", *homes]))
    for path in (ROOT / name for name in listed.split("\0") if name):
        if not path.is_file():
            continue
        assert path.stat().st_size < 1_000_000, path
        named = paths.search(path.read_bytes().decode("utf-8", errors="ignore"))
        assert named is None, f"{path.relative_to(ROOT)} names {named and named.group()}"


def test_no_two_test_files_have_one_name() -> None:
    """Pytest collects by base name, and stops where two are alike."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
