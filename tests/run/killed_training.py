"""A small training that the tests run in a process of its own, to kill it. Not a test."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from blemish.run import Run, epochs, set_threads, torch_seeded

EPOCHS = 12
IMAGES = 11


def train(run: Run, count: int = EPOCHS, pause: float = 0.0) -> tuple[nn.Module, list[float]]:
    """A network with BatchNorm and dropout, two optimisers and a schedule; all random things depend on the seed."""
    images = torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch_seeded(run.seed):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 3, 3))
    first = torch.optim.Adam(net[0].parameters(), lr=0.01, betas=(0.5, 0.999))
    second = torch.optim.SGD([*net[1].parameters(), *net[4].parameters()], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(second, count)
    keep = {"net": net, "first": first, "second": second, "schedule": schedule}
    length = SimpleNamespace(epochs=count, steps=None, batch_size=4)
    for epoch in epochs(run, "small", keep, length, IMAGES):
        noise = epoch.generator("noise")
        for indices in epoch.batches():
            batch = images[indices]
            noisy = batch + 0.1 * torch.randn(batch.shape, generator=noise)
            loss = (net(noisy) - batch[..., 2:-2, 2:-2]).square().mean()
            for optimiser in (first, second):
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            for optimiser in (first, second):
                optimiser.step()
            epoch.log(loss=loss.detach())
            time.sleep(pause)
        schedule.step()
    return net, [means["loss"] for means in run.curves["small"]]


def main(folder: Path) -> None:
    """For each line of standard input, train in a child process: its number and then how it ended are printed.

    Children are forked from here, because importing torch anew for each would take longer than the training.
    """
    set_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports much: once, not in every child
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            trained, curve = train(Run(seed=3, checkpoint=folder / "checkpoints", resume=True), pause=0.02)
            torch.save({"net": trained.state_dict(), "curve": curve}, folder / "done.pt")
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
