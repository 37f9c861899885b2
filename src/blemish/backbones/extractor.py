"""Frozen feature extractors through timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from blemish.contract import Backbone
from blemish.run import Precision


class TimmBackbone(Backbone):
    """A timm network cut after its last used stage."""

    name: str
    stages: tuple[int, ...]
    digest: str
    source: str
    dense: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: Precision

    def spec(self) -> dict[str, Any]:
        """What ``rebuild`` needs beside the tensors: JSON-able, without paths."""
        raise NotImplementedError


def build_backbone(
    name: str = "efficientnet_lite0",
    stages: tuple[int, ...] = (2, 3),
    weights: str | Path = "pretrained",
    seed: int = 0,
    precision: Precision | None = None,
) -> TimmBackbone:
    """A frozen backbone."""
    raise NotImplementedError


def rebuild(
    spec: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    weights: str | Path | None = None,
    precision: Precision | None = None,
) -> TimmBackbone:
    """The backbone that ``spec`` describes."""
    raise NotImplementedError
