"""Statistics of BatchNorm taken anew: plain means over batches, and nothing else about the network changes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from blemish.ops.norms import settled_norms


def network() -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(2)
    built = nn.Sequential(nn.Conv2d(3, 4, 3), first, nn.ReLU(), nn.Conv2d(4, 2, 1), last)
    with torch.no_grad():
        built(10 + torch.randn(8, 3, 9, 9))  # statistics of something else
    return built.eval()


def test_statistics_are_means_over_the_batches_that_pass():
    built = network()
    batches = [torch.randn(4, 3, 9, 9), 2 + torch.randn(3, 3, 9, 9), 3 * torch.randn(1, 3, 9, 9)]
    with settled_norms(built):
        for batch in batches:
            built(batch)
    seen = [built[0](batch).detach().double().numpy() for batch in batches]
    mean = np.mean([one.mean(axis=(0, 2, 3)) for one in seen], axis=0)
    variance = np.mean([one.var(axis=(0, 2, 3), ddof=1) for one in seen], axis=0)
    assert built[1].running_mean.numpy() == pytest.approx(mean, abs=1e-5)
    assert built[1].running_var.numpy() == pytest.approx(variance, rel=1e-5)


def test_weights_momentum_and_mode_are_as_before():
    built = network()
    before = copy.deepcopy(dict(built.named_parameters()))
    with settled_norms(built):
        assert built.training
        assert not built(torch.randn(4, 3, 9, 9)).requires_grad
    assert all(torch.equal(before[name], value) for name, value in built.named_parameters())
    assert [built[1].momentum, built[4].momentum] == [0.3, 0.1]
    assert not any(module.training for module in built.modules())


def test_an_interruption_leaves_the_momentum_as_it_was():
    built = network()
    with pytest.raises(KeyboardInterrupt), settled_norms(built):
        raise KeyboardInterrupt
    assert built[1].momentum == 0.3
