"""What tests of methods that learn share: a short training, and what its steps were given and did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from blemish.contract import Backbone, Batch, Method, TrainingImages
from blemish.registry import METHODS, make_config, method_class
from blemish.run import Precision, Run


@pytest.fixture
def learned(tiny_backbone, tiny_images, tiny_teacher) -> Callable[..., Method]:
    """``learned(name, settings, count, size, run, ...)``: a method as ``fit`` leaves it; ``watch(method, epoch)``."""

    def learn(
        name,
        settings=None,
        count=8,
        size=(64, 64),
        run=None,
        backbone=None,
        layers=(2, 3),
        teacher=None,
        watch=None,
        images=None,
        bad=None,
        regime=None,
    ):
        backbone = tiny_backbone(layers) if backbone is None else backbone
        cls = method_class(name)
        short = {"steps": 2, "batch_size": 4} if hasattr(cls.Config(), "steps") else {}
        method = cls(backbone, size, make_config(cls, {"layers": layers, **short, **(settings or {})}))
        images = tiny_images(count, size) if images is None else images
        bad = tiny_images(0, size) if bad is None else bad
        training = TrainingImages(images, bad, regime or METHODS[name].regime)
        fp32 = Precision(torch.float32, channels_last=True, reason="test")
        run = run or Run(precision=fp32)
        if watch is not None:
            run = replace(run, on_epoch=lambda number, _: watch(method, number))
        method.fit(training, teacher or tiny_teacher(backbone), run)
        return method.eval()

    return learn


@pytest.fixture
def updates(monkeypatch) -> list[SimpleNamespace]:
    """What each update of an Adam was made of: its ``rate``, its ``betas`` and the ``gradients``, in order."""
    seen = []
    original = torch.optim.Adam.step

    def step(optimiser, *given, **named):
        (group,) = optimiser.param_groups
        gradients = [parameter.grad.clone() for parameter in group["params"]]
        seen.append(SimpleNamespace(rate=group["lr"], betas=tuple(group["betas"]), gradients=gradients))
        return original(optimiser, *given, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return seen


class Listener:
    """A teacher that remembers what it was asked."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.clean: list[Batch] = []
        self.noisy: list[Tensor] = []

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        (self.clean if isinstance(given, Batch) else self.noisy).append(given)
        return self.backbone(given.images if isinstance(given, Batch) else given)


@pytest.fixture
def listener(tiny_backbone) -> Listener:
    """The tiny backbone as a teacher that remembers: batches in ``clean``, bare images in ``noisy``."""
    return Listener(tiny_backbone())
