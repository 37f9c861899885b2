"""The teacher's own architecture once more, trainable and untaught: the student of same-direction distillation.

A frozen backbone cannot serve: its BatchNorm is folded into its convolutions, and its features are rounded.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from blemish.backbones.backbone import FrozenBackbone
from blemish.backbones.networks import blank_network, random_network
from blemish.contract import Backbone, check_cells
from blemish.run import torch_seeded


class Student(nn.Module):
    """A trainable network that takes images as its teacher does and gives maps of the same shapes.

    Its last activations are the teacher's, because its architecture is. Convolutions run under the caller's autocast.
    """

    def __init__(self, teacher: Backbone) -> None:
        """Build the network, without values worth anything: call ``reset``, or load some."""
        super().__init__()
        self._architecture: tuple[str, list[int]] | None = None
        self.normalise: nn.Module = nn.Identity()
        if isinstance(teacher, FrozenBackbone):
            self._architecture = teacher.name, [level.stage for level in teacher.levels]
            self.normalise = copy.deepcopy(teacher.normalise)
            network = blank_network(*self._architecture)
            values = {key: torch.zeros_like(like, device="cpu") for key, like in network.state_dict().items()}
            network.load_state_dict(values, assign=True)
        else:  # not ours: a copy, which takes images in [0, 1] itself
            network = copy.deepcopy(teacher)
        self.network = network.to(memory_format=torch.channels_last).requires_grad_(True)

    def reset(self, seed: int) -> None:
        """Random values fixed by ``seed``, by the architecture's own rule; BatchNorm starts at 1, as torch's."""
        if self._architecture is None:
            with torch_seeded(seed):
                for module in self.network.modules():
                    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                        module.reset_parameters()
            return
        fresh = random_network(*self._architecture, seed)
        for module in fresh.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
        self.network.load_state_dict(fresh.state_dict())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``b c y x`` of ``b 3 h w`` images in [0, 1], shallowest first."""
        maps: list[Tensor] = self.network(self.normalise(images).contiguous(memory_format=torch.channels_last))
        return maps


def build_student(teacher: Backbone, size: tuple[int, int]) -> Student:
    """A student of ``teacher``'s architecture, up to its last level, for images of height and width ``size``.

    Raises:
        ConfigError: the deepest level has a single cell, of which BatchNorm, over one image, would leave nothing.
    """
    check_cells(size, teacher.levels[-1].stride, f"stage {teacher.levels[-1].stage}")
    return Student(teacher)
