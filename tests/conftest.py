"""What every area's tests may use: a tiny seeded backbone, images made on the spot, a teacher."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.backbones.weights import digest_of
from blemish.contract import Backbone, Batch, Level
from blemish.run import Precision

# A runner in the background (nohup, &) ignores these, and so would the processes that tests start and stop.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# The same examples in every run: the check must not depend on luck.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


class TinyBackbone(Backbone):
    """Two to four convolutions with fixed random weights: features that cost nothing and still see texture."""

    def __init__(self, layers: Sequence[int] = (2, 3), width: int = 8, signed: bool = True, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.signed = signed
        self.convolutions = nn.ModuleList()
        levels = []
        for order, stage in enumerate(layers):
            level = Level(stage=stage, channels=width * 2**order, stride=2 ** (stage + 1), signed=signed)
            convolution = nn.Conv2d(3, level.channels, 3, stride=2, padding=1)
            for weights in convolution.parameters():
                weights.data.normal_(std=0.5, generator=generator)
            self.convolutions.append(convolution)
            levels.append(level)
        self.name, self.levels, self.dense = "tiny", tuple(levels), True
        self.precision = Precision(torch.float32, channels_last=True, reason="test")
        self.digest = digest_of(self.state_dict())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for level, convolution in zip(self.levels, self.convolutions):
            pooled = F.avg_pool2d(images - 0.5, level.stride // 2, ceil_mode=True, count_include_pad=False)
            found = convolution(pooled)
            features.append((found if self.signed else found.relu()).bfloat16().float())
        return features

    def spec(self) -> dict[str, Any]:
        return {"name": self.name}


class TinyImages:
    """Images of one woven texture, each with its own noise: implements ``blemish.contract.Images``."""

    def __init__(self, count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.arange(size[0])[:, None] * 0.4
        columns = torch.arange(size[1])[None] * 0.3
        weave = 0.5 + 0.2 * torch.sin(rows) * torch.cos(columns)
        noise = 0.05 * torch.randn(count, 3, *size, generator=generator)
        self.images = (weave + noise).clamp(0, 1)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    @property
    def parts(self) -> Sequence[int]:
        return range(len(self))

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        return Batch(self.images[chosen], tuple(f"{self.seed}/{i}" for i in chosen))


@pytest.fixture(autouse=True, scope="session")
def small_by_default() -> Iterator[None]:
    """The default profile is that of an installation without extras, whatever is installed; few defects are painted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blemish.training.profiles.DEFAULT_PROFILE", "fast")
        patch.setattr("blemish.training.fit.PAINTED_DEFECTS", 12)
        yield


@pytest.fixture(autouse=True, scope="session")
def fp32_unless_asked() -> Iterator[None]:
    """Automatic precision is fp32 on every processor, so that figures agree; tests of bf16 ask for it by name.

    Processes that a test starts choose for themselves: where figures are compared, they are told fp32.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blemish.run.device.has_bf16_units", lambda device: False)
        yield


@pytest.fixture
def tiny_backbone() -> Callable[..., TinyBackbone]:
    """``tiny_backbone(layers=(2, 3), width=8, signed=True, seed=0)``: width doubles with each layer."""
    return TinyBackbone


@pytest.fixture
def tiny_images() -> Callable[..., TinyImages]:
    """``tiny_images(count, size=(64, 64), seed=0)``; the pixels are in ``.images``."""
    return TinyImages


@pytest.fixture
def tiny_teacher() -> Callable[[Backbone], Callable[[Batch | Tensor], list[Tensor]]]:
    """``tiny_teacher(backbone)`` computes features, as ``blemish.contract.Teacher`` does."""

    def teacher_of(backbone: Backbone) -> Callable[[Batch | Tensor], list[Tensor]]:
        def teach(given: Batch | Tensor) -> list[Tensor]:
            with torch.no_grad():
                return backbone(given.images if isinstance(given, Batch) else given)

        return teach

    return teacher_of


@pytest.fixture
def planted() -> Callable[[Tensor], Tensor]:
    """``planted(images)``: copies with a dark blot at rows 20 to 32 and columns 28 to 40."""

    def plant(images: Tensor) -> Tensor:
        images = images.clone()
        images[:, :, 20:32, 28:40] = 0.0
        return images

    return plant


@pytest.fixture
def divergence_by_numpy() -> Callable[..., float]:
    """``divergence_by_numpy(x, y, blur)``: S(x, y) of two clouds ``n d`` and ``m d``, by a solver of our own."""

    def entropic_cost(x: np.ndarray, y: np.ndarray, epsilon: float) -> float:
        """OT with entropy relative to the product measure, by plain alternating updates in the log domain."""
        costs = 0.5 * ((x[:, None] - y[None]) ** 2).sum(axis=-1)
        f, g = np.zeros(len(x)), np.zeros(len(y))
        for _ in range(1000):
            f = -epsilon * log_mean_exp((g[None] - costs) / epsilon, axis=1)
            g = -epsilon * log_mean_exp((f[:, None] - costs) / epsilon, axis=0)
        plan = np.exp((f[:, None] + g[None] - costs) / epsilon) / (len(x) * len(y))
        assert plan.sum() == pytest.approx(1)
        entropy = (plan * np.log(np.maximum(plan, 1e-300) * len(x) * len(y))).sum()
        return float((plan * costs).sum() + epsilon * entropy)

    def log_mean_exp(values: np.ndarray, axis: int) -> np.ndarray:
        highest = values.max(axis=axis, keepdims=True)
        return np.log(np.exp(values - highest).mean(axis=axis)) + highest.squeeze(axis)

    def divergence(x: np.ndarray, y: np.ndarray, blur: float) -> float:
        across, own_x, own_y = (entropic_cost(p, q, blur**2) for p, q in ((x, y), (x, x), (y, y)))
        return across - own_x / 2 - own_y / 2

    return divergence


def pytest_runtest_setup() -> None:
    """torch's table of ONNX operators is made once: each export takes most of a second for it, and none changes it."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is not None and not hasattr(module, "made_once"):
        module.made_once = functools.cache(module.ONNXRegistry.from_torchlib)
        module.ONNXRegistry.from_torchlib = staticmethod(module.made_once)
