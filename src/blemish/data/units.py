"""Lengths and areas as people write them: ``0.05mm``, ``3px``, ``0.2mm2``."""

import math
import re

from blemish.errors import ConfigError

_MM = {"um": 0.001, "µm": 0.001, "mm": 1.0, "cm": 10.0}


def parse_pixel(text: str) -> float:
    """How many millimetres of the part a pixel is wide, of ``0.05mm``, ``50um`` or ``0.005cm``."""
    value, unit = _split(text, "", "a pixel's width such as 0.05mm or 50um")
    if unit is None or value == 0:
        raise ConfigError(f"{text!r} is not how wide a pixel is: a length above 0 with its unit, such as 0.05mm")
    return value * _MM[unit]


def in_pixels(text: str, pixel: float | None, power: int = 1) -> float:
    """A length (``power`` 1) or an area (2) in pixels: ``3``, ``3px``, or ``0.3mm`` and ``0.2mm2`` given the pixel."""
    needed = "a length such as 6px or 0.3mm" if power == 1 else "an area such as 30px or 0.2mm2"
    value, unit = _split(text, "" if power == 1 else "[2²]", needed)
    if unit is None:
        return value
    if pixel is None:
        raise ConfigError(f"{text!r} needs to know how wide a pixel is: give --pixel, such as --pixel 0.05mm, too")
    return value * (_MM[unit] / pixel) ** power


def _split(text: str, power: str, needed: str) -> tuple[float, str | None]:
    """Number and unit, None for pixels; a ConfigError that says what is ``needed`` for anything else."""
    parts = re.fullmatch(rf"\s*(\d+\.?\d*|\.\d+)\s*(?:px|(um|µm|mm|cm){power})?\s*", text.replace("μ", "µ"))
    if parts is None or not math.isfinite(float(parts[1])):
        raise ConfigError(f"{text!r} is not {needed}: units are px, um, mm and cm{', squared' if power else ''}")
    return float(parts[1]), parts[2]
