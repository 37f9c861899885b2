"""Made-up parts in the layout of MVTec AD, and an inspector that has learned them: made once for all tests here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from blemish.cli import app
from blemish.inspection.inspector import Inspector
from blemish.training.fit import fit

SIDE = 64
Pixels = NDArray[np.uint8]


def woven(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Pixels:
    """A good part, ``h w 3``: one weave, its phase and noise from ``seed``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    phase = rng.uniform(0, 2 * np.pi, 2)
    weave = 120 + 35 * np.sin(0.8 * rows + phase[0]) * np.cos(0.7 * columns + phase[1])
    pixels = weave[..., None] * np.array([1.0, 0.9, 0.75]) + rng.normal(0, 4, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@dataclass(frozen=True)
class Parts:
    """The folder of the set, its images, and the boxes of the planted squares by file name; tests change nothing."""

    root: Path
    squares: dict[str, tuple[int, int, int, int]]

    @property
    def good(self) -> Path:
        return self.root / "train" / "good"

    @property
    def good_tests(self) -> list[Path]:
        return sorted((self.root / "test" / "good").iterdir())

    @property
    def bad(self) -> list[Path]:
        return [self.root / "test" / kind / f"{i:03}.png" for kind in ("square", "scratch") for i in range(3)]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """12 good to learn from; 5 good, 3 with a square and 3 with a scratch to test on; masks for the bad ones."""
    root = tmp_path_factory.mktemp("product") / "parts"
    for i in range(12):
        write(root / "train" / "good" / f"{i:03}.png", woven(i))
    for i in range(5):
        write(root / "test" / "good" / f"{i:03}.png", woven(100 + i))
    squares = {}
    for i in range(3):
        square, scratch = np.zeros((2, SIDE, SIDE), bool)
        top, left = 12 + 9 * i, 34 - 8 * i
        squares[f"{i:03}.png"] = (top, left, top + 14, left + 14)
        square[top : top + 14, left : left + 14] = True
        for step in range(40):
            scratch[12 + step, 10 + 6 * i + step // 2 :][:3] = True
        for kind, mask, seed, colour in (("square", square, 200, (20, 20, 160)), ("scratch", scratch, 300, (255,) * 3)):
            write(root / "test" / kind / f"{i:03}.png", np.where(mask[..., None], np.uint8(colour), woven(seed + i)))
            write(root / "ground_truth" / kind / f"{i:03}_mask.png", mask.astype(np.uint8) * 255)
    return Parts(root, squares)


@pytest.fixture(scope="session")
def inspector(parts: Parts) -> Inspector:
    """PatchCore on the embedded backbone at 64 pixels, calibrated by cross-fitting."""
    return fit(parts.root, method="patchcore", size=SIDE, options={"fraction": 0.5})


@pytest.fixture(scope="session")
def model(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inspector.save(tmp_path_factory.mktemp("model") / "parts.blemish")


@pytest.fixture(scope="session")
def blemish() -> Callable[..., Result]:
    """``blemish("fit", folder, ...)`` runs the command line in this process; output and error streams are apart."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def quick_fit() -> list[str]:
    """Arguments that make ``fit`` quick: a small input and a backbone of random weights."""
    return ["--size", str(SIDE), "--backbone", "resnet18", "--weights", "random", "--poses", "none", "--threads", "1"]


@pytest.fixture(scope="session")
def texture() -> Callable[..., Pixels]:
    return woven


@pytest.fixture(scope="session")
def save() -> Callable[[Path, NDArray[Any]], Path]:
    return write
