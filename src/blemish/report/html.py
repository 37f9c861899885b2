"""The frame of every page: one file that opens anywhere, prints well, and asks nothing of the network.

A page is a list of blocks, which ``page.html.j2`` turns into markup. All text is escaped there: a file name may hold
anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from blemish.inspection.overlay import RAMP, Scale, data_uri
from blemish.report.charts import svg
from blemish.run import written_atomically

Block = dict[str, Any]
"""``kind`` of block (a branch of the template) and what it shows."""


def block(kind: str, content: object, **details: object) -> Block:
    """A part of a page; text unless said otherwise.

    Kinds: ``heading`` (with ``level``, ``anchor``), ``paragraph`` (``css``), ``promise``, ``warning``, ``commands``,
    ``bullets`` (texts), ``contents`` (an anchor and a text each), ``tables`` (side by side), ``charts`` (figures),
    ``pictures`` (``css``: empty, ``wide`` or ``whole``), ``legend``.
    """
    return {"kind": kind, "content": content, "css": "", "words": (), **details}


def heading(text: str, level: int = 2, anchor: str = "") -> Block:
    """A heading; ``anchor`` lets others link to it."""
    return block("heading", text, level=level, anchor=anchor)


def table(header: Iterable[str], rows: Iterable[Iterable[object]], words: Iterable[int] = ()) -> Block:
    """A table of plain values; ``words`` are the columns that hold sentences."""
    return block("tables", [(tuple(header), list(rows))], words=frozenset(words))


def picture(image: Image.Image, title: str, caption: str, css: str = "", lossy: bool = False) -> Block:
    """A picture with two lines under it; ``lossy`` makes a page of many photographs five times smaller."""
    source = data_uri(image.convert("RGB"), "JPEG", quality=88, subsampling=0) if lossy else data_uri(image)
    return {"source": source, "title": title, "caption": caption, "css": css}


def legend(scale: Scale, sentence: str, ticks: Iterable[tuple[float, str]] = (), truth: bool = False) -> Block:
    """What the colours and lines on pictures mean; of the dashed line too, where there is a ``truth``.

    ``ticks`` are map values and what each means; those outside the scale are left out. Without any, its ends are named.
    """
    shown = [tick for tick in ticks if scale.threshold <= tick[0] <= scale.top]
    shown = shown or [(scale.threshold, f"{scale.threshold:.4g}"), (scale.top, f"{scale.top:.4g} and above")]
    colours = ", ".join(f"rgba({red},{green},{blue},{a / 255:.2f})" for red, green, blue, a in RAMP[::51].tolist())
    marks = [(round(100 * (value - scale.threshold) / (scale.top - scale.threshold)), text) for value, text in shown]
    return block("legend", sentence, colours=colours, marks=marks, truth=truth)


def page(title: str, blocks: Iterable[Block]) -> str:
    """A whole HTML document."""
    style = files("blemish.report").joinpath("page.css").read_text(encoding="utf-8")
    return _environment().get_template("page.html.j2").render(title=title, blocks=blocks, style=Markup(style))


def write_page(path: Path, title: str, blocks: Iterable[Block]) -> Path:
    """Write the document, whole or not at all; its path."""
    with written_atomically(path) as temporary:
        temporary.write_text(page(title, blocks), encoding="utf-8")
    return path


@cache
def _environment() -> Environment:
    loader = PackageLoader("blemish.report", package_path="")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = lambda figure: Markup(svg(figure))
    return environment
