"""Publish each verdict to a topic, with quality of service 1: the broker has confirmed it before the next."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

SECONDS = 10


class Mqtt:
    """``mqtt://USER:PASSWORD@HOST:PORT/TOPIC``, or ``mqtts://`` for TLS."""

    def __init__(self, address: str) -> None:
        from aiomqtt import Client, TLSParameters

        parts = urlsplit(address)
        self._topic = parts.path.lstrip("/") or "blemish"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)  # it also keeps the broker's peace
        self._thread.start()
        secure = parts.scheme == "mqtts"

        async def connect() -> Client:
            client = Client(
                parts.hostname or "localhost",
                parts.port or (8883 if secure else 1883),
                username=unquote(parts.username) if parts.username else None,
                password=unquote(parts.password) if parts.password else None,
                tls_params=TLSParameters() if secure else None,
                timeout=SECONDS,
            )
            return await client.__aenter__()

        try:
            self._client: Client = self._run(connect())
        except BaseException:
            self._end()
            raise

    def send(self, message: Mapping[str, Any]) -> None:
        self._run(self._client.publish(self._topic, json.dumps(message).encode(), qos=1, timeout=SECONDS))

    def close(self) -> None:
        try:
            self._run(self._client.__aexit__(None, None, None))
        finally:
            self._end()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * SECONDS)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()
