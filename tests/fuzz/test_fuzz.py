"""A few thousand changed inputs of every kind; ``BLEMISH_FUZZ=100`` tries a hundred times as many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

INPUTS = {"images": 3000, "models": 60, "manifests": 1000, "recipes": 60, "checkpoints": 400}
TIMES = int(os.environ.get("BLEMISH_FUZZ", "1"))


@pytest.mark.slow
@pytest.mark.timeout(300 * TIMES)
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and processor time are set as Linux has them")
def test_whatever_is_read_is_taken_or_refused_in_words_within_memory_and_time() -> None:
    asked = [word for name, inputs in INPUTS.items() for word in (name, str(inputs * TIMES))]
    command = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), *asked]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = {name: counts for line in done.stdout.splitlines() for name, counts in json.loads(line).items()}
    assert {name: counts["wrong"] for name, counts in found.items()} == {name: {} for name in INPUTS}
    for name, counts in found.items():
        assert 0 < counts["taken"] < counts["inputs"] == INPUTS[name] * TIMES, "some are taken, some refused"
