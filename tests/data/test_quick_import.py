"""Reading a set must not wait for torch: the command line prints what it found within half a second."""

from __future__ import annotations

import subprocess
import sys


def test_reading_sets_imports_no_torch():
    code = "import sys, blemish.data, blemish.data.testset; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
