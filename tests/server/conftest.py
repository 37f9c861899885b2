"""A station with the tiny model, on loopback, in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [server] is not installed")

from fastapi.testclient import TestClient

from blemish.inspection.inspector import Inspector
from blemish.server.app import create_app
from blemish.server.settings import Settings
from blemish.training.fit import fit

SIDE = 64


def woven(seed: int, is_bad: bool = False) -> np.ndarray:
    """A part, ``h w 3``: one weave, its phase and noise from ``seed``; a blue square where it is bad."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    phase = rng.uniform(0, 2 * np.pi, 2)
    weave = 120 + 35 * np.sin(0.8 * rows + phase[0]) * np.cos(0.7 * columns + phase[1])
    pixels = weave[..., None] * np.array([1.0, 0.9, 0.75]) + rng.normal(0, 4, (SIDE, SIDE, 3))
    if is_bad:
        pixels[20:34, 30:44] = (20, 20, 160)
    return pixels.clip(0, 255).astype(np.uint8)


def encoded(seed: int, is_bad: bool = False) -> bytes:
    file = io.BytesIO()
    Image.fromarray(woven(seed, is_bad)).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good parts to learn from."""
    root = tmp_path_factory.mktemp("station") / "parts"
    (root / "good").mkdir(parents=True)
    for i in range(12):
        (root / "good" / f"{i:03}.png").write_bytes(encoded(i))
    return root


@pytest.fixture(scope="session")
def inspector(training: Path) -> Inspector:
    settings: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "poses": "none"}
    return fit(training, method="patchcore", size=SIDE, options={"memory": 300}, **settings)


@pytest.fixture(scope="session")
def model(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inspector.save(tmp_path_factory.mktemp("model") / "parts.blemish")


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> Callable[..., Settings]:
    """``settings(**changes)``: of a station in this test's own folder."""

    def made(**changes: Any) -> Settings:
        places = {"store": str(tmp_path / "station.db"), "images": tmp_path / "images"}
        return Settings(**{"models": {"parts": model}, **places, **changes})

    return made


@pytest.fixture
def serve(settings: Callable[..., Settings]) -> Iterator[Callable[..., TestClient]]:
    """``serve(**changes)``: a client of a station with those settings; ``close`` ends it, as does the test's end."""
    with contextlib.ExitStack() as opened:

        def served(**changes: Any) -> TestClient:
            client = TestClient(create_app(settings(**changes)), base_url="http://127.0.0.1:8000")
            own = contextlib.ExitStack()
            own.enter_context(client)
            client.close = own.close  # type: ignore[method-assign]
            opened.callback(own.close)
            return client

        yield served


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@pytest.fixture(scope="session")
def good() -> bytes:
    return encoded(100)


@pytest.fixture(scope="session")
def bad() -> bytes:
    return encoded(200, is_bad=True)


@pytest.fixture(scope="session")
def part() -> Callable[..., bytes]:
    """``part(seed, is_bad=False)``: a photograph as PNG."""
    return encoded


@pytest.fixture(scope="session")
def inspect() -> Callable[..., dict[str, Any]]:
    """``inspect(client, content, **query)``: its one verdict."""

    def inspected(client: TestClient, content: bytes, model: str = "parts", **query: Any) -> dict[str, Any]:
        answer = client.post(f"/v1/models/{model}/inspect", content=content, params=query)
        assert answer.status_code == 200, answer.text
        (verdict,) = answer.json()["verdicts"]
        return verdict

    return inspected
