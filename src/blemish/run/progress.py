"""Where long work reports to: nothing, plain lines for logs, or a bar for a person."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")
Title = str | Callable[[], str]
"""What is under way; a function where it changes, such as a training's epoch and loss."""


class Progress(Protocol):
    """Where long work reports to. Never standard output: that is for results."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on, reporting how far along and how long still."""

    def note(self, text: str) -> None:
        """Say one thing once: a choice with its reason, a warning."""


class Silent:
    """Reports nothing: for libraries and tests."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on."""
        yield from items

    def note(self, text: str) -> None:
        """Say nothing."""


class Warnings(Silent):
    """Reports nothing but what changes the result: for ``--quiet``."""

    def note(self, text: str) -> None:
        """Write a warning, or which image was skipped, to standard error."""
        if text.startswith(("warning:", "skipped:")):
            sys.stderr.write(text + "\n")


class Lines:
    """Plain lines on standard error, for logs: start, every ten seconds, end."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on, with a line now and then."""
        total = total if total is not None else _length(items)
        began = said = time.monotonic()
        done = 0
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - said >= 10:
                left = f", about {(now - began) / done * (total - done):.0f} s left" if total else ""
                self.note(f"{caption(title)}: {done}{f' of {total}' if total else ''}{left}")
                said = now
        self.note(f"{caption(title)}: {done} done in {time.monotonic() - began:.1f} s")

    def note(self, text: str) -> None:
        """Write one line to standard error."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Bar(Lines):
    """A bar with the time left, when a person is watching. Final: only ``track`` differs from ``Lines``."""

    def track(self, items: Iterable[T], title: Title, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on under a bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        total = total if total is not None else _length(items)
        with RichProgress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(caption(title), total=total)
            said = time.monotonic()
            for item in items:
                yield item
                bar.advance(task)
                if time.monotonic() - said >= 0.25:  # a caption may have to wait for a GPU
                    bar.update(task, description=caption(title))
                    said = time.monotonic()
            bar.update(task, description=caption(title))


def caption(title: Title) -> str:
    """A title as it reads now."""
    return title if isinstance(title, str) else title()


def _length(items: Iterable[object]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
