"""Promises that are tested: the two tests' own figures, and what a station says when they fail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

pytest.importorskip("fastapi", reason="the extra [server] is not installed")

from blemish.inspection.calibration import calibrate
from blemish.server import health
from blemish.server.care import apply_retention
from blemish.server.health import WINDOW, test_window, watch_promise
from blemish.server.store import Search, spoken_time
from blemish.server.tables import windows

test_window.__test__ = False  # type: ignore[attr-defined]  # it is no test of pytest's


def at_least(rejected: int, parts: int, gaps: int, n: int) -> float:
    """By counting: of all orders of n calibration and some new scores, in how many lie so many above the threshold.

    The new ones fall into the n + 1 gaps between the old ones in every way alike; ``gaps`` of these lie above.
    """

    def ways(count: int, places: int) -> int:
        return math.comb(count + places - 1, count)

    above = sum(ways(r, gaps) * ways(parts - r, n + 1 - gaps) for r in range(rejected, parts + 1))
    return above / ways(parts, n + 1)


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (199, 0.02), (60, 0.1)])
def test_rejects_are_counted_as_orders_are(n: int, rate: float) -> None:
    calibration = calibrate("holdout", np.arange(n, dtype=float), false_reject=rate)
    gaps = math.floor(rate * (n + 1))
    for rejected in (0, 1, 3, 8):
        scores = np.array([n + 1.0] * rejected + [0.5] * (20 - rejected))
        found, p_rejected, _ = test_window(calibration, scores)
        assert found == rejected
        assert p_rejected == pytest.approx(at_least(rejected, 20, gaps, n), rel=1e-6)


@pytest.mark.slow
def test_so_many_false_alarms_as_are_stated() -> None:
    """Good parts alone, each time with another calibration: neither test's p-value is small more often than it says."""
    rng, small = np.random.default_rng(0), np.zeros(2)
    for _ in range(400):
        calibration = calibrate("holdout", rng.lognormal(size=120), false_reject=0.02)
        small += np.array(test_window(calibration, rng.lognormal(size=WINDOW))[1:]) <= 0.02
    assert (small / 400 < 0.041).all(), small / 400  # three deviations above 0.02


def test_what_has_shifted_is_found_and_bad_parts_are_no_shift() -> None:
    rng = np.random.default_rng(1)
    calibration = calibrate("holdout", rng.normal(size=200), false_reject=0.02)
    shifted = test_window(calibration, rng.normal(1, 1, WINDOW))
    assert min(shifted[1:]) < 5e-5
    with_bad = np.concatenate([rng.normal(size=WINDOW - 3), [50.0] * 3])
    assert min(test_window(calibration, with_bad)[1:]) > 5e-5


ROW: dict[str, Any] = {
    **{"model": "parts", "image": "i" * 64, "image_kept": False, "source": "http", "name": "a.png", "part": None},
    **{"decision": "ok", "p_value": 0.4, "regions": [], "width": 64, "height": 64, "brightness": 0.5},
    **{"sharpness": 0.1, "milliseconds": 3.0, "batch": 1, "position": 0},
}


@pytest.fixture
def judged(client: TestClient) -> Callable[..., None]:
    """``judged(scores, at=0, part=None)`` puts verdicts into the store and has their windows tested."""
    here, clock = client.app.state.station, itertools.count(10_000)

    def record(scores: Any, part: str | None = None) -> None:
        digest = here.judges["parts"].model.digest
        row = ROW | {"digest": digest, "part": part}
        here.store.record([row | {"score": float(score), "at": float(next(clock))} for score in scores])
        watch_promise(here, "parts")

    return record


def test_a_promise_is_withdrawn_and_restored(client: TestClient, judged: Callable[..., None]) -> None:
    here, rng = client.app.state.station, np.random.default_rng(2)
    calibration = here.judges["parts"].model.inspector.calibration
    usual, limit = calibration.scores, calibration.threshold

    def said() -> dict[str, Any]:
        return client.get("/v1/models/parts/health").json()["promise"]

    judged(rng.choice(usual, WINDOW - 1))
    assert (said()["holds"], said()["parts"]) == (True, 0)
    judged([2 * limit] * 40, part="one part, many photographs")  # fills the window, and is one reject
    assert (said()["holds"], said()["parts"]) == (True, 0), "more photographs of it may come"
    judged([limit * 1.2])
    assert (said()["holds"], said()["parts"]) == (True, WINDOW)
    first = here.store.find(Search(limit=1))["inspections"][0]["id"]
    judged(rng.uniform(limit * 1.01, limit * 1.5, WINDOW - 1))
    withdrawn = said()
    assert withdrawn["holds"] is False and withdrawn["since"] == spoken_time(here.inspection(first).at)
    assert f"of {WINDOW} parts {WINDOW} were rejected" in withdrawn["sentence"]
    judged(rng.choice(usual, WINDOW))
    assert said()["holds"] is False  # a good window does not restore it: a person does
    assert 'blemish_promise_holds{model="parts"} 0.0' in client.get("/metrics").text
    assert client.post("/v1/models/parts/health/acknowledge").json()["holds"] is True
    kinds = [row["kind"] for row in client.get("/v1/audit").json()["rows"]]
    assert "promise withdrawn" in kinds and kinds[0] == "promise restored"


def test_no_photograph_of_a_part_that_people_called_bad_is_tested(
    client: TestClient, judged: Callable[..., None]
) -> None:
    here = client.app.state.station
    calibration = here.judges["parts"].model.inspector.calibration
    for number in range(12):
        judged([2 * calibration.threshold] * 2, part=f"bad {number}")
        newest = here.store.find(Search(limit=1))["inspections"][0]["id"]
        assert client.put(f"/v1/inspections/{newest}/said", json={"said": "bad"}).status_code == 200
    judged(np.random.default_rng(3).choice(calibration.scores, WINDOW))
    said = client.get("/v1/models/parts/health").json()["promise"]
    assert (said["holds"], said["parts"]) == (True, WINDOW)


def test_parts_of_many_photographs_are_tested(
    client: TestClient, judged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ROWS", 200)
    limit = client.app.state.station.judges["parts"].model.inspector.calibration.threshold
    for number in range(8):  # of which so many rows hold fewer than WINDOW
        judged([2 * limit] * 30, part=f"part {number}")
    said = client.get("/v1/models/parts/health").json()["promise"]
    assert said["holds"] is False and said["parts"] == 7 and "of 7 parts 7 were rejected" in said["sentence"]


def test_a_promise_is_in_the_metrics_while_its_model_is(client: TestClient) -> None:
    watch_promise(client.app.state.station, "parts")
    assert 'blemish_promise_holds{model="parts"} 1.0' in client.get("/metrics").text
    client.delete("/v1/models/parts")
    assert "blemish_promise_holds{" not in client.get("/metrics").text


def test_a_withdrawn_promise_never_restores_itself(client: TestClient) -> None:
    here = client.app.state.station
    digest = here.judges["parts"].model.digest
    told = {"model": "parts", "digest": digest, "since": 1.0, "until": 2.0, "parts": 50, "rejected": 9, "p_scores": 0.5}
    with here.store.write() as connection:
        for number in range(1200):
            row = told | {"last": number, "p_rejected": 1e-9 if number == 0 else 0.5, "alarm": number == 0}
            connection.execute(windows.insert(), row)
    said = client.get("/v1/models/parts/health").json()["promise"]
    assert (said["holds"], said["parts"]) == (False, 60_000)


def test_charts_have_limits_from_what_is_known_to_be_good(client: TestClient, judged: Callable[..., None]) -> None:
    judged(np.linspace(0.01, 0.1, 60))
    charts = client.get("/v1/models/parts/health?points=20").json()["charts"]
    assert [len(chart["points"]) for chart in charts.values()] == [20] * 3
    assert charts["score"]["points"][0][1] == pytest.approx(np.linspace(0.01, 0.1, 60)[:3].mean())
    assert charts["brightness"]["low"] == charts["brightness"]["high"] == charts["brightness"]["centre"] == 0.5


def test_a_report_counts_hours_and_lists_changes(client: TestClient, judged: Callable[..., None]) -> None:
    judged([0.1, 0.3, 0.2])
    client.put("/v1/inspections/2/said", json={"said": "bad"})
    report = client.get("/v1/report").json()
    assert report["counts"]["total"] == report["counts"]["bad_after_all"] + 2 == 3
    assert [hour["ok"] for hour in report["hours"]] == [3]
    assert [one["score"] for one in report["worst"]] == [0.3, 0.2, 0.1]
    assert [change["kind"] for change in report["changes"]] == ["model active", "said"]
    here = client.app.state.station
    other = ROW | {"model": "other", "digest": "o", "part": None, "at": 2.0}
    here.store.record([other | {"score": 9.0, "p_value": 0.9}, other | {"score": None}])
    worst = client.get("/v1/report").json()["worst"]  # by p-value first: each model has scores of its own
    assert [row["score"] for row in worst] == [None, 0.3, 0.2, 0.1, 9.0]
    assert client.get("/v1/report?day=2020-01-01").json()["changes"] == []
    assert "From the beginning to <time" in client.get("/report?until=2000-01-01T12:00:00Z").text
    lines = client.get(address := "/v1/report?format=csv&model=parts&min_score=0").text.splitlines()
    assert lines[0].startswith("id,at,model,path")
    assert client.get(address.replace("csv", "excel")).text.splitlines() == ["\ufeff" + lines[0], *lines[1:]]
    assert [line.split(",")[0] for line in lines[1:]] == ["3", "2", "1"]


def test_csv_holds_no_formulas(client: TestClient, good: bytes) -> None:
    files = {"a": ("=cmd()|x.png", good)}
    assert client.post("/v1/models/parts/inspect", files=files).status_code == 200
    assert ",'=cmd()|x.png," in client.get("/v1/report?format=csv").text


HOUR = 3600.0
KEPT = {  # settings, hours later, verdicts and photographs left: of ok, ok (the same file), reject, said bad
    "everything": ({}, 1000, 4, 3),
    "for a while": ({"keep": "P2D"}, 47, 4, 3),
    "no longer": ({"keep": "P2D"}, 49, 0, 0),
    "rejected, still young": ({"keep_images": "rejected"}, 0.5, 4, 3),
    "rejected": ({"keep_images": "rejected"}, 2, 4, 1),
    "rejected and labelled": ({"keep_images": "rejected,labelled"}, 2, 4, 2),
    "none": ({"keep_images": "none"}, 2, 4, 0),
    "half": ({"keep_images": "50%"}, 2, 4, 2),  # the 2nd and the 4th of these
    "a small disk": ({"max_disk": 20_000}, 0, 4, 2),
}
QUICK = ("no longer", "half", "rejected and labelled", "a small disk")


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in KEPT])
def test_what_is_kept(serve: Callable[..., TestClient], inspect: Any, part: Any, good: bytes, case: str) -> None:
    changes, hours, verdicts, photographs = KEPT[case]
    client = serve(**changes)
    here = client.app.state.station
    ids = [inspect(client, content)["id"] for content in (good, good, part(200, is_bad=True), part(101))]
    client.put(f"/v1/inspections/{ids[-1]}/said", json={"said": "bad"})
    now = here.inspection(ids[-1]).at + hours * HOUR
    apply_retention(here, now)
    assert len(here.store.find(Search())["inspections"]) == verdicts
    assert len([*here.pictures.sizes()]) == photographs
    assert here.store.verify()["whole"]
    for one in here.store.find(Search())["inspections"]:
        status = client.get(f"/v1/inspections/{one['id']}/image").status_code
        assert status == (200 if one["links"] else 410)
    told = [row for row in client.get("/v1/audit").json()["rows"] if row["kind"] == "deleted"]
    assert bool(told) == (verdicts + photographs < 7)


def test_what_a_hard_end_left_is_put_right(serve: Callable[..., TestClient], inspect: Any, good: bytes) -> None:
    client = serve()
    said = inspect(client, good)
    pictures = client.app.state.station.pictures
    client.close()
    pictures.path(said["image_sha256"]).rename(pictures.incoming / said["image_sha256"])  # committed, not yet moved
    (pictures.incoming / ("0" * 64)).write_bytes(b"written, never committed")
    (pictures.incoming / "next.part").write_bytes(b"half")
    again = serve()
    assert [*pictures.incoming.iterdir()] == []
    assert again.get(said["links"]["image"]).content == good
    assert again.get("/v1/audit").json()["rows"][0]["kind"] in ("hard end found", "model active")
