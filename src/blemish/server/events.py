"""What happens, told to whoever listens: server-sent events."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

LISTENERS, BEHIND, HEARTBEAT = 100, 200, 15.0
LASTS = 600.0  # seconds: who listens then connects again, and is asked again who it is


class Events:
    """Many threads publish, and each listener has a queue of its own; one that does not read loses the oldest."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: set[asyncio.Queue[str]] = set()
        self._is_closed = False

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        """Tell all listeners; from any thread."""
        if self._listeners and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._put, f"event: {kind}\ndata: {json.dumps(data)}\n\n")

    def _put(self, message: str) -> None:
        for listener in self._listeners:
            if listener.full():
                listener.get_nowait()
            listener.put_nowait(message)

    def close(self) -> None:
        """End all streams; from the loop's own thread."""
        self._is_closed = True
        self._put("")

    @property
    def is_crowded(self) -> bool:
        return len(self._listeners) >= LISTENERS

    async def listen(self) -> AsyncIterator[str]:
        """The stream of one listener, from now on, with a comment every quarter of a minute."""
        self._loop = asyncio.get_running_loop()
        own: asyncio.Queue[str] = asyncio.Queue(BEHIND)
        self._listeners.add(own)
        try:
            yield "retry: 2000\n\n"
            ends = time.monotonic() + LASTS
            while not self._is_closed and time.monotonic() < ends:
                try:
                    yield await asyncio.wait_for(own.get(), HEARTBEAT)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._listeners.discard(own)
