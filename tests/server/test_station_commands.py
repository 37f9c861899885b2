"""The station's commands, and a station as a process: ports, slow and vanishing clients, hard ends."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from blemish.cli import app
from blemish.server.app import bind
from blemish.server.settings import Settings

KILLS = Path(__file__).parents[2] / "benchmarks" / "station_kills.py"


@pytest.fixture
def blemish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_tokens_open_what_their_role_may(blemish: Callable[..., Result], serve: Callable[..., TestClient]) -> None:
    made = json.loads(blemish("token", "new", "--role", "operator", "--name", "line 2", "--json").stdout)
    client = serve(host="0.0.0.0")
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert client.get("/v1/me", headers=headers).json() == {"name": "line 2", "role": "operator", "csrf": None}
    assert blemish("token", "revoke", "--name", "line 2").stdout == "1 tokens of line 2 were revoked\n"
    assert client.get("/v1/me", headers=headers).status_code == 401
    assert blemish("token", "new", "--role", "king").exit_code == 2


def test_the_audit_log_is_verified(blemish: Callable[..., Result], client: TestClient, good: bytes) -> None:
    client.post("/v1/models/parts/inspect", content=good)
    done = blemish("audit-log", "verify")
    assert done.exit_code == 0 and done.stdout.startswith("whole: 2 rows")
    store = client.app.state.station.store
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit SET at = at + 1 WHERE id = 2")
    done = blemish("audit-log", "verify")
    assert done.exit_code == 1 and done.stdout.startswith("broken at row 2")


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no model": (["serve", "missing.blemish", "--port", "0"], 1, "there is no model file"),
    "two of a name": (["serve", "parts.blemish", "b/parts.blemish"], 2, "the name parts has parts.blemish already"),
    "a long time": (["serve", "parts.blemish", "--keep", "forever"], 2, "--keep forever"),
    "a large disk": (["serve", "parts.blemish", "--max-disk", "all"], 2, "--max-disk all"),
    "some images": (["serve", "parts.blemish", "--keep-images", "nice"], 2, "--keep-images"),
    "no such hour": (["serve", "parts.blemish", "--shifts", "6,24"], 2, "--shifts 24: "),
    "a folder of no model": (["serve", "parts.blemish", "--watch", "other=new"], 2, "watch of other, and no model"),
    "two folders": (["serve", "parts.blemish", "--watch", "a", "--watch", "b"], 2, "has a already"),
    "no address": (["serve", "parts.blemish", "--port", "0", "--host", "203.0.113.7"], 2, "an address of this machine"),
    "no store to verify": (["audit-log", "verify"], 1, "there is no store station.db: give the --store"),
    "no sink": (["serve", "parts.blemish", "--port", "0", "--mqtt", "broker"], 2, "a whole address is needed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_words(blemish: Callable[..., Result], model: Path, case: str) -> None:
    shutil.copy(model, "parts.blemish")
    arguments, code, words = WRONG[case]
    done = blemish(*arguments)
    assert (done.exit_code, words in done.stderr) == (code, True), done.stderr


def test_a_port_in_use_is_said_before_anything_is_loaded(blemish: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = blemish("serve", "missing.blemish", "--port", taken.getsockname()[1])
    assert done.exit_code == 2 and "give another --port" in done.stderr
    assert not Path("station.db").exists()


@pytest.fixture
def process(model: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A station in a process of its own, and its port."""
    command = [sys.executable, "-m", "blemish", "serve", f"parts={model}", "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert running.stderr is not None
    said = running.stderr.readline()
    assert "the station is ready: http://127.0.0.1:" in said
    yield running, int(said.split("127.0.0.1:")[1].split()[0])
    if running.poll() is None:
        running.kill()
    running.communicate()


def ask(port: int, path: str, body: bytes | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST" if body else "GET", path, body)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.slow
def test_slow_and_vanishing_clients_cost_nothing(process: tuple[subprocess.Popen[str], int], good: bytes) -> None:
    running, port = process
    head = f"POST /v1/models/parts/inspect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(good)}\r\n\r\n".encode()
    for sent in (head[:20], head, head + good[: len(good) // 2]):  # half a head, no body, half a body: then gone
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(sent)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(head + good[:100])
        assert ask(port, "/v1/models/parts/inspect", good)["verdicts"][0]["id"] == 1  # nobody waits for it
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        assert answer.status == 408 and b"did not arrive in 30 seconds" in answer.read()
    assert ask(port, "/v1/models")["models"][0]["waiting"] == 0
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_hard_kills_lose_nothing() -> None:
    done = subprocess.run([sys.executable, KILLS, "--kills", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["answered"] > 5


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Without the protocol's name asyncio leaves Nagle's algorithm on, and an answer in two parts takes 40 ms more."""
    with bind(Settings(models={}, port=0, store=str(tmp_path / "station.db"))) as listening:
        assert listening.proto == socket.IPPROTO_TCP
