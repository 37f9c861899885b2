"""Random numbers where they are used: large fields of noise are not drawn on the CPU and copied at every step."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normals(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers on ``device``, which ``generator`` fixes: it draws them or, elsewhere, gives a seed."""
    if device.type != generator.device.type:
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, device=device)
