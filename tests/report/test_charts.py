"""Charts: a name keeps its colour, and lines go where their numbers say."""

import re

import pytest

from blemish.report.charts import SERIES, curves
from blemish.report.epochs import charts_over_epochs

NAMES = ["RD", "NKD", "FMAM", "RD++"]


def colours(chart: str) -> dict[str, str]:
    """Of each line, by the name in the legend."""
    drawn = re.findall(r"<polyline[^>]* stroke='([^']+)'", chart)
    named = dict(re.findall(r"fill='([^']+)'[^>]*>([^<]+)</text>", chart))
    return {named[colour]: colour for colour in drawn}


def test_a_method_keeps_its_colour_where_another_has_no_line():
    line = ([1, 2], [0.5, 0.7])
    whole = colours(curves(dict.fromkeys(NAMES, line), "t", "x", "y", order=NAMES))
    part = colours(curves({name: line for name in NAMES if name != "NKD"}, "t", "x", "y", order=NAMES))
    assert list(whole) == NAMES
    assert list(whole.values()) == list(SERIES[:4])
    assert part == {name: colour for name, colour in whole.items() if name != "NKD"}
    assert list(colours(curves({"kd": line, "ssot": line}, "t", "x", "y")).values()) == list(SERIES[:2])


def test_a_line_goes_from_its_first_to_its_last_number():
    chart = curves({"a": ([0, 1, 2], [0.0, float("nan"), 1.0])}, "t", "x", "y", (0.0, 1.0))
    (points,) = re.findall(r"<polyline points='([^']+)'", chart)
    (x0, y0), (x1, y1) = ([float(number) for number in point.split(",")] for point in points.split())
    assert x0 < x1
    assert y0 > y1, "higher numbers stand higher, and what is no number is left out"


@pytest.mark.parametrize("lacking", [0, 1])
def test_charts_over_epochs_colour_methods_by_the_recipe(lacking):
    row = {"followed": [{"epoch": 1, "aupro": 0.5}, {"epoch": 2, "aupro": 0.6}], "curves": {"t": {"loss": [2.0, 1.0]}}}
    names = [name for i, name in enumerate(NAMES[:3]) if i != lacking]
    charts = list(charts_over_epochs(dict.fromkeys(names, row), ("aupro",), NAMES))
    assert len(charts) == 2, "the figure and the loss"
    for chart in charts:
        assert colours(chart) == {name: SERIES[NAMES.index(name)] for name in names}
