"""What pages say and draw, against words and numbers worked out by hand."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [server] is not installed")

import blemish.server
from blemish.inspection.calibration import Calibration, calibrate
from blemish.server import charts
from blemish.server.pages import _inside, _small
from blemish.server.words import address, local, number, place, say, shift_around


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def calibrated() -> Calibration:
    """99 good parts with scores 1 to 99: at 5 % parts above 95 are rejected, at 15 % those above 85 reviewed."""
    return calibrate("holdout", np.arange(1.0, 100.0), false_reject=0.05, review=0.10)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (float("nan"), "–"), (0.0123456, "0.01235"), (860.44, "860.4"), (12_345.6, "12,346"), (0, "0")],
)
def test_numbers_are_short(value: float | None, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("centre", "words"),
    [
        ((150, 50), "in the middle"),
        ((10, 10), "at the top left"),
        ((290, 50), "at the right"),
        ((150, 99), "at the bottom"),
    ],
)
def test_places_are_thirds_of_the_picture(centre: tuple[int, int], words: str) -> None:
    assert place({"centre": centre}, width=300, height=100) == words


def test_a_verdict_is_a_sentence() -> None:
    region = {"centre": (5, 5)}
    shown: dict[str, Any] = {"regions": [region, region], "width": 100, "height": 100, "p_value": 0.004, "score": 7.0}
    assert say(shown) == "2 regions stand out, the worst at the top left. About 1 good part in 250 looks as strange."
    for p_value in (0.0, 5e-324, 7e-70):  # of scores that are not finite, or far beyond all known ones
        assert say({**shown, "regions": [], "p_value": p_value}).endswith(". Hardly any good part looks as strange.")
    assert say({**shown, "regions": [], "p_value": 0.5}) == "No region stands out. It looks like many good parts."
    assert say({**shown, "regions": [], "p_value": None, "score": None}).endswith("the model could not judge it.")


def test_times_carry_their_zone_and_shifts_know_summer_time(in_berlin: None) -> None:
    assert local("2026-07-01T12:00:00+00:00") == "2026-07-01 14:00:00 CEST"
    # Clocks went back an hour in the night to 25 October 2026: that shift lasted nine hours.
    night = datetime(2026, 10, 25, 2, 30, tzinfo=UTC).astimezone()
    began, ends = shift_around(night, (6, 14, 22))
    assert (began.isoformat(), ends.isoformat()) == ("2026-10-24T22:00:00+02:00", "2026-10-25T06:00:00+01:00")
    assert (ends - began).total_seconds() == 9 * 3600


def test_the_page_stays_small_and_asks_nothing_of_the_network() -> None:
    server = Path(blemish.server.__file__).parent
    files = [path for folder in ("templates", "static") for path in (server / folder).iterdir()]
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in files}
    assert sum(map(len, lines.values())) <= 1200
    assert sum(len(text) for path, text in lines.items() if path.suffix == ".js") <= 600
    outside = [line for text in lines.values() for line in text if "://" in line and "www.w3.org/2000/svg" not in line]
    assert outside == []


def test_thumbnails_are_small_and_upright() -> None:
    """A JPEG takes another way than a PNG; one turned by its EXIF stands upright."""
    wide, files = Image.new("RGB", (1600, 400), (200, 30, 30)), {}
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, options in (("PNG", {}), ("JPEG", {}), ("turned", {"format": "JPEG", "exif": turned})):
        files[name] = io.BytesIO()
        wide.save(files[name], **{"format": name, **options})
    sizes = {name: _small(file.getvalue()).size for name, file in files.items()}
    assert sizes == {"PNG": (200, 50), "JPEG": (200, 50), "turned": (50, 200)}
    assert np.abs(np.asarray(_small(files["JPEG"].getvalue())) - np.array([200, 30, 30.0])).max() < 6
    sloppy = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x11B, 2, 2, b"7")  # a number as text
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + sloppy + bytes(4)
    plain = files["JPEG"].getvalue()
    marked = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert _small(marked).size == (50, 200)


def test_addresses_leave_out_what_is_not_asked_for() -> None:
    assert address("/history", model=None, part="a&b", said="") == "/history?part=a%26b"
    wrong = ("https://elsewhere.example", "//elsewhere.example", "/\\elsewhere.example", "/a\r\nb", "")
    assert [_inside(target) for target in wrong] == ["/"] * 5
    assert _inside("/history?part=7") == "/history?part=7"


def test_the_gauge_puts_scores_and_limits_on_one_line() -> None:
    # Good parts reach from 1 to 99 with 50 in the middle: the line from 1 - 0.15 * 49 to 99 + 1.5 * 49.
    low, high = 1 - 0.15 * 49, 99 + 1.5 * 49
    expected = {
        name: round(100 * (at - low) / (high - low), 2) for name, at in (("score", 95), ("review", 85), ("reject", 95))
    }
    assert charts.gauge(95.0, calibrated()) == expected
    assert [charts.gauge(score, calibrated())["score"] for score in (-1e9, None, 1e9)] == [0, 100, 100]  # type: ignore[index]
    assert charts.gauge(1.0, Calibration()) is None


def test_a_histogram_counts_everything_once() -> None:
    past = [
        {"score": score, "said": said} for score, said in ((50.0, None), (97.0, "bad"), (1e9, "good"), (None, None))
    ]
    drawn = charts.histogram(calibrated(), past, {"threshold": 95.0, "review_threshold": 85.0})
    assert drawn is not None and drawn["counted"] == {"good": 99, "judged": 4}
    judged = [bar for bar in drawn["bars"] if bar["side"] == "judged"]
    # Two alone; the two beyond the right end share the last bar, and so the greatest height.
    assert len(judged) == 3 and judged[-1]["x"] == round(960 * 63 / 64 + 1, 1)
    assert judged[0]["height"] == pytest.approx(judged[-1]["height"] / np.sqrt(2), abs=0.1)
    assert all(bar["y"] + bar["height"] == pytest.approx(129) for bar in drawn["bars"] if bar["side"] == "good")
    assert [mark["said"] for mark in drawn["said"]] == ["bad", "good"]
    assert [line["name"] for line in drawn["lines"]] == ["review above", "reject above"]
    assert charts.histogram(Calibration(), past, {}) is None


def test_a_control_chart_marks_what_leaves_its_limits(in_berlin: None) -> None:
    points = [
        ("2026-11-26T12:00:00+00:00", 1.0, 1),
        ("2026-11-26T13:00:00+00:00", 5.0, 2),
        ("2026-11-26T15:00:00+00:00", 3.0, 3),
    ]
    drawn = charts.control_chart({"points": points, "centre": 2.0, "low": 0.0, "high": 4.0, "each": 1})
    assert drawn is not None and [point["out"] for point in drawn["points"]] == [False, True, False]
    assert [point["x"] for point in drawn["points"]] == [0, round(520 / 3, 1), 520]
    # From 0 to 5 and 8 % of that beyond either end: 5 lies 0.4 below the top of 5.8 in 180.
    assert drawn["points"][1]["y"] == round(180 * 0.4 / 5.8, 1)
    assert [tick["text"] for tick in drawn["ticks"]] == ["13:00", "14:00", "15:00", "16:00"] and drawn["zone"] == "CET"
    narrow = [(at, 0.0722558 + 1e-6 * i, number) for i, (at, _, number) in enumerate(points)]
    drawn = charts.control_chart({"points": narrow, "centre": None, "low": None, "high": None, "each": 1})
    assert drawn is not None
    assert len({side["text"] for side in drawn["sides"]}) == len(drawn["sides"]) > 1
    assert charts.control_chart({"points": [], "centre": None, "low": None, "high": None, "each": 1}) is None
