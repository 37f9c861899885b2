"""Reports from templates: pages are one file that opens anywhere, prints well, and asks nothing of the network.

A template says what a report holds, by the macros of ``html.j2`` or ``markdown.j2``. All text of a page is escaped.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from blemish.inspection.judge import Judge
from blemish.inspection.overlay import RAMP, Scale, data_uri
from blemish.run import written_atomically

BINS = 40  # bars of a histogram


def write_page(path: Path, title: str, template: str, beside: bool = False, **context: Any) -> Path:
    """Write a whole HTML document, or nothing; its path. ``beside``: it may show pictures that lie beside it."""
    content = environment(True).get_template(template).render(macros="html.j2", **context)
    document = environment(True).get_template("page.j2").render(title=title, content=Markup(content), beside=beside)
    return _write(path, document)


def write_markdown(path: Path, template: str, **context: Any) -> Path:
    """Write the words and tables of a report; its path."""
    content = environment(False).get_template(template).render(macros="markdown.j2", **context)
    return _write(path, re.sub(r"\n{3,}", "\n\n", content).strip() + "\n")


def picture(image: Image.Image, title: str, caption: str, css: str = "", lossy: bool = False) -> dict[str, str]:
    """A picture with two lines under it; ``lossy`` makes a page of many photographs five times smaller."""
    source = data_uri(image.convert("RGB"), "JPEG", quality=88, subsampling=0) if lossy else data_uri(image)
    return {"source": source, "title": title, "caption": caption, "css": css}


def colour_scale(scale: Scale, ticks: Iterable[tuple[float, str]] = ()) -> dict[str, Any]:
    """What a legend shows of a scale; ``ticks`` are map values and what each means, the scale's ends unless on it."""
    shown = [tick for tick in ticks if scale.threshold <= tick[0] <= scale.top]
    shown = shown or [(scale.threshold, f"{scale.threshold:.4g}"), (scale.top, f"{scale.top:.4g} and above")]
    colours = ", ".join(f"rgba({red},{green},{blue},{a / 255:.2f})" for red, green, blue, a in RAMP[::51].tolist())
    marks = [(round(100 * (value - scale.threshold) / (scale.top - scale.threshold)), text) for value, text in shown]
    return {"colours": colours, "marks": marks}


def limits_of(inspector: Judge) -> dict[str, float]:
    """The finite thresholds of a model, by name."""
    calibration = inspector.calibration
    limits = {"reject above": calibration.threshold, "review above": calibration.review_threshold}
    return {name: value for name, value in limits.items() if value is not None and math.isfinite(value)}


def histogram(
    above: Iterable[float], below: Iterable[float], marks: Mapping[str, float], names: tuple[str, str] = ("good", "bad")
) -> dict[str, Any]:
    """Scores as bars up and down, in a picture of 100 by 100, with named lines; what ``histogram`` of html.j2 takes."""
    values = [np.array([*some], float) for some in (above, below, marks.values())]
    sides = [some[np.isfinite(some)] for some in values]
    joined, sides = np.concatenate(sides), sides[:2]
    edges = np.histogram_bin_edges(joined if joined.size else [0.0, 1.0], BINS)
    low, width = float(edges[0]), float(edges[-1] - edges[0])
    counts = [np.histogram(values, edges)[0] for values in sides]
    tallest, middle = max(1, *(int(side.max()) for side in counts)), 50 if names[1] else 92
    height = [side * (middle - 12) / tallest for side in counts]
    return {
        "names": names,
        "ends": (f"{low:.4g}", f"{low + width:.4g}"),
        "tallest": tallest,
        "middle": middle,
        "bars": [(100 * i / BINS, 90 / BINS, float(up), float(down)) for i, (up, down) in enumerate(zip(*height))],
        "marks": [(round(100 * (value - low) / width, 2), name) for name, value in marks.items()],
    }


def _write(path: Path, text: str) -> Path:
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


@cache
def environment(escape: bool) -> Environment:
    """Where templates are found; what draws charts or knows the bench is imported by those that use it alone."""

    def imported(module: str, name: str) -> Any:
        return getattr(import_module(f"blemish.{module}"), name)

    environment = Environment(
        loader=PackageLoader("blemish.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": lambda figure: Markup(imported("report.charts", "svg")(figure)),
        "spoken": lambda seconds: str(imported("bench.eta", "spoken")(seconds)),
        "signed": lambda value: str(imported("bench.summary", "signed")(value)),
        "metric": lambda name: imported("bench.recipe", "METRICS")[name],
    }
    return environment
