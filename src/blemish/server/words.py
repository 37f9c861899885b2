"""How the pages say things: times with their zone, numbers, verdicts in a sentence; and the templates they stand in."""

import hashlib
import math
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from blemish import __version__

STATIC = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "static").iterdir())}
DIGEST = hashlib.sha256(b"".join(STATIC.values())).hexdigest()[:12]  # in addresses: what changed is loaded anew
HARDLY = 1e-3  # a p-value so small that the good parts, which are mostly fewer, say no more of it
WORDS = {"ok": "OK", "review": "Review", "reject": "Reject", None: "No decision"}


@cache
def environment() -> Environment:
    """The templates; all text is escaped, and what is None is not shown."""
    own = Environment(loader=PackageLoader("blemish.server"), autoescape=True, undefined=StrictUndefined)
    own.trim_blocks = own.lstrip_blocks = True
    own.finalize = lambda value: "" if value is None else value
    own.filters |= {"local": local, "number": number, "address": address}
    own.globals |= {"static": f"/static/{DIGEST}", "version": __version__, "say": say, "place": place, "word": WORDS}
    return own


def local(at: float | str | datetime, form: str = "") -> str:
    """A time, of seconds since 1970 or ISO 8601, with the station's zone, and with its date unless that is today."""
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    here = (datetime.fromtimestamp(at) if isinstance(at, int | float) else at).astimezone()
    is_today = here.date() == datetime.now().astimezone().date()
    return here.strftime(form or ("%H:%M:%S %Z" if is_today else "%Y-%m-%d %H:%M:%S %Z"))


def number(value: float | None, digits: int = 4) -> str:
    """Short, with commas between thousands; a dash for what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def address(path: str, **query: Any) -> str:
    """A path with those of ``query`` that are something."""
    kept = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path


def place(region: Mapping[str, Any], width: int, height: int) -> str:
    """Where in a picture, in words."""
    x, y = region["centre"][0] / width, region["centre"][1] / height
    row, column = ("top ", "", "bottom ")[min(2, int(3 * y))], ("left", "", "right")[min(2, int(3 * x))]
    return f"at the {row}{column}".rstrip() if row or column else "in the middle"


def say(shown: Mapping[str, Any]) -> str:
    """What an inspection says, in a sentence or two."""
    count, p_value = len(shown["regions"]), shown["p_value"]
    words = {0: "No region stands out", 1: "1 region stands out"}.get(count, f"{count} regions stand out")
    if count:
        words += f"{', the worst' * (count > 1)} {place(shown['regions'][0], shown['width'], shown['height'])}"
    if p_value is None:
        return words + ("." if shown["score"] is not None else ". It has no score: the model could not judge it.")
    if p_value > 0.2:
        return f"{words}. It looks like many good parts."
    if p_value < HARDLY:
        return f"{words}. Hardly any good part looks as strange."
    return f"{words}. About 1 good part in {number(round(1 / p_value))} looks as strange."


def shift_around(at: datetime, hours: tuple[int, ...]) -> tuple[datetime, datetime]:
    """When the shift of a moment begins and ends; days on which clocks change have shorter and longer ones."""
    days = (at.date() + timedelta(days=shift) for shift in (-1, 0, 1))
    edges = sorted(datetime.combine(day, time(hour)).astimezone() for day in days for hour in hours)
    return max(edge for edge in edges if edge <= at), min(edge for edge in edges if edge > at)
