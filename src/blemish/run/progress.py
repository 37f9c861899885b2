"""Where long work reports to: nothing, plain lines for logs, or a bar for a person."""

import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from pathlib import Path
from typing import Protocol, TypeVar

from blemish.errors import BlemishWarning

T = TypeVar("T")
Title = str | Callable[[], str]  # what is under way; a function where it changes, such as a training's epoch and loss


class Progress(Protocol):
    """Where long work reports to; by itself nowhere. Never standard output: that is for results."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on, reporting how far along and how long still."""
        yield from items

    def note(self, text: str) -> None:
        """Say one thing once: a choice with its reason, a warning."""
        return


class Silent(Progress):
    """Reports nothing: for libraries and tests."""


class Warnings(Silent):
    """Reports nothing but what changes the result, warnings and skipped images: for ``--quiet``."""

    def note(self, text: str) -> None:
        if text.startswith(("warning:", "skipped:")):
            self.warn(text)

    def warn(self, text: str) -> None:
        sys.stderr.write(printable(text) + "\n")


class PythonWarnings(Warnings):
    """The same as Python's own warnings, of the line that called Blemish: for programs."""

    def warn(self, text: str) -> None:
        package, frame, level = str(Path(__file__).parents[1]), sys._getframe(), 1
        while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
            frame, level = frame.f_back, level + 1
        warnings.warn(text.removeprefix("warning: "), BlemishWarning, stacklevel=level)


class Lines:
    """Plain lines on standard error, for logs: every ten seconds, and at the end."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        total = length_hint(items) if total is None else total
        began = said = time.monotonic()
        done = 0
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - said >= 10:
                left = f" of {total}, about {(now - began) / done * (total - done):.0f} s left" if total else ""
                self.note(f"{_text(title)}: {done}{left}")
                said = now
        self.note(f"{_text(title)}: {done} done in {time.monotonic() - began:.1f} s")

    def note(self, text: str) -> None:
        sys.stderr.write(printable(text) + "\n")


class Bar(Lines):
    """A bar with the time left, when a person is watching."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        from rich import progress
        from rich.console import Console

        total = length_hint(items) if total is None else total
        text, left = progress.TextColumn("{task.description}", markup=False), progress.TimeRemainingColumn
        columns = (text, progress.BarColumn(), progress.MofNCompleteColumn(), left(elapsed_when_finished=True))
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(_text(title), total=total or None)
            said = time.monotonic()
            for item in items:
                yield item
                bar.advance(task)
                if time.monotonic() - said >= 0.25:  # the text may have to wait for a GPU
                    bar.update(task, description=_text(title))
                    said = time.monotonic()
            bar.update(task, description=_text(title))

    def note(self, text: str) -> None:
        """Warnings in red, unless the terminal knows no colours or ``NO_COLOR`` is set."""
        from rich.console import Console
        from rich.text import Text

        style = "bold red" if text.startswith("warning:") else ""
        Console(stderr=True).print(Text(printable(text), style), soft_wrap=True)


def printable(text: str) -> str:
    """``text`` without what would steer a terminal or cannot be encoded, such as names of files may hold."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], text)


def _text(title: Title) -> str:
    return printable(title if isinstance(title, str) else title())
