"""The page of ``inspect -o`` and ``evaluate -o``: what it counts, shows, hides, and how much of it."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from blemish.data.readers import find_images
from blemish.inspection.calibration import calibrate
from blemish.inspection.inspector import Inspector
from blemish.inspection.output import summary
from blemish.inspection.overlay import Scale
from blemish.inspection.verdict import Verdict
from blemish.report.html import histogram, limits_of
from blemish.report.inspection import Gallery, write_inspection


def verdict(score: float, decision: str = "ok", name: str = "a.png") -> Verdict:
    pixels, heat = np.full((40, 50, 3), 120, np.uint8), np.full((40, 50), 0.5, np.float32)
    heat[10:20, 10:20] = np.nan_to_num(score, nan=5.0)
    scale = Scale(2.0, 4.0)
    return Verdict(name, score, 0.5, decision, (), (40, 50), scale, lambda: pixels, lambda: heat)


@pytest.fixture
def inspector() -> Inspector:
    """Its calibration alone is asked for."""
    calibration = calibrate("holdout", np.arange(40) / 40, max_map_values=np.ones(40))
    return Inspector(method=None, name="patchcore", preparation=None, calibration=calibration)


def test_the_line_counts_every_decision() -> None:
    assert summary(Counter(ok=44, review=6)) == "50 judged: 44 ok, 6 review, 0 reject"
    assert summary(Counter(ok=1), 2) == "1 judged: 1 ok, 0 review, 0 reject; 2 could not be judged"
    assert summary(Counter({"": 3})) == "3 judged, without decisions"
    assert summary(Counter(), 1) == "0 judged; 1 could not be judged"


def test_the_worst_are_shown_first_and_no_more_than_so_many(inspector: Inspector, tmp_path) -> None:
    gallery = Gallery(tmp_path, inspector, shown=3)
    scores = [0.1, 9.0, float("nan"), 3.0, 0.2, 5.0]
    for score in scores:
        seen = verdict(score, "ok" if score < 1 else "reject", f"<b>{score}.png")
        gallery.add(seen, seen.overlay(), f"{score} ü.png")
    page = write_inspection(gallery, Counter(ok=2, reject=4), [("lost.png", "is damaged")])
    text = page.read_text()
    assert re.findall(r"&lt;b&gt;(\S+)\.png</b>", text) == ["nan", "9.0", "5.0"]
    assert "The 3 worst are shown; 3 more are in the JSON lines." in text
    assert "<h1>6 judged: 2 ok, 0 review, 4 reject; 1 could not be judged</h1>" in text
    assert "lost.png" in text and "<b>nan" not in text
    assert 'href="9.0%20%C3%BC.png"' in text
    assert "show-reject:checked ~ div figure:not(.reject)" in text and "show-review" not in text
    pictures = sorted(path.name for path in (tmp_path / "page").iterdir())
    assert [name for name in pictures if "map" not in name] == ["0001.jpg", "0002.jpg", "0003.jpg"]
    assert {f'src="page/{name}"' for name in pictures} == set(re.findall(r'src="page/[^"]+"', text))
    with pytest.raises(Exception, match="no image in"):  # the day after, none of them is taken for a part
        find_images([tmp_path])


def test_what_nothing_is_coloured_on_shows_its_map_on_demand(inspector: Inspector, tmp_path) -> None:
    gallery = Gallery(tmp_path, inspector)
    seen = verdict(1.0)  # the threshold is 2, and the map's colours are to start at 2 - (4 - 2) = 0
    gallery.add(seen, seen.overlay(), "a.png")
    assert (
        "<details><summary>where it is strangest</summary>" in write_inspection(gallery, Counter(ok=1), []).read_text()
    )
    with Image.open(tmp_path / "page" / "0001-map.jpg") as image:
        coloured = np.asarray(image.resize((50, 40)), int)
    inside, outside = coloured[12:18, 12:18].mean((0, 1)), coloured[30:, 30:].mean((0, 1))
    with Image.open(tmp_path / "page" / "0001.jpg") as image:
        plain = np.asarray(image, int)
    assert np.ptp(plain) <= 2, "nothing of an ok part is coloured by itself"
    assert np.ptp(inside) > np.ptp(outside) > 10


def test_bars_and_marks_lie_where_the_scores_do() -> None:
    found = histogram([0.0, 1.0, 1.0, float("inf")], [4.0], {"reject above": 2.0}, ("good", "bad"))
    bars = {round(x): (up, down) for x, _, up, down in found["bars"] if up or down}
    # 40 bars from 0 to 4: 1.0 is at a quarter; the tallest bar, of two, is 38 high, from the middle at 50.
    assert bars == {0: (19.0, 0.0), 25: (38.0, 0.0), 98: (0.0, 19.0)}
    assert (found["marks"], found["tallest"], found["ends"]) == ([(50.0, "reject above")], 2, ("0", "4"))
    assert histogram([], [], {}, ("images", ""))["tallest"] == 1


def test_a_model_without_a_threshold_has_no_limits() -> None:
    assert limits_of(Inspector(method=None, name="patchcore", preparation=None)) == {}
