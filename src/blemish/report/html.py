"""Reports from templates: pages are one file that opens anywhere, prints well, and asks nothing of the network.

A template says what a report holds, by the macros of ``html.j2`` or ``markdown.j2``. All text of a page is escaped.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from blemish.inspection.overlay import RAMP, Scale, data_uri
from blemish.run import written_atomically


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
