"""Precise BatchNorm: running statistics taken anew with the weights that training has come to.

While a network learns, BatchNorm keeps running means and variances of the last ten batches or so, each seen with the
weights of its own step. A network of many thin layers that still moves fast can be far from what these say: its loss
falls from epoch to epoch, and yet, judging with the running values, it fails at one epoch's end and not at the next.
One more pass over the training images with the weights at rest removes the lottery, and touches no weight.
"""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import update_bn

from blemish.contract import Images, in_batches
from blemish.run import Run


def precise_batchnorm(network: nn.Module, images: Images, batch_size: int, run: Run) -> None:
    """Take the statistics of ``network``'s BatchNorm from one pass over ``images``, every batch alike."""
    order = run.permutation(len(images), "order of settling")
    batches = (batch.images.to(run.device) for batch in in_batches(images, batch_size, order))
    with run.precision.autocast(run.device):
        update_bn(batches, network)
