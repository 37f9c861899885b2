"""The method that CONTRIBUTING.md writes out is registered as it says, and passes what every method has to pass."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

REGISTERS = """
from pathlib import Path
import blemish.methods
from blemish.registry import METHODS, MethodEntry
blemish.methods.__path__.append(str(Path(__file__).parent))
METHODS.update({%s})
"""
"""A pytest plugin: as if the file lay in ``methods/`` and the line in ``registry.py``."""


@pytest.mark.slow
def test_the_worked_example_is_a_method_like_any_other(tmp_path: Path) -> None:
    file, line = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    (tmp_path / "deviation.py").write_text(file)
    (tmp_path / "registers_the_example.py").write_text(REGISTERS % line)
    plugins = ["-p", "registers_the_example", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "tests/contract", "-k", "deviation"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 10


def test_the_walks_name_files_and_what_is_in_them() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| [^|]+ \| (`[^|]+) \|$", text, re.MULTILINE)
    assert len(steps) > 12
    for step in steps:
        path = ROOT / "src" / "blemish"
        for name in re.findall(r"`([^`]+)`", step):
            if "/" in name:
                path = ROOT / "src" / "blemish" / name.replace("NAME", "rd")
                assert path.exists(), f"{name} is named and is not there"
            else:
                assert name.split(".")[-1] in path.read_text(encoding="utf-8"), f"{name} is not in {path.name}"
