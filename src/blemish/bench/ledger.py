"""The ledger: what was measured, one line of JSON a row, only ever added to.

A row is one ``write`` under a lock: no two processes mix lines, and one that is killed leaves a whole line or none.
A file that has grown large is closed as a part, ``ledger-1.jsonl`` first, and read as before.
What a power cut may still leave, half a line at the end, is closed before the next row and passed over by readers.
"""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock

from blemish.errors import OutputError

FILE = "ledger.jsonl"
LARGEST = 900_000  # bytes of a file: beyond it the next row begins another

Row = dict[str, Any]
"""``key`` and ``status`` (``done`` or ``failed``) always; the rest as ``docs/guides/bench.md`` lists it."""


@dataclass(frozen=True)
class Ledger:
    path: Path  # need not exist yet

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it is on the disk when this returns."""
        line = json.dumps({"format": 1, **row}, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                if self.path.is_file() and self.path.stat().st_size + len(line) > LARGEST:
                    self.path.rename(self._part(len(self._parts()) + 1))
                with self.path.open("a+b", buffering=0) as file:
                    end = file.seek(0, os.SEEK_END)
                    file.seek(max(0, end - 1))
                    line = line if file.read(1) in (b"", b"\n") else b"\n" + line
                    if file.write(line) != len(line):
                        file.truncate(end)  # no half row stays
                        raise OSError(errno.ENOSPC, "the disk is full")
                    os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(
                f"{self.path} was not written: {reason}. Free space, or give another --results."
            ) from error

    def rows(self) -> list[Row]:
        """All whole rows, oldest first; an unfinished or damaged line is passed over."""
        rows = []
        latest = b""
        with contextlib.suppress(FileNotFoundError):  # before the parts, as it may become one meanwhile
            latest = self.path.read_bytes()
        files = [*(part.read_bytes() for part in self._parts()), latest]
        for line in dict.fromkeys(line for content in files for line in content.splitlines()):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # an empty line, half a line, half a character
                continue
            if isinstance(row, dict) and "key" in row and row.get("status") in ("done", "failed"):
                rows.append(row)
        return rows

    def _part(self, number: int) -> Path:
        return self.path.with_stem(f"{self.path.stem}-{number}")

    def _parts(self) -> list[Path]:
        """Closed ones, oldest first."""
        return list(takewhile(Path.is_file, map(self._part, count(1))))

    def done(self) -> dict[str, Row]:
        """The latest finished row of each job, by its key."""
        return {row["key"]: row for row in self.rows() if row["status"] == "done"}
