"""A model, the file that was exported from it, and photographs: made once for all tests here that need them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import blemish
from blemish.cli import app


def woven(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:60, :90]
    weave = 120 + 35 * np.sin(0.8 * rows + seed) * np.cos(0.7 * columns)
    return (weave[..., None] + rng.normal(0, 4, (60, 90, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def learned_folder(tmp_path_factory) -> Path:
    """``part.blemish`` and photographs of several kinds."""
    root = tmp_path_factory.mktemp("samples")
    (root / "good").mkdir()
    for number in range(12):
        Image.fromarray(woven(number)).save(root / "good" / f"{number:02}.png")
    bad = woven(50)
    bad[20:45, 30:60] = (20, 20, 160)
    Image.fromarray(woven(40)).save(root / "good.png")
    Image.fromarray(bad).save(root / "bad.png")
    Image.fromarray(bad).save(root / "bad.jpg", quality=90)
    Image.fromarray(bad[..., 0]).save(root / "grey.png")
    settings = {"method": "patchcore", "backbone": "resnet18", "weights": "random", "size": 64}
    blemish.fit(root / "good", options={"memory": 50}, **settings).save(root / "part.blemish")
    return root


@pytest.fixture(scope="session")
def folder(learned_folder) -> Path:
    """The same, with ``part.onnx``."""
    root = learned_folder
    arguments = ["export", root / "part.blemish", "-o", root / "part.onnx", "--check", root / "good", "-q"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return root
