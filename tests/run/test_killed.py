"""A training killed with SIGKILL, several times, ends with the same bits as one left alone."""

import multiprocessing
import signal
import time
from pathlib import Path

import pytest
import torch
from toy_training import Length, learn

from blemish.run import Run


def go_on(folder: Path) -> None:
    """What each process does: take up the training, slowly, and write the result."""
    torch.set_num_threads(1)
    run = Run(seed=3, checkpoint=folder / "checkpoints", resume=True)
    trained, _ = learn(run, Length(epochs=12), pause=0.02)
    torch.save({"net": trained.state_dict(), "curve": run.curves["toy"]}, folder / "done.pt")


def wait_for_change(path: Path, before: bytes) -> None:
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes() == before:
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Run(seed=3)
    expected, _ = learn(run, Length(epochs=12))
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["blemish.run.loop", "torch._dynamo"])  # imported once, not in each process
    checkpoint = tmp_path / "checkpoints" / "toy.checkpoint"
    for after in (0.0, 0.07, 0.03, 0.001):  # seconds after a checkpoint: at once, and in the middle of epochs
        process = context.Process(target=go_on, args=(tmp_path,))
        process.start()
        wait_for_change(checkpoint, checkpoint.read_bytes() if checkpoint.exists() else b"")
        time.sleep(after)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "done.pt").exists()
    last = context.Process(target=go_on, args=(tmp_path,))
    last.start()
    last.join()
    assert last.exitcode == 0
    done = torch.load(tmp_path / "done.pt", weights_only=True)
    assert done["curve"] == run.curves["toy"]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(done["net"][name], tensor), name
