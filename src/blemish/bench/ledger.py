"""The ledger: what was measured, one line of JSON a job, only ever added to.

A row is written by one ``write`` to a file opened for appending, under a lock: two processes never mix their lines, and
a process killed at any moment leaves a whole line or none. What a power cut may still leave, half a line at the end, is
closed before the next row and passed over by readers.

This module imports neither torch nor anything that does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.errors import OutputError

FORMAT = 1
FILE = "ledger.jsonl"

Row = dict[str, Any]
"""``key`` and ``status`` (``done`` or ``failed``) always; the rest as ``docs/guides/bench.md`` lists it."""


@dataclass(frozen=True)
class Ledger:
    """The file of rows in a results folder.

    Attributes:
        path: of the file; it need not exist yet.
    """

    path: Path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; on the disk when this returns.

        Raises:
            OutputError: the folder is read-only or the disk is full.
        """
        line = json.dumps({"format": FORMAT, **row}, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                with locked(handle):
                    _add(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputError(
                f"the ledger {self.path} was not written: {error.strerror or error}. Free some space, or write "
                "elsewhere with --results."
            ) from error

    def rows(self) -> list[Row]:
        """All whole rows, oldest first; an unfinished or damaged line is passed over."""
        if not self.path.is_file():
            return []
        return list(_parsed(self.path.read_bytes()))

    def done(self) -> dict[str, Row]:
        """The latest finished row of each job, by its key."""
        return {row["key"]: row for row in self.rows() if row["status"] == "done"}


def _add(handle: int, line: bytes) -> None:
    end = os.fstat(handle).st_size
    if end and os.pread(handle, 1, end - 1) != b"\n":
        line = b"\n" + line
    written = os.write(handle, line)
    if written != len(line):  # a full disk: take back what arrived, so that no half row stays
        os.ftruncate(handle, end)
        raise OSError(28, "the disk is full")
    os.fsync(handle)


def _parsed(content: bytes) -> Iterator[Row]:
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # an empty line, half a line, or half a character
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str) and row.get("status") in ("done", "failed"):
            yield row


@contextlib.contextmanager
def locked(handle: int) -> Iterator[None]:
    """Hold the file alone; waits for others. Without effect where the system has no such locks."""
    if sys.platform == "win32":
        yield
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock by the name of a file, freed by the system when the process ends in whatever way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, locked(file.fileno()):
        yield
