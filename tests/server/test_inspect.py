"""Judging over HTTP: what comes back is what is stored, and what the library says of the same image."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from blemish.errors import ImageError, ModelFileError, OutputError
from blemish.inspection.inspector import Inspector
from blemish.server.api import IN_TURN
from blemish.server.app import _Impatient
from blemish.server.judging import JudgeQueue, Model, Photograph, QueueClosed, QueueFull

Inspect = Callable[..., dict[str, Any]]
Serve = Callable[..., TestClient]


def test_a_verdict_is_that_of_the_library_and_is_stored(
    client: TestClient, inspect: Inspect, inspector: Inspector, good: bytes, bad: bytes
) -> None:
    for content in (good, bad):
        said, verdict = inspect(client, content), inspector(content)
        own = {key: value for key, value in verdict.as_dict().items() if key != "path"}
        assert {key: said[key] for key in own} == _as_json(own)
        assert client.get(f"/v1/inspections/{said['id']}").json() == said
        assert client.get(said["links"]["image"]).content == content
        overlay = Image.open(io.BytesIO(client.get(said["links"]["overlay"]).content))
        assert np.array_equal(np.asarray(overlay), np.asarray(verdict.overlay()))
        raw = Image.open(io.BytesIO(client.get(said["links"]["map"], params={"format": "tiff"}).content))
        assert np.allclose(np.asarray(raw), verdict.heatmap)


def _as_json(value: Any) -> Any:
    return (
        [_as_json(one) for one in value]
        if isinstance(value, list | tuple)
        else ({key: _as_json(one) for key, one in value.items()} if isinstance(value, dict) else value)
    )


def test_several_photographs_of_a_part_have_one_verdict(
    client: TestClient, inspect: Inspect, good: bytes, bad: bytes
) -> None:
    files = [("a", ("good.png", good)), ("b", ("../../<b>bad.png", bad)), ("c", ("notes.txt", b"good morning"))]
    answer = client.post("/v1/models/parts/inspect?part=S1&overlay=1", files=files).json()
    assert [one["path"] for one in answer["verdicts"]] == ["good.png", "../../<b>bad.png"]
    assert all(one["overlay"].startswith("data:image/png;base64,") for one in answer["verdicts"])
    assert [one["path"] for one in answer["refused"]] == ["notes.txt"]
    assert "is not an image" in answer["refused"][0]["detail"]
    worst = max(answer["verdicts"], key=lambda one: one["score"])
    assert answer["decision"] == "reject" and worst["path"].endswith("bad.png")
    expected = {"part": "S1", **{key: worst[key] for key in ("decision", "score", "p_value")}}
    assert answer["part"] == expected | {"photographs": 2, "worst": worst["id"]}
    later = client.post("/v1/models/parts/inspect?part=S1", content=good).json()
    assert later["decision"] != "reject" and later["part"] == answer["part"] | {"photographs": 3}
    rejected = client.get("/v1/inspections?part=S1&decision=reject").json()["inspections"]
    assert [one["id"] for one in rejected] == [worst["id"]]  # two decoders: either may be the first


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


BODIES = {
    "nothing": (b"", 422, "the body is empty"),
    "text": (b"good morning", 422, "is not an image"),
    "a bomb": (png_claiming(60000, 60000), 422, "more than the"),
    "cut short": (None, 422, "damaged"),
    "too small": (png_claiming(4, 4), 422, "at least 8 a side"),
    "too large": (b"x" * 300_000, 413, "larger than the 200,000 bytes"),
}


@pytest.mark.parametrize("body", BODIES)
def test_what_cannot_be_judged_is_said_in_one_sentence(serve: Serve, good: bytes, body: str) -> None:
    client = serve(max_bytes=200_000)
    content, status, words = BODIES[body]
    answer = client.post("/v1/models/parts/inspect", content=good[: len(good) // 2] if content is None else content)
    assert answer.status_code == status and words in answer.text
    assert client.get("/v1/inspections").json() == {"inspections": [], "next": None}


def test_an_image_with_too_many_pixels_for_this_station_is_refused(serve: Serve, good: bytes) -> None:
    answer = serve(max_pixels=1000).post("/v1/models/parts/inspect", content=good)
    assert answer.status_code == 422 and "64 x 64 pixels, more than the 1,000" in answer.json()["detail"]


def test_a_strip_of_millions_of_pixels_is_refused(client: TestClient) -> None:
    """Whose outlines would take minutes and gigabytes."""
    Image.new("L", (16, 40_000), 128).save(strip := io.BytesIO(), format="PNG")
    answer = client.post("/v1/models/parts/inspect", content=strip.getvalue())
    assert answer.status_code == 422 and "16 x 40000 pixels is too long: at most 30,000" in answer.json()["detail"]


def test_few_pictures_are_drawn_at_a_time(
    client: TestClient, inspect: Inspect, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.server.api.PATIENCE", 0.05)
    links, station = inspect(client, good)["links"], client.app.state.station
    free, station.drawing = station.drawing, asyncio.Semaphore(0)
    for address in (links["overlay"], links["map"], links["image"], "/inspections/1/thumbnail"):
        answer = client.get(address)
        assert answer.status_code == 503 and answer.headers["retry-after"]
    assert client.post("/v1/inspections/1/replay").status_code == 503
    assert client.get("/v1/inspections/1").status_code == 200
    station.drawing = free
    for _ in range(5):  # each gives its place back
        assert client.get(links["overlay"]).status_code == 200
    assert all(
        dependency.scope == "function" for dependency in IN_TURN
    )  # before the answer is sent, and maybe not read


def test_unknown_names_and_numbers_are_not_found(client: TestClient, good: bytes) -> None:
    for address in ("/v1/models/other", "/v1/inspections/7", "/v1/inspections/7/image", "/nothing"):
        assert client.get(address).status_code == 404
    answer = client.post("/v1/models/other/inspect", content=good)
    assert answer.status_code == 404 and "there are: parts" in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


class Slow:
    """An inspector that waits to be told, and notes how many it was given at once."""

    def __init__(self, inspector: Any) -> None:
        self.inspector, self.free, self.began = inspector, threading.Event(), threading.Event()
        self.batches: list[int] = []

    def loaded(self, image: Any) -> Any:
        return self.inspector.loaded(image)

    def judged(self, images: Any) -> Any:
        self.batches.append(len(images))
        self.began.set()
        assert self.free.wait(20)
        return self.inspector.judged(images)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_full_queue_refuses_at_once_and_the_others_are_judged_together(
    serve: Serve, inspector: Inspector, good: bytes
) -> None:
    client = serve(queue=4)
    judge = client.app.state.station.judges["parts"]
    slow = Slow(inspector)
    judge.model = Model(slow, judge.model.digest, ".blemish")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.post, "/v1/models/parts/inspect", content=good)]
        assert slow.began.wait(20)
        waiting += [pool.submit(client.post, "/v1/models/parts/inspect", content=good) for _ in range(3)]
        until(lambda: judge.depth == 4)
        refused = client.post("/v1/models/parts/inspect", content=good)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        until(lambda: judge._decoded.qsize() == 3)
        slow.free.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 4
    assert slow.batches == [1, 3] and judge.depth == 0
    rows = client.get("/v1/inspections").json()["inspections"]
    assert [client.post(f"/v1/inspections/{row['id']}/replay").json()["same"] for row in rows] == [True] * 4
    assert 'blemish_refused_total{model="parts"} 1.0' in client.get("/metrics").text


def test_who_waits_too_long_hears_so_and_costs_nothing(serve: Serve, inspector: Inspector, good: bytes) -> None:
    client = serve(seconds=0.3)
    judge = client.app.state.station.judges["parts"]
    slow = Slow(inspector)
    judge.model = Model(slow, judge.model.digest, ".blemish")
    for _ in range(2):  # the second is given up before its turn, and is not judged at all
        answer = client.post("/v1/models/parts/inspect", content=good)
        assert answer.status_code == 503 and "not judged within 0.3 seconds" in answer.json()["detail"]
    slow.free.set()
    until(lambda: judge.depth == 0)
    assert slow.batches == [1]


def queue_of(inspector: Any, limit: int = 8) -> JudgeQueue:
    def keep(batch: Any) -> list[dict[str, Any]]:
        return [{"id": 1, "score": photograph.verdict.score} for photograph in batch]

    return JudgeQueue(Model(inspector, "d" * 64, ".blemish"), keep, 4, limit, 10**6)


def test_a_queue_answers_all_it_took_before_it_closes(inspector: Inspector, good: bytes) -> None:
    slow = Slow(inspector)
    judge = queue_of(slow)
    photographs = [Photograph(good, "", "http") for _ in range(8)]
    judge.submit(photographs[:2])
    with pytest.raises(QueueFull):
        judge.submit([Photograph(good, "", "http") for _ in range(7)])
    judge.submit(photographs[2:])
    assert slow.began.wait(20)
    gone = [photograph for photograph in photographs if photograph.answer.cancel()]
    closing = threading.Thread(target=judge.close)
    closing.start()
    slow.free.set()
    closing.join(20)
    with pytest.raises(QueueClosed):
        judge.submit([Photograph(good, "", "http")])
    assert sum(slow.batches) == 8 - len(gone) > 0 and judge.depth == 0
    for photograph in photographs:
        if photograph in gone:
            with pytest.raises(CancelledError):
                photograph.answer.result(0)
        else:
            assert photograph.answer.result(0)["score"] == inspector(good).score


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def loaded(self, image: Any) -> Any:
        if isinstance(self.error, ImageError):
            raise self.error

    def judged(self, images: Any) -> Any:
        raise self.error


ERRORS = [(ModelFileError("it broke"), 503), (MemoryError("too much"), 503), (ImageError("of another kind"), 422)]


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_a_model_that_fails_is_said_to(client: TestClient, good: bytes, error: Exception, status: int) -> None:
    judge = client.app.state.station.judges["parts"]
    working, judge.model = judge.model, Model(Broken(error), "d" * 64, ".blemish")
    answer = client.post("/v1/models/parts/inspect", content=good)
    assert answer.status_code == status and ("retry-after" in answer.headers) == (status == 503)
    judge.model = working
    assert client.post("/v1/models/parts/inspect", content=good).status_code == 200


@pytest.mark.slow
def test_a_model_is_swapped_without_a_lost_request(
    client: TestClient, inspector: Inspector, model: Path, good: bytes, tmp_path: Path
) -> None:
    other = inspector.calibrated([_saved(tmp_path / f"{i}.png", i) for i in range(30, 37)]).save(tmp_path / "b.blemish")
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(client.post, "/v1/models/parts/inspect", content=good) for _ in range(30)]
        for file in (other, model, other):
            assert client.put("/v1/models/parts", content=file.read_bytes()).status_code == 200
        answers += [pool.submit(client.post, "/v1/models/parts/inspect", content=good) for _ in range(6)]
    found = [answer.result() for answer in answers]
    assert {answer.status_code for answer in found} == {200}
    digest = client.get("/v1/models/parts").json()["digest"]
    assert {answer.json()["verdicts"][0]["digest"] for answer in found[-6:]} == {digest}
    assert len(client.get("/v1/inspections?limit=100").json()["inspections"]) == 36
    refused = client.put("/v1/models/parts", content=b"no model at all")
    assert refused.status_code == 422 and "the file is not a whole model" in refused.json()["detail"]
    assert client.delete("/v1/models/parts").status_code == 204
    assert client.post("/v1/models/parts/inspect", content=good).status_code == 404
    assert client.get("/v1/models").json() == {"models": []}
    assert client.put("/v1/models/new-name", content=model.read_bytes()).json()["model"] == "new-name"
    assert client.put("/v1/models/..%2fx", content=b"").status_code in (404, 422)


def _saved(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(60, 180, (64, 64, 3), np.uint8)).save(path)
    return path


def test_a_swapped_model_stays_after_a_restart(serve: Serve, inspect: Inspect, model: Path, good: bytes) -> None:
    first = serve()
    assert first.put("/v1/models/parts/threshold", json={"rate": 0.3}).json()["rate"] == 0.3
    before = inspect(first, good)
    first.close()
    again = serve()
    assert inspect(again, good)["digest"] == before["digest"]
    assert again.post(f"/v1/inspections/{before['id']}/replay").json()["same"]


def test_a_model_file_that_vanishes_ends_nothing_that_runs(
    serve: Serve, inspect: Inspect, model: Path, good: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "its own.blemish"
    file.write_bytes(model.read_bytes())
    client = serve(models={"parts": file})
    first = inspect(client, good)
    file.unlink()
    assert inspect(client, good)["score"] == first["score"]
    assert client.post(f"/v1/inspections/{first['id']}/replay").json()["same"]
    client.put("/v1/models/parts/threshold", json={"rate": 0.3})
    (client.app.state.station.pictures.models / f"{first['digest']}.blemish").unlink()  # the station's own copy, too
    answer = client.post(f"/v1/inspections/{first['id']}/replay")
    assert answer.status_code == 410 and "not kept any longer" in answer.json()["detail"]
    assert inspect(client, good)["score"] == first["score"]
    client.close()
    with pytest.raises(ModelFileError, match="there is no model file"):
        serve(models={"parts": file})


def test_a_photograph_that_a_power_cut_took_is_gone_and_its_verdict_stands(
    client: TestClient, inspect: Inspect, good: bytes
) -> None:
    said = inspect(client, good)
    path = client.app.state.station.pictures.path(said["image_sha256"])
    path.write_bytes(bytes(len(good)))  # as a disk may have it that was cut off while writing
    assert "missing or damaged" in client.get(said["links"]["image"]).json()["detail"]
    assert client.get(f"/v1/inspections/{said['id']}").json() == said
    again = inspect(client, good)  # the same once more mends it
    assert client.get(again["links"]["image"]).content == client.get(said["links"]["image"]).content == good


def test_a_disk_that_is_full_is_said_and_nothing_half_kept_is_answered(
    client: TestClient, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        answer = client.post("/v1/models/parts/inspect", content=good)
    assert answer.status_code == 503 and "No space left on device" in answer.json()["detail"]
    assert client.get("/v1/inspections").json()["inspections"] == []
    with monkeypatch.context() as patch:
        patch.setattr(client.app.state.station.store, "record", full)
        assert client.post("/v1/models/parts/inspect", content=good).status_code >= 500
    assert [*client.app.state.station.pictures.incoming.iterdir()] == []
    assert client.post("/v1/models/parts/inspect", content=good).status_code == 200


def test_a_folder_of_photographs_has_one_station(serve: Serve, tmp_path: Path) -> None:
    first = serve()
    with pytest.raises(
        OutputError, match=r"another station works in .*images: stop it, or give this one its own --images"
    ):
        serve(store=str(tmp_path / "other.db"))
    first.close()
    serve(store=str(tmp_path / "other.db"))


def test_connections_that_take_a_place_for_nothing_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a head, with a part of one, with a part of a second one, unread, and beyond the limit."""
    monkeypatch.setattr("blemish.server.app.HEAD_SECONDS", 0.5)
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        body = bytes(64 * 2**20 if scope["path"] == "/large" else 2)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def talk() -> None:
        config = uvicorn.Config(answer, http=_Impatient, lifespan="off", log_level="critical", limit_concurrency=3)
        config.load()
        state = uvicorn.server.ServerState()
        make = partial(_Impatient, config=config, server_state=state, app_state={})
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        call = partial(asyncio.open_connection, *server.sockets[0].getsockname())

        async def ended(reader: asyncio.StreamReader) -> bytes:
            try:
                return await asyncio.wait_for(reader.read(), 3)  # sooner than uvicorn ends those that are kept alive
            except ConnectionError:
                return b""

        (silent, first), (begun, second) = await call(), await call()
        second.write(whole[:9])
        assert [await ended(silent), await ended(begun)] == [b"", b""]
        again, third = await call()
        third.write(whole)
        assert (await again.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200") and await again.readexactly(2)
        for byte in whole[:9]:
            third.write(bytes([byte]))
            await asyncio.sleep(0.1)
        assert await ended(again) == b""
        _, fourth = await call()
        fourth.write(whole.replace(b"/", b"/large", 1))
        while not state.connections:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            while state.connections:  # what it does not read is given up
                await asyncio.sleep(0.05)
        held = [await call() for _ in range(3)]
        refused, last = await call()
        assert await ended(refused) == b"" and len(state.connections) == 3
        for _, writer in [*held, (None, first), (None, second), (None, third), (None, fourth), (None, last)]:
            writer.transport.abort()
        server.close()
        await asyncio.sleep(0.1)

    asyncio.run(talk())


def test_events_tell_of_verdicts(client: TestClient, inspect: Inspect, good: bytes) -> None:
    events = client.app.state.station.events
    heard: list[str] = []

    async def listen() -> None:
        stream = events.listen()
        async for message in stream:
            heard.append(message)
            if len(heard) == 3:
                await stream.aclose()
                return

    assert client.portal is not None
    task = client.portal.start_task_soon(listen)
    until(lambda: bool(heard))
    said = inspect(client, good)
    client.put(f"/v1/inspections/{said['id']}/said", json={"said": "bad"})
    task.result(20)
    assert heard[1].startswith("event: inspection\ndata: {") and heard[2].startswith("event: said\n")
