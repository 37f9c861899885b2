"""Precise BatchNorm, plain means over batches, and standardised features."""

import copy

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from blemish.contract import Batch
from blemish.ops.norms import Standardisation, precise_batchnorm
from blemish.run import Run


class Drawn:
    def __init__(self, count):
        self.images = 2 + torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(1))
        self.asked = []

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        self.asked.append(list(indices))
        return Batch(self.images[list(indices)], tuple(map(str, indices)))


def test_statistics_are_means_over_batches_and_weights_and_momentum_stay():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU())
    with torch.no_grad():
        network(10 + torch.randn(8, 3, 9, 9))  # statistics of something else
    network.eval()
    before, images = copy.deepcopy(dict(network.named_parameters())), Drawn(7)
    precise_batchnorm(network, images, 3, Run())
    assert sorted(i for indices in images.asked for i in indices) == list(range(7))
    assert list(map(len, images.asked)) == [3, 3, 1]
    seen = [network[0](images.images[indices]).detach().double().numpy() for indices in images.asked]
    mean = np.mean([maps.mean(axis=(0, 2, 3)) for maps in seen], axis=0)
    variance = np.mean([maps.var(axis=(0, 2, 3), ddof=1) for maps in seen], axis=0)
    assert network[1].running_mean.numpy() == pytest.approx(mean, abs=1e-5)
    assert network[1].running_var.numpy() == pytest.approx(variance, rel=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    assert network[1].momentum == 0.3 and not network.training


def test_features_are_standardised_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    maps = rng.normal(3, (1, 4, 0.1), (6, 5, 7, 3)).astype(np.float32)
    maps[..., 2] = 2.5  # a channel that never moves
    scale = Standardisation([3])
    tensor = torch.from_numpy(maps).permute(0, 3, 1, 2)
    torch.testing.assert_close(scale([tensor])[0], tensor)
    scale.learn([[part] for part in tensor.split([4, 2])])
    expected = StandardScaler().fit_transform(maps.reshape(-1, 3).astype(np.float64)).reshape(maps.shape)
    np.testing.assert_allclose(scale([tensor])[0].permute(0, 2, 3, 1).numpy(), expected, atol=1e-4)


def test_levelled_features_keep_their_ratios_and_have_a_mean_square_of_one():
    maps = [torch.randn(3, 4, 6, 5) * torch.tensor([1.0, 2.0, 5.0, 0.1])[:, None, None] + 3, torch.randn(3, 2, 2, 2)]
    scale = Standardisation([4, 2])
    scale.learn([maps])
    scale.level()
    for map_, scaled in zip(maps, scale(maps)):
        np.testing.assert_allclose(
            scaled.numpy(), map_.numpy() / np.sqrt((map_.double().numpy() ** 2).mean()), rtol=1e-5
        )
