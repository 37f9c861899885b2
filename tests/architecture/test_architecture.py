"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import blemish
from blemish.cli import app
from blemish.registry import METHODS

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src" / "blemish").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 320, 60
"""Lines. The guides are 300 and 40; a test that stops at the guide would be fought, not followed."""

LONG_BY_NATURE: dict[str, int] = {}
"""The command line is a list of commands with their options."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "blemish").as_posix()


def test_imports_point_downwards() -> None:
    """The contracts in pyproject.toml: layers, independent methods, metrics alone, test sets for evaluation only."""
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed")
    program = Path(sys.executable).with_name("lint-imports")
    command = str(program) if program.exists() else shutil.which("lint-imports")
    assert command is not None
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCE, ids=relative)
def test_files_and_functions_are_short_and_quiet(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONG_BY_NATURE.get(relative(path), LONGEST_FILE)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body_from = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - body_from.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines below its docstring"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno} prints: notes go to progress"
        if isinstance(node, ast.Assert):
            pytest.fail(f"line {node.lineno} asserts: python -O removes it; raise an error of blemish.errors")


def test_no_room_for_odds_and_ends() -> None:
    forbidden = {"utils", "util", "helpers", "helper", "base", "common", "misc", "core"}
    assert [relative(path) for path in SOURCE if {path.stem, path.parent.name} & forbidden] == []


@pytest.mark.parametrize("name", blemish.__all__)
def test_public_names_resolve_and_explain_themselves(name: str) -> None:
    found = getattr(blemish, name)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        arguments = [argument for argument in inspect.signature(found).parameters if argument not in ("self", "run")]
        described = inspect.getdoc(found) or ""
        assert all(argument in described for argument in arguments)


def test_all_lists_what_can_be_imported_and_no_more() -> None:
    assert list(blemish.__all__) == sorted(blemish.__all__) == dir(blemish)
    with pytest.raises(AttributeError, match="nonsense"):
        blemish.nonsense  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    text = page.read_text(encoding="utf-8")
    assert len(text.split()) > 80
    assert text.startswith("# ")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_opens_with_its_paper(name: str) -> None:
    """One paper, one file, readable alone: its opening says idea, score and differences from what was published."""
    module = METHODS[name].target.partition(":")[0]
    text = (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    opening = ast.get_docstring(ast.parse(text)) or ""
    assert len(opening.split()) > 60
    assert re.search(r"(?i)\b(19|20)\d\d\b|supplement", opening), "name the paper and its year"


@pytest.mark.parametrize("name", sorted(get_command(app).commands))
def test_every_command_shows_an_example(name: str) -> None:
    command = get_command(app).commands[name]
    assert f"Example: blemish {name}" in (command.help or "")
    for parameter in command.params:
        explained = getattr(parameter, "help", None)
        assert explained, f"blemish {name} {parameter.name} has no help"


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_machine_s_path_and_no_large_file_is_tracked() -> None:
    """Neither in code nor in results: nobody else has these folders."""
    # Written in pieces, so that this file does not name them itself.
    homes = [f"/{place}" + r"/(?!me/|you/)\w+/" for place in ("home", "Users")]
    places = re.compile("|".join(["/" + "work/", "/" + "tmp/env", *homes]))
    for path in tracked_files():
        if not path.is_file():
            continue
        assert path.stat().st_size < 1_000_000, path
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = places.search(text)
        assert found is None, f"{path.relative_to(ROOT)} names {found and found.group()}"
