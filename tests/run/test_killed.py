"""A training killed with SIGKILL, several times, ends with the same bits as one left alone."""

import multiprocessing
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from blemish.run import Run, epochs, torch_seeded

EPOCHS, IMAGES = 12, 11


def train(run: Run, pause: float = 0.0) -> tuple[nn.Module, list[float]]:
    """A network with BatchNorm and dropout, two optimisers and a schedule; all random things depend on the seed."""
    images = torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch_seeded(run.seed):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 3, 3))
    first = torch.optim.Adam(net[0].parameters(), lr=0.01, betas=(0.5, 0.999))
    second = torch.optim.SGD([*net[1].parameters(), *net[4].parameters()], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(second, EPOCHS)
    state = {"net": net, "first": first, "second": second, "schedule": schedule}
    length = SimpleNamespace(epochs=EPOCHS, steps=None, batch_size=4)
    for epoch in epochs(run, "small", state, length, IMAGES):
        noise = epoch.generator("noise")
        for indices in epoch.batches():
            batch = images[indices]
            noisy = batch + 0.1 * torch.randn(batch.shape, generator=noise)
            loss = (net(noisy) - batch[..., 2:-2, 2:-2]).square().mean()
            net.zero_grad(set_to_none=True)
            loss.backward()
            first.step()
            second.step()
            epoch.log(loss=loss.detach())
            time.sleep(pause)
        schedule.step()
    return net, [means["loss"] for means in run.curves["small"]]


def go_on(folder: Path) -> None:
    """What each process does: take up the training, slowly, and write the result."""
    torch.set_num_threads(1)
    trained, curve = train(Run(seed=3, checkpoint=folder / "checkpoints", resume=True), pause=0.02)
    torch.save({"net": trained.state_dict(), "curve": curve}, folder / "done.pt")


def wait_for_change(path: Path, before: bytes) -> None:
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes() == before:
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected, curve = train(Run(seed=3))
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["blemish.run.loop", "torch._dynamo"])  # imported once, not in each process
    checkpoint = tmp_path / "checkpoints" / "small.checkpoint"
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
    assert done["curve"] == curve
    for name, tensor in expected.state_dict().items():
        assert torch.equal(done["net"][name], tensor), name
