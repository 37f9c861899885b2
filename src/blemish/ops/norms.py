"""BatchNorm's running statistics, taken anew with the weights that training has come to.

While a network learns, BatchNorm keeps running means and variances of the last ten batches or so, each seen with the
weights of its own step. A network of many thin layers that still moves fast can be far from what these say: its loss
falls from epoch to epoch, and yet, judging with the running values, it fails at one epoch's end and not at the next.
One more pass over the training images with the weights at rest removes the lottery, and touches no weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def settled_norms(network: nn.Module) -> Iterator[None]:
    """A block in which all that passes through ``network`` makes up its norms' statistics, every batch alike.

    No gradient is kept. After the block the network is in eval mode.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain mean over batches
    network.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        network.eval()
