"""A training killed with SIGKILL, several times, ends with the same bits as one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blemish.run import Run

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from killed_training import train  # noqa: E402


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Trainings:
    """Starts the training in child processes, one after the other."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(HERE / "killed_training.py"), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._number()

    def ended(self) -> int:
        """0, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(self._number())

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    found = Trainings(tmp_path)
    yield found
    found.close()


def wait_for_change(path: Path, before: bytes) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if path.exists() and path.read_bytes() != before:
            return
        time.sleep(0.002)
    raise AssertionError("no checkpoint was written")


def test_killed_and_resumed_is_bit_identical(tmp_path: Path, one_thread: None, trainings: Trainings) -> None:
    expected, curve = train(Run(seed=3))
    checkpoint = tmp_path / "checkpoints" / "small.checkpoint"
    for after in (0.0, 0.07, 0.03, 0.001):  # seconds after a checkpoint: at once, and in the middle of epochs
        child = trainings.start()
        wait_for_change(checkpoint, checkpoint.read_bytes() if checkpoint.exists() else b"")
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        assert trainings.ended() == -signal.SIGKILL
    assert not (tmp_path / "done.pt").exists()
    trainings.start()
    assert trainings.ended() == 0
    done = torch.load(tmp_path / "done.pt", weights_only=True)
    assert done["curve"] == curve
    for name, tensor in expected.state_dict().items():
        assert torch.equal(done["net"][name], tensor), name
