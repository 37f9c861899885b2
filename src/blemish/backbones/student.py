"""The teacher's own architecture once more, trainable and untaught: the student of same-direction distillation.

A frozen backbone cannot serve: its BatchNorm is folded into its convolutions, and its features are rounded.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from blemish.backbones.backbone import TimmBackbone
from blemish.backbones.timm import choose_features, random_network, unfilled_network
from blemish.contract import Backbone, check_cells
from blemish.run import torch_seeded


class Student(nn.Module):
    """A trainable network that takes images as its teacher does and gives maps of the same shapes.

    Its last activations are the teacher's, because its architecture is. Convolutions run under the caller's autocast.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, teacher: TimmBackbone) -> None:
        """Build the network, without values worth anything: call ``reset``, or load some."""
        super().__init__()
        self._name, self._stages = teacher.name, teacher.stages
        features = choose_features(teacher.name, teacher.stages)
        network = unfilled_network(teacher.name, features)
        if len(list(network.buffers())) + len(list(network.parameters())) > len(network.state_dict()):
            network = random_network(teacher.name, features, seed=0)  # computes tables that it does not store
        else:
            network = network.to_empty(device="cpu")
            for tensor in network.state_dict().values():
                tensor.zero_()
        self.network = network.to(memory_format=torch.channels_last).requires_grad_(True)
        self._channels_come_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        self.register_buffer("_mean", torch.tensor(teacher.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(teacher.std).view(1, 3, 1, 1), persistent=False)

    def reset(self, seed: int) -> None:
        """Random values fixed by ``seed``, by timm's rule for the architecture; BatchNorm starts at 1, as torch's."""
        fresh = random_network(self._name, choose_features(self._name, self._stages), seed)
        for module in fresh.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
        self.network.load_state_dict(fresh.state_dict())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``b c y x`` of ``b 3 h w`` images in [0, 1], shallowest first."""
        normalised = ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = self.network(normalised)
        return [map_.permute(0, 3, 1, 2) for map_ in maps] if self._channels_come_last else maps


class CopiedStudent(nn.Module):
    """The student of a backbone that is not timm's: a copy of it, trainable and with fresh values."""

    def __init__(self, teacher: Backbone) -> None:
        super().__init__()
        self.network = copy.deepcopy(teacher).requires_grad_(True)

    def reset(self, seed: int) -> None:
        """Random values fixed by ``seed``: what each layer's own ``reset_parameters`` draws."""
        with torch_seeded(seed):
            for module in self.network.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                    module.reset_parameters()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``b c y x`` of ``b 3 h w`` images in [0, 1], shallowest first."""
        found: list[Tensor] = self.network(images)
        return found


def build_student(teacher: Backbone, size: tuple[int, int]) -> Student | CopiedStudent:
    """A student of ``teacher``'s architecture, up to its last level.

    Args:
        teacher: the backbone.
        size: height and width of the images.

    Raises:
        ConfigError: the deepest level has a single cell, of which BatchNorm, over one image, would leave nothing.
    """
    check_cells(size, teacher.levels[-1].stride, f"stage {teacher.levels[-1].stage}")
    return Student(teacher) if isinstance(teacher, TimmBackbone) else CopiedStudent(teacher)
