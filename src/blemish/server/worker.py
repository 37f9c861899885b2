"""A thread of the station's own, from its making to ``close``."""

import threading
from abc import ABC, abstractmethod


class Worker(ABC):
    """What works beside the requests: ``_work`` goes on until ``_ended`` is set. Begins when it is made."""

    _patience: float | None = 10  # seconds that ``close`` waits for it; None for as long as it takes

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell it to end, and wait."""
        self._ended.set()
        self._thread.join(self._patience)

    @abstractmethod
    def _work(self) -> None:
        """Its work."""
