"""A training that learns little at once, for the tests of the loop and of its checkpoints. Not a test."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blemish.run import Run, Silent, epochs


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
    run: Run, length: Length, title: str = "toy", stop: tuple[int, int] | None = None
) -> tuple[nn.Linear, list[list[list[int]]]]:
    """Learns little; gives the network and the batches of each epoch. Ctrl-C in a step of an epoch if asked for."""
    net = nn.Linear(2, 1)
    net.load_state_dict({"weight": torch.tensor([[0.5, -1.0]]), "bias": torch.zeros(1)})
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    seen: list[list[list[int]]] = []
    for epoch in epochs(run, title, {"net": net, "optimiser": optimiser}, length, images=5):
        seen.append([])
        for step, indices in enumerate(epoch.batches()):
            if stop == (epoch.number, step):
                raise KeyboardInterrupt
            seen[-1].append(indices)
            loss = (net(torch.tensor([[float(i), torch.rand(()).item()] for i in indices])) - 1).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            epoch.log(loss=loss.detach(), size=len(indices))
    return net, seen


def same(one: nn.Linear, other: nn.Linear) -> bool:
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def finished(run: Run) -> Path:
    learn(run, Length(epochs=1))
    assert run.checkpoint is not None
    return run.checkpoint / "toy.checkpoint"
