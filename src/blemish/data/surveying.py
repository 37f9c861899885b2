"""What is odd about a set's images before any is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from blemish.data.images import Header, read_header
from blemish.data.samples import Sample
from blemish.errors import ImageError

_SHOWN = 3
_Value = TypeVar("_Value", bound=Hashable)


def survey(samples: Sequence[Sample]) -> list[str]:
    """Warnings, one line each, for images whose size, aspect or bit depth differ from the rest.

    Only headers are read. A file whose header cannot be read is left to whoever decodes it. Different sizes of one
    aspect are told apart from different aspects, which stretching distorts.
    """
    headers: dict[Path, Header] = {}
    for sample in samples:
        try:
            headers[sample.path] = read_header(sample.path)
        except ImageError:
            continue
    bits = {path: header.bits for path, header in headers.items()}
    sizes = {path: header.size for path, header in headers.items()}
    aspects = {path: round(width / height, 1) for path, (height, width) in sizes.items()}
    return _differing(bits, "bit depths", lambda depth: f"{depth}-bit") + (
        _differing(aspects, "aspects", lambda aspect: f"{aspect:.1f} times as wide as high")
        or _differing(sizes, "sizes", lambda size: f"{size[1]} x {size[0]} pixels")
    )


def _differing(values: Mapping[Path, _Value], what: str, say: Callable[[_Value], str]) -> list[str]:
    """One line on the images whose value is not the usual one; none where all are alike."""
    numbers = Counter(values.values())
    if len(numbers) < 2:
        return []
    usual, times = numbers.most_common(1)[0]
    if 2 * times <= len(values):
        shown = ", ".join(say(value) for value, _ in numbers.most_common(_SHOWN))
        return [f"the {len(values)} images have {len(numbers)} different {what}, such as {shown}"]
    odd = [path for path, value in values.items() if value != usual]
    named = ", ".join(path.name for path in odd[:_SHOWN]) + " ..." * (len(odd) > _SHOWN)
    verb = "is" if len(odd) == 1 else "are"
    others = {values[path] for path in odd}
    if len(others) == 1:
        return [f"{len(odd)} of {len(values)} images {verb} {say(others.pop())}, the rest {say(usual)}: {named}"]
    return [f"{len(odd)} of {len(values)} images {verb} not {say(usual)} as the rest: {named}"]
