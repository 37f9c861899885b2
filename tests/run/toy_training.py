"""A training that learns little at once, for the tests of the loop and of its checkpoints. Not a test."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blemish.run import Run, Silent, epochs, torch_seeded


@dataclass(frozen=True)
class Length:
    epochs: int = 1
    steps: int | None = None
    batch_size: int = 2


class Notes(Silent):
    """Remembers what was said, and how far each bar went."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.titles: list[str] = []
        self.counts: list[int] = []

    def track(self, items: Iterable[Any], title: str | Callable[[], str], total: int | None = None) -> Iterator[Any]:
        self.counts.append(0)
        for item in items:
            yield item
            self.counts[-1] += 1
            self.titles.append(title if isinstance(title, str) else title())

    def note(self, text: str) -> None:
        self.said.append(text)


def learn(
    run: Run, length: Length, title: str = "toy", stop: tuple[int, int] | None = None, pause: float = 0.0
) -> tuple[nn.Module, list[list[list[int]]]]:
    """A network with BatchNorm and dropout, two optimisers and a schedule, and the batches of each epoch.

    Ctrl-C comes in step ``stop[1]`` of epoch ``stop[0]``; ``pause``: seconds after each step.
    """
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch_seeded(run.seed):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 3, 3))
    first = torch.optim.Adam(net[0].parameters(), lr=0.01, betas=(0.5, 0.999))
    second = torch.optim.SGD([*net[1].parameters(), *net[4].parameters()], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(second, length.epochs)
    state = {"net": net, "first": first, "second": second, "schedule": schedule}
    seen: list[list[list[int]]] = []
    for epoch in epochs(run, title, state, length, len(images)):
        seen.append([])
        noise = epoch.generator("noise")
        for step, indices in enumerate(epoch.batches()):
            if stop == (epoch.number, step):
                raise KeyboardInterrupt
            seen[-1].append(indices)
            batch = images[indices]
            noisy = batch + 0.1 * torch.randn(batch.shape, generator=noise)
            loss = (net(noisy) - batch[..., 2:-2, 2:-2]).square().mean()
            net.zero_grad(set_to_none=True)
            loss.backward()
            first.step()
            second.step()
            epoch.log(loss=loss.detach(), size=len(indices))
            time.sleep(pause)
        schedule.step()
    return net, seen


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def finished(run: Run) -> Path:
    learn(run, Length(epochs=1))
    assert run.checkpoint is not None
    return run.checkpoint / "toy.checkpoint"
