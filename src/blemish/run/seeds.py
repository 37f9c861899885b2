"""Everything random derives from one seed and the name of its purpose."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose, from a run's seed and the purpose's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """A block in which torch's own random state starts from ``seed``; the caller's state is put back after it.

    For what draws from that state and cannot be told otherwise: the first weights of a layer, dropout.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
