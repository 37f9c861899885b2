"""What tests of methods that learn share: a short training, and what its steps were given and did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from blemish.contract import Backbone, Batch, Method, TrainingImages
from blemish.registry import METHODS, make_config, method_class
from blemish.run import Run


@pytest.fixture
def learned(tiny_backbone, tiny_images, tiny_teacher) -> Callable[..., Method]:
    """``learned(name, settings, count, ...)``: a method as ``fit`` leaves it, with its ``curve``."""

    def learn(name, settings=None, count=8, size=(64, 64), run=None, layers=(2, 3), watch=None, **given):
        backbone = given.get("backbone") or tiny_backbone(layers)
        cls = method_class(name)
        short = {"steps": 2, "batch_size": 4} if hasattr(cls.Config(), "steps") else {}
        short |= {} if cls.on_pixels else {"layers": layers}
        method = cls(backbone, size, make_config(cls, {**short, **(settings or {})}))
        images, bad = given.get("images") or tiny_images(count, size), given.get("bad") or tiny_images(0, size)
        run = run or Run()
        if watch is not None:
            run = replace(run, on_epoch=lambda number, _: watch(method, number))
        training = TrainingImages(images, bad, METHODS[name].regime)
        method.fit(training, given.get("teacher") or tiny_teacher(backbone), run)
        method.curve = run.curves.get(name)
        return method

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


@pytest.fixture
def enlarged() -> Callable[[NDArray], NDArray]:
    """``enlarged(scores)``: maps of 64 x 64 pixels from scores of 8 x 8 patches, smoothed by SciPy."""

    def enlarge(scores):
        coarse = torch.from_numpy(scores).view(-1, 1, 8, 8)
        large = F.interpolate(coarse, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
        return np.stack([gaussian_filter(map_, 4.0) for map_ in large.numpy()])

    return enlarge


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
