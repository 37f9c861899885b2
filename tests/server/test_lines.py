"""Sources and sinks: nothing is taken before it is complete, nothing is lost while a receiver is down."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.server
import io
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from blemish.server import sources
from blemish.server.settings import Settings
from blemish.server.sinks import Delivery, OpcUa, named_sinks
from blemish.server.sources import Camera

Serve = Callable[..., TestClient]
Inspect = Callable[..., dict[str, Any]]


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(client: TestClient) -> list[dict[str, Any]]:
    return client.get("/v1/inspections").json()["inspections"][::-1]


class Receiver(http.server.BaseHTTPRequestHandler):
    """Refuses while its server is told to; else keeps what it gets."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        if status == 204:
            self.server.got.append((dict(self.headers), body))
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got, server.statuses = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_webhook_gets_every_verdict_signed_once_it_is_up(
    serve: Serve, inspect: Inspect, good: bytes, bad: bytes, receiver: Any
) -> None:
    receiver.statuses = [500, 302]
    client = serve(webhooks=[f"http://127.0.0.1:{receiver.server_port}/verdicts"], webhook_secret="between us")
    said = [inspect(client, content) for content in (good, bad, good)]
    until(lambda: len(receiver.got) == 3)
    for (headers, body), verdict in zip(receiver.got, said):
        assert json.loads(body) == verdict and headers["X-Blemish-Id"] == str(verdict["id"])
        digest = hmac.new(b"between us", body, hashlib.sha256).hexdigest()
        assert headers["X-Blemish-Signature"] == f"sha256={digest}"


@pytest.mark.slow
def test_a_sink_that_is_down_delays_nothing_and_loses_nothing_over_a_restart(
    serve: Serve, inspect: Inspect, good: bytes, receiver: Any
) -> None:
    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        client = serve(webhooks=[address := f"http://127.0.0.1:{taken.getsockname()[1]}/"])
        ids = [inspect(client, good)["id"] for _ in range(3)]
        client.close()
    again = serve()
    got: list[int] = []

    class Kept:
        def send(self, message: Any) -> None:
            got.append(message["id"])

        def close(self) -> None:
            pass

    delivery = Delivery(again.app.state.station.store, address, Kept)
    until(lambda: len(got) == 3)
    delivery.close()
    assert got == ids


def test_every_sink_has_a_name_of_its_own_without_its_password() -> None:
    places = [*(f"https://plant.example/{'line/' * 10}{number}" for number in (1, 2)), "https://short.example/a@b"]
    names = [*named_sinks(Settings(models={}, webhooks=places, mqtt=["mqtt://me:secret@broker/line"]))]
    assert names[2:] == [places[2], "mqtt://broker/line"]  # two names of two, no longer than a column of the store
    assert all(len(name) <= 64 and name.startswith(places[0][:50]) for name in names[:2])


def test_a_sink_that_stays_down_is_tried_less_often(
    serve: Serve, inspect: Inspect, good: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is reached, and takes no message: after one second, then after two."""
    client = serve(webhooks=["http://127.0.0.1:9/"])  # the port of discard, where nobody listens
    inspect(client, good)
    until(lambda: len(caplog.messages) == 2)
    assert [message.partition("again in ")[2] for message in caplog.messages] == ["1 s", "2 s"]


def test_a_watched_folder(
    serve: Serve, good: bytes, bad: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("watchfiles", reason="the extra [watch] is not installed")
    monkeypatch.setattr(sources, "PATIENCE", 1.5)
    monkeypatch.setattr(sources, "EMPTY", 1.0)
    folder = tmp_path / "arriving"
    folder.mkdir()
    (folder / "first.png").write_bytes(good)
    client = serve(watch={"parts": folder}, move=True)
    with (folder / "second.png").open("wb") as file:  # written slowly
        for start in range(0, len(bad), len(bad) // 4):
            file.write(bad[start : start + len(bad) // 4])
            file.flush()
            time.sleep(0.1)
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.png").touch()  # as a full disk leaves one
    until(lambda: len(rows(client)) == 2)
    until((folder / "reject" / "second.png").exists)
    assert [(row["path"], row["source"], row["decision"] == "reject") for row in rows(client)] == [
        ("first.png", "folder", False),
        ("second.png", "folder", True),
    ]
    (folder / "second.png").write_bytes(bad)  # the same name again: nothing is written over
    until(lambda: len([*(folder / "reject").iterdir()]) == 2)
    until((folder / "unreadable" / "empty.png").exists)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["notes.txt"]


def test_what_cannot_be_moved_or_named_is_judged_once_and_stops_nothing(
    serve: Serve, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("watchfiles", reason="the extra [watch] is not installed")
    monkeypatch.setattr(sources, "SCAN", 0.5)
    folder = tmp_path / "arriving"
    folder.mkdir()
    for decision in ("ok", "review", "reject"):
        (folder / decision).write_text("a file where a folder should be")
    names = ["a\udcff.png", "b.png", "c.png"]
    for name in names:
        (folder / name).write_bytes(good)
    client = serve(watch={"parts": folder}, move=True)
    until(lambda: len(rows(client)) == 3)
    time.sleep(1.5)  # three looks at the folder
    assert [row["path"] for row in rows(client)] == ["a\\udcff.png", "b.png", "c.png"]
    client.close()
    (folder / "ok").unlink()
    again = serve(watch={"parts": folder}, move=True)  # sorted by what was decided then
    until(lambda: not any((folder / name).exists() for name in names))
    assert len(rows(again)) == 3 and len([*(folder / "ok").iterdir()]) == 3


def test_a_verdict_that_takes_long_is_waited_for_once_it_is_being_judged(
    serve: Serve, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(seconds=0.2)
    here = client.app.state.station
    inspector = here.judge("parts").model.inspector
    judge = type(inspector).judged

    def slowly(self: Any, loaded: Any) -> Any:
        time.sleep(0.6)
        return judge(self, loaded)

    monkeypatch.setattr(type(inspector), "judged", slowly)
    assert here.submit("parts", good, "slow.png", "folder")["path"] == "slow.png"
    assert len(rows(client)) == 1


@pytest.fixture
def arriving(good: bytes, tmp_path: Path) -> Path:
    """A folder to be watched, with a photograph in it."""
    pytest.importorskip("watchfiles", reason="the extra [watch] is not installed")
    folder = tmp_path / "arriving"
    folder.mkdir()
    (folder / "a.png").write_bytes(good)
    return folder


def test_a_photograph_that_is_written_over_while_it_is_judged_is_judged_as_well(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles", reason="the extra [watch] is not installed")
    seen, ended = list[bytes](), threading.Event()
    (tmp_path / "image.png").write_bytes(b"first")

    def submit(content: bytes, name: str) -> dict[str, Any]:
        seen.append(content)
        if len(seen) == 1:  # the camera brings the next part under the same name
            (tmp_path / "image.png").write_bytes(b"the second")
        return {"decision": "ok"}

    watched = sources.Folder(tmp_path, True, lambda name, content: None)
    thread = threading.Thread(target=watched.run, args=(submit, ended))
    thread.start()
    until((tmp_path / "ok/image.png").is_file)
    ended.set()
    thread.join()
    assert seen == [b"first", b"the second"] and (tmp_path / "ok/image.png").read_bytes() == b"the second"


def test_two_models_of_one_folder_both_judge_what_lies_there(serve: Serve, model: Path, arriving: Path) -> None:
    client = serve(models={"front": model, "back": model}, watch={"front": arriving, "back": arriving})
    until(lambda: len(rows(client)) == 2)
    assert {row["model"] for row in rows(client)} == {"front", "back"}


@pytest.mark.slow
def test_a_restart_judges_a_watched_folder_s_files_no_second_time(serve: Serve, arriving: Path, bad: bytes) -> None:
    client = serve(watch={"parts": arriving})
    until(lambda: len(rows(client)) == 1)
    client.close()
    again = serve(watch={"parts": arriving})
    (arriving / "b.png").write_bytes(bad)
    until(lambda: len(rows(again)) >= 2)
    assert [row["path"] for row in rows(again)] == ["a.png", "b.png"]


def test_a_recorded_camera(serve: Serve, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="the extra [camera] is not installed")
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 64))
    for level in (60, 120, 180):
        writer.write(np.full((64, 64, 3), level, np.uint8))
    writer.release()
    pytest.importorskip("watchfiles", reason="the extra [watch] is not installed")
    (tmp_path / "arriving").mkdir()
    client = serve(cameras={"parts": str(film)}, watch={"parts": tmp_path / "arriving"})  # a model may have both
    until(lambda: len(rows(client)) == 3)
    assert [round(row["brightness"] * 255, -1) for row in rows(client)] == [60, 120, 180]
    assert client.get("/v1/cameras/parts").content.startswith(b"\xff\xd8\xff")
    assert client.get("/v1/cameras/other").status_code == 404


def test_a_stream_is_released_by_whoever_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV ends the whole process where another thread releases it meanwhile."""
    cv2 = pytest.importorskip("cv2", reason="the extra [camera] is not installed")
    read, released = set[int](), list[int]()

    class Capture:
        def __init__(self, *_: Any) -> None: ...

        def isOpened(self) -> bool:
            return True

        def read(self) -> tuple[bool, Any]:
            read.add(threading.get_ident())
            time.sleep(0.02)
            return True, np.zeros((8, 8, 3), np.uint8)

        def release(self) -> None:
            released.append(threading.get_ident())

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    ended = threading.Event()
    Camera("rtsp://nowhere/").run(lambda content, name: ended.set() or {}, ended)
    assert len(read) == 1 and released == [*read]


class Stream(http.server.BaseHTTPRequestHandler):
    """Pictures without end, as many cameras send them; ends after a few, so that a camera connects again."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        self.server.connections += 1
        file = io.BytesIO()
        Image.new("L", (64, 64), 60 * self.server.connections).save(file, format="JPEG")
        with contextlib.suppress(OSError):
            for _ in range(40):
                self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n\r\n" + file.getvalue() + b"\r\n")
                time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_a_stream_is_judged_and_opened_again_after_it_ended(serve: Serve) -> None:
    pytest.importorskip("cv2", reason="the extra [camera] is not installed")
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    server.connections = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        client = serve(cameras={"parts": f"http://127.0.0.1:{server.server_port}/live.mjpg"})
        until(lambda: {60, 120} <= {round(row["brightness"] * 255, -1) for row in rows(client)}, 60)
        client.close()
    finally:
        server.shutdown()
        server.server_close()


RTSP = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
made = GstRtspServer.RTSPMediaFactory(shared=True)
pixels = "video/x-raw,format=I420,width=64,height=64"
made.set_launch(f"( videotestsrc is-live=1 ! {pixels} ! jpegenc ! rtpjpegpay name=pay0 )")
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
server.get_mount_points().add_factory("/parts", made)
server.attach(None)
GLib.MainLoop().run()
"""  # Debian's gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base and -good, python3-gi: for the system's own Python


@pytest.mark.slow
def test_a_camera_by_rtsp_that_is_away_stalls_and_ends(serve: Serve) -> None:
    pytest.importorskip("cv2", reason="the extra [camera] is not installed")
    trial = 'import gi; gi.require_version("GstRtspServer", "1.0")'
    if subprocess.run(["/usr/bin/python3", "-c", trial], capture_output=True, check=False).returncode:
        pytest.skip("GStreamer's RTSP server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = serve(cameras={"parts": f"rtsp://anna:secret@127.0.0.1:{port}/parts"})

    def total() -> int:
        return client.get("/v1/counts").json()["total"]  # type: ignore[no-any-return]

    def problem() -> str | None:
        (source,) = client.get("/v1/models/parts/health").json()["sources"]
        assert (source["since"] is None) == (source["problem"] is None)
        return source["problem"]  # type: ignore[no-any-return]

    until(problem)
    said = client.get("/").text
    assert "secret" not in said and f"rtsp://127.0.0.1:{port}/parts cannot be opened" in said
    for end in (signal.SIGSTOP, signal.SIGKILL):  # what stalls answers nothing, and is connected still
        judged = total()
        server = subprocess.Popen(["/usr/bin/python3", "-c", RTSP, str(port)])
        try:
            until(lambda least=judged: total() > least, 60)
            assert problem() is None and client.get("/v1/cameras/parts").content.startswith(b"\xff\xd8\xff")
            server.send_signal(end)
            until(problem)
            assert client.get("/v1/cameras/parts").status_code == 404
            assert "brings no images" in client.get("/").text
        finally:
            server.kill()
            server.wait()


@pytest.mark.slow
def test_mqtt_by_a_real_broker(serve: Serve, inspect: Inspect, good: bytes, tmp_path: Path) -> None:
    mqtt = pytest.importorskip("paho.mqtt.client", reason="the extra [mqtt] is not installed")
    if (program := shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")) is None:
        pytest.skip("mosquitto is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    client = serve(mqtt=[f"mqtt://127.0.0.1:{port}/line/verdicts"])
    said = [inspect(client, good)]  # while the broker is down
    got: list[dict[str, Any]] = []
    broker = subprocess.Popen([program, "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    listener = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    listener.on_connect = lambda *_: listener.subscribe("line/#", qos=1)
    listener.on_subscribe = lambda *_: subscribed.set()
    listener.on_message = lambda client, _, message: got.append(json.loads(message.payload))
    subscribed = threading.Event()
    try:
        until(lambda: _listens(port))
        listener.connect("127.0.0.1", port)
        listener.loop_start()
        assert subscribed.wait(30)
        said.append(inspect(client, good))
        until(lambda: len(got) == 2, 60)
    finally:
        listener.loop_stop()
        broker.terminate()
        broker.wait()
    assert got == said


@pytest.mark.slow
def test_opc_ua_by_its_own_client(serve: Serve, inspect: Inspect, bad: bytes) -> None:
    pytest.importorskip("asyncua", reason="the extra [opcua] is not installed")
    from asyncua.sync import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"opc.tcp://127.0.0.1:{free.getsockname()[1]}/blemish/"
    client = serve(opcua=[address])
    said = [inspect(client, bad) for _ in range(2)][-1]
    until(lambda: client.app.state.station.store.rows(_waiting()) == [])
    with Client(address) as plc:
        space = plc.get_namespace_index("urn:blemish:station")
        names = ("Id", "Decision", "Score", "Part", "At")
        path = ["0:Objects", f"{space}:Blemish", f"{space}:parts"]
        values = {name: plc.nodes.root.get_child([*path, f"{space}:{name}"]).read_value() for name in names}
    assert values == {"Id": said["id"], "Decision": "reject", "Score": said["score"], "Part": "", "At": said["at"]}


@pytest.mark.slow
def test_an_opc_ua_port_that_is_taken_leaves_no_thread_behind() -> None:
    pytest.importorskip("asyncua", reason="the extra [opcua] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = threading.active_count()
        for _ in range(2):
            with pytest.raises(OSError, match="address already in use"):
                OpcUa(f"opc.tcp://127.0.0.1:{taken.getsockname()[1]}/blemish/")
        until(lambda: threading.active_count() <= before)


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def _waiting() -> Any:
    from sqlalchemy import select

    from blemish.server.tables import outbox

    return select(outbox)
