"""Where images come from besides HTTP: each source is a thread that hands them to the station until it is told to end.

A full queue delays a source, and loses nothing of it: the source waits and hands the image in again.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Protocol

from fastapi import HTTPException

from blemish.errors import BlemishError, ImageError
from blemish.server.station import Station
from blemish.server.worker import Worker

log = logging.getLogger("blemish.server")
Submit = Callable[[bytes, str], dict[str, Any]]


class Source(Protocol):
    """What brings images."""

    def run(self, submit: Submit, ended: threading.Event) -> None:
        """Hand in contents and names until ``ended``; ``submit`` returns the verdict, or raises an ImageError."""


class Feed(Worker):
    """Takes what one source brings, and begins anew where it fails."""

    def __init__(self, here: Station, model: str, name: str, make: Callable[[], Source]) -> None:
        self._here, self.model, self._name, self._make = here, model, name, make
        self.source: Source | None = None
        super().__init__()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self.source = self._make()
                self.source.run(self._submit, self._ended)
            except CancelledError:
                return
            except Exception as error:
                log.warning("%s brings no images (%s): again in 5 s", self._name, error)
            self._ended.wait(5)

    def _submit(self, content: bytes, name: str) -> dict[str, Any]:
        while True:
            try:
                return self._here.submit(self.model, content, name, self._name)
            except ImageError:
                raise
            except (BlemishError, HTTPException, TimeoutError) as error:  # the queue or the disk is full ...
                if self._ended.wait(1):
                    raise CancelledError from error
