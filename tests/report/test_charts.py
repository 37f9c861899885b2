"""Charts: a name keeps its colour and marker, and lines go where their numbers say."""

import re

import pytest

from blemish.report.bench import charts_over_epochs
from blemish.report.charts import MARKERS, SERIES, curves, dot_plot, svg

NAMES = ["RD", "NKD", "FMAM", "RD++"]
LINE = ([1, 2], [0.5, 0.7])


def looks(chart):
    """Colour and marker of each line by its name; the legend says the same."""
    drawn = {line.get_label(): (line.get_color(), line.get_marker()) for line in chart.axes[0].lines}
    (legend,) = chart.legends
    handles = zip(legend.get_texts(), legend.legend_handles)
    assert drawn.items() <= {t.get_text(): (h.get_color(), h.get_marker()) for t, h in handles}.items()
    return drawn


def test_a_method_keeps_its_look_where_another_has_no_line():
    whole = looks(curves(dict.fromkeys(NAMES, LINE), "t", "x", "y", order=NAMES))
    part = looks(curves({name: LINE for name in NAMES if name != "NKD"}, "t", "x", "y", order=NAMES))
    assert whole == dict(zip(NAMES, zip(SERIES, MARKERS)))
    assert part == {name: look for name, look in whole.items() if name != "NKD"}
    many = looks(curves({str(i): LINE for i in range(len(SERIES))}, "t", "x", "y"))
    assert list(many.values()) == list(zip(SERIES, MARKERS)), "as many as there are colours differ"


def test_what_is_no_number_is_left_out():
    (line,) = curves({"a": ([0, 1, 2], [0.0, float("nan"), 1.0])}, "t", "x", "y").axes[0].lines
    assert line.get_xydata().tolist() == [[0, 0], [2, 1]]


def test_dots_and_their_spread():
    chart = dot_plot({"a": {"RD": (0.9, 0.1)}, "b": {"RD": (0.8, 0.0), "NKD": (0.5, 0.2)}}, ["RD", "NKD"], "t", "x")
    assert [line.get_xdata()[0] for line in chart.axes[0].lines] == [0.9, 0.8, 0.5]
    assert [text.get_text() for text in chart.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_long_name_leaves_the_dots_room():
    """What is wrong with a layout matplotlib says by a warning, which tests take for an error."""
    name = "mvtec_screw (resplit_alt), " + " + ".join(["manipulated_front"] * 6) + " known"
    chart = dot_plot({name: {"RD": (0.9, 0.1)}}, ["RD"], "t", "x")
    assert svg(chart)
    assert chart.axes[0].get_position().width > 0.4
    (label,) = (text.get_text() for text in chart.axes[0].get_yticklabels())
    assert label.startswith("mvtec_screw") and label.endswith("...") and max(map(len, label.splitlines())) <= 36


def test_markup_is_text_that_is_escaped_and_the_same_each_time():
    text, again = (svg(curves({"<b> $1$": LINE}, "A & B", "x", "y")) for _ in range(2))
    assert text == again
    assert text.startswith('<svg role="img" aria-label="A &amp; B"')
    assert "&lt;b&gt; $1$" in text and "<b>" not in text
    assert not re.search(r"(?:href|src)=\"(?!#)", text), "nothing is loaded"


@pytest.mark.parametrize("lacking", [0, 1])
def test_charts_over_epochs_colour_methods_by_the_recipe(lacking):
    row = {"followed": [{"epoch": 1, "aupro": 0.5}, {"epoch": 2, "aupro": 0.6}], "curves": {"t": {"loss": [2.0, 1.0]}}}
    names = [name for i, name in enumerate(NAMES[:3]) if i != lacking]
    charts = list(charts_over_epochs(dict.fromkeys(names, row), ("aupro",), NAMES))
    assert [chart.axes[0].get_title(loc="left") for chart in charts] == ["AU-PRO .30", "Loss"]
    for chart in charts:
        assert looks(chart) == {name: (SERIES[NAMES.index(name)], MARKERS[NAMES.index(name)]) for name in names}
