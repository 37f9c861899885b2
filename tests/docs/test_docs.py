"""Everything that README and guides tell people to type is typed here, in a folder made up for it.

The folder holds what a reader would have: ``parts/`` with ``good``, ``test`` and masks, ``photos/good``, ``OK`` and
``NG``, ``pile/``, ``new/`` and ``new.png``, ``parts.csv`` (a manifest), and ``parts.blemish``, a model.

Blocks marked ``python`` are one program for each page. Of shell blocks the lines that start with ``blemish`` are run,
unless they take long (LONG) or hold a place to fill in (DATA, MODEL ...): there, command and options must exist.
"""

import glob
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from blemish.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
"""CONTRIBUTING.md's code is a method, which has a test of its own."""

LONG = {"demo", "bench", "serve"}
SLOW = {"README", "from-a-pile-to-a-clean-set", "first-verdict", "bench"}  # pages whose examples take long
SHELL = ("", "console", "bash", "sh", "shell")
BLOCK = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def commands(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        typed = line.strip().removeprefix("$ ")
        if typed.startswith("blemish "):
            yield re.sub(r"\s+#.*$", "", typed)


def part(seed: int, is_bad: bool = False) -> Image.Image:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    weave = 120 + 35 * np.sin(0.8 * rows + seed) * np.cos(0.7 * columns)
    pixels = (weave[..., None] + rng.normal(0, 4, (64, 64, 3))).clip(0, 255).astype(np.uint8)
    if is_bad:
        pixels[20:36, 24:40] = (20, 20, 160)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pages work on a copy of."""
    root = tmp_path_factory.mktemp("docs")

    def save(place: str, count: int, first: int, is_bad: bool = False) -> None:
        (root / place).mkdir(parents=True)
        for i in range(count):
            part(first + i, is_bad).save(root / place / f"{i:03}.png")

    save("parts/good", 12, 0)
    save("parts/test/good", 4, 100)
    save("parts/test/scratch", 3, 200, is_bad=True)
    for place, first in (("photos/good", 0), ("OK", 0), ("pile", 0), ("good", 300), ("new", 400)):
        save(place, 8, first)
    save("NG", 2, 500, is_bad=True)
    part(600, is_bad=True).save(root / "new.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:36, 24:40] = 255
    (root / "parts/ground_truth/scratch").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(mask).save(root / f"parts/ground_truth/scratch/{i:03}_mask.png")
    lines = ["path,label,split,mask,category,kind,group"]
    lines += [f"parts/good/{i:03}.png,normal,train,,,,part{i}" for i in range(12)]
    (root / "parts.csv").write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["fit", str(root / "parts"), "-o", str(root / "parts.blemish"), "-q"])
    assert done.exit_code == 0, done.output
    return root


def words(line: str) -> list[str]:
    """A command line as a shell would split it: what is not in quotes is a pattern for file names."""
    found: list[str] = []
    for word in shlex.split(re.split(r"\s[|>]\s", line)[0], posix=False)[1:]:
        if word[0] in "'\"":
            found.append(word[1:-1])
        elif any(sign in word for sign in "*?["):
            found += sorted(glob.glob(word)) or [word]  # noqa: PTH207 (relative to where the command is typed)
        else:
            found.append(word)
    return found


def check_options(line: str) -> None:
    name, *rest = words(line)
    command: Any = get_command(app).commands.get(name)
    assert command is not None, f"there is no command: {line}"
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    given = {word.partition("=")[0] for word in rest if word.startswith("-")}
    assert given <= known, f"{line}: {sorted(given - known)} is no option of blemish {name}"


def is_runnable(line: str) -> bool:
    has_place = any(re.fullmatch(r"[A-Z]{2,}[\w.]*", word) and not Path(word).exists() for word in words(line))
    return words(line)[0] not in LONG and not has_place and "..." not in line


@pytest.mark.parametrize("page", [page for page in LINKED if page.name != "systems.md"], ids=lambda page: page.name)
def test_prose_is_wrapped(page: Path) -> None:
    """As source code has it, for those who read it there; tables and what scripts write are as wide as they are."""
    prose = re.sub(
        r"<!-- \w+:begin -->.*?<!-- \w+:end -->", "", BLOCK.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL
    )
    long = [line for line in prose.splitlines() if len(line) > 130 and not line.lstrip().startswith(("|", "![", "<"))]
    assert long == []


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW else ()) for page in PAGES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_examples_run(page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    written = [(language, text) for language, text in blocks if language in ("python", *SHELL)]
    if not any(language == "python" or list(commands(text)) for language, text in written):
        return
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    program: dict[str, Any] = {"__name__": "__main__"}
    for language, text in written:
        if language == "python":
            exec(compile(text, f"{page.name}, a python block", "exec"), program)
            continue
        for line in commands(text):
            check_options(line)
            if not is_runnable(line):
                continue
            done = CliRunner().invoke(app, words(line))
            assert done.exit_code in (0, 3), f"{line}\n{done.output}"
            assert done.exit_code == 0 or "--fail-on" in line


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_commands_and_files_in_the_text_exist(page: Path) -> None:
    whole = page.read_text(encoding="utf-8")
    targets = [target for target in LINK.findall(whole) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (page.parent / target).exists()] == []
    text = BLOCK.sub("", whole)
    assert set(re.findall(r"`blemish ([a-z]+)", text)) <= set(get_command(app).commands)
    if page.name not in ("log.md", "CHANGELOG.md"):  # which tell of what was
        files = re.findall(r"`([\w/.-]+/[\w.-]+\.(?:py|toml|md))`", text)
        files = [name for name in files if not re.search(r"deviation\.(py|md)|NAME", name)]
        roots = (ROOT, ROOT / "src" / "blemish")
        assert [name for name in files if not any((root / name).exists() for root in roots)] == []


def test_the_methods_pages_list_their_options_as_they_are() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "method_pages.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
