"""What a starter is handed: one file that says all of one job, for a process here or on another machine.

This module imports neither torch nor anything that does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVIDENCE, LOCK, CURVES, CHECKPOINTS = "evidence.npz", "lock", "curves.json", "checkpoints"


@dataclass(frozen=True)
class Order:
    """One job to be done.

    Attributes:
        key: the job's; its row carries it.
        title: for people.
        job: what ``Job.to_dict`` gave.
        results: the folder of the ledger.
        threads: of torch and the libraries below it.
        device: ``auto``, ``cpu`` or ``cuda``.
        parent: end when the process of this number is gone; 0 for never, as on another machine.
        afresh: do it though a finished row stands.
    """

    key: str
    title: str
    job: Mapping[str, Any]
    results: Path
    threads: int
    device: str = "auto"
    parent: int = 0
    afresh: bool = False

    @property
    def folder(self) -> Path:
        """The job's own folder, which git ignores."""
        return job_folder(self.results, self.key)

    @property
    def log(self) -> Path:
        """Where the process says what it does; of this bench's own, as another may be waiting for the same job."""
        return self.folder / f"log-{self.parent}.txt"

    def write(self) -> Path:
        """The order as a file in the job's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"order-{self.parent}.json"
        path.write_text(json.dumps({**self.__dict__, "results": str(self.results)}), encoding="utf-8")
        return path

    @staticmethod
    def read(path: Path) -> Order:
        """What ``write`` wrote."""
        given = json.loads(path.read_text(encoding="utf-8"))
        return Order(**{**given, "results": Path(given["results"])})


def job_folder(results: Path, key: str) -> Path:
    """Where a job keeps its order, log and evidence."""
    return results / "runs" / key
