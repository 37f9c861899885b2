"""Woven parts in a folder, and a toy method to learn them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_method import Toy

from blemish.registry import METHODS, MethodEntry


@pytest.fixture(scope="module", autouse=True)
def toy_is_registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toy", MethodEntry("toy_method:Toy", "clean", "memory"))
        yield


@pytest.fixture(autouse=True)
def toy_has_done_nothing() -> None:
    Toy.steps.clear()
    Toy.stop = None


@pytest.fixture(scope="session")
def save_part() -> Callable[..., None]:
    """``save_part(path, seed, side=64, square=None)``: a weave, with a square of (row, column, value) if given."""

    def save(path: Path, seed: int, side: int = 64, square: tuple[int, int, int] | None = None) -> None:
        rows, columns = np.mgrid[:side, :side]
        woven = 128 + 38 * np.sin(0.62 * rows) + 38 * np.sin(0.49 * columns)
        pixels = woven[..., None] + np.random.default_rng(seed).normal(0, 5, (side, side, 3))
        if square is not None:
            row, column, value = square
            pixels[row : row + 16, column : column + 16] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)

    return save


@pytest.fixture(scope="session")
def folder(save_part: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 good parts."""
    root = tmp_path_factory.mktemp("parts")
    for i in range(20):
        save_part(root / f"{i:02d}.png", i, side=96)
    return root
