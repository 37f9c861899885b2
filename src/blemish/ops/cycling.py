"""Batches of few images beside many: the few come round again and again."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def passes(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches without end, of ``min(size, count)`` indices: one pass after the other, each shuffled anew."""
    left: list[int] = []
    while True:
        while len(left) < min(size, count):
            left += torch.randperm(count, generator=generator).tolist()
        yield left[: min(size, count)]
        left = left[min(size, count) :]
