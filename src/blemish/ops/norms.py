"""Statistics over normal images: of BatchNorm once weights are at rest, and of features before anything learns."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from blemish.contract import Images, Teacher, in_batches
from blemish.run import Run

SMALLEST_DEVIATION = 1e-6  # those below it count as 1: such a channel is constant on normal images


def precise_batchnorm(
    network: nn.Module,
    images: Images,
    batch_size: int,
    run: Run,
    order: Sequence[int] | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Take the running statistics of ``network``'s BatchNorm anew, by one pass over ``images`` that counts all alike.

    Those that learning leaves are of the last ten batches or so: a network that still moves fast is far from them. The
    pass is over the images at ``order``, or over all in a random one; with a ``teacher`` the network is given features.
    """
    order = run.permutation(len(images), "order of settling") if order is None else order
    batches = in_batches(images, batch_size, order)
    given = (batch.images.to(run.device) if teacher is None else teacher(batch) for batch in batches)
    with run.precision.autocast(run.device):
        update_bn(([inputs] for inputs in given), network)


class Standardisation(nn.Module):
    """Feature maps less each channel's mean over normal images, by its deviation; as they are before ``learn``.

    ``ridge`` times a level's mean deviation is added to each: channels that hardly vary would count for most.
    """

    def __init__(self, channels: Sequence[int], ridge: float = 0.0) -> None:
        super().__init__()
        self.ridge = ridge
        for level, width in enumerate(channels):
            self.register_buffer(f"mean_{level}", torch.zeros(1, width, 1, 1))
            self.register_buffer(f"deviation_{level}", torch.ones(1, width, 1, 1))

    @torch.no_grad()
    def learn(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Take means and deviations from batches of feature maps ``b c y x``, a level each; at least one batch."""
        sums: list[list[Tensor]] = []
        for features in batches:
            values = [map_.double() for map_ in features]
            moments = [[v[:, 0].numel() * v.new_ones(()), v.sum((0, 2, 3)), v.square().sum((0, 2, 3))] for v in values]
            sums = [[a + b for a, b in zip(*pair)] for pair in zip(sums, moments)] if sums else moments
        for level, (cells, total, squares) in enumerate(sums):
            mean = total / cells
            deviation = (squares / cells - mean.square()).clamp_min(0).sqrt()
            deviation = deviation + self.ridge * deviation.mean()
            deviation = torch.where(deviation < SMALLEST_DEVIATION, 1.0, deviation)
            getattr(self, f"mean_{level}").copy_(mean.view(1, -1, 1, 1))
            getattr(self, f"deviation_{level}").copy_(deviation.view(1, -1, 1, 1))

    @torch.no_grad()
    def level(self) -> None:
        """From now on only divide each level by one number, the root of its mean square: channels keep their ratios."""
        buffers = list(self.buffers())
        for mean, deviation in zip(buffers[::2], buffers[1::2]):
            deviation.fill_((mean.square() + deviation.square()).mean().sqrt())
            mean.zero_()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [
            (map_ - getattr(self, f"mean_{level}")) / getattr(self, f"deviation_{level}")
            for level, map_ in enumerate(features)
        ]
