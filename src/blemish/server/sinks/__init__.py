"""Who is told of verdicts: at least once, in order, from the store.

A message is committed with its verdict and leaves the store once its sink has taken it. Each sink has a thread of its
own: one that is down delays nothing but its own messages, which wait. ``id`` in a message tells a receiver that it has
seen it before.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from sqlalchemy import delete, select

from blemish.errors import StoreError
from blemish.server.settings import Settings
from blemish.server.store import Store
from blemish.server.tables import outbox
from blemish.server.worker import Worker

PATIENCE = 60.0  # seconds at most between two attempts
IDLE = 0.5  # seconds between two looks into the store, where nothing tells of a new message
log = logging.getLogger("blemish.server")


class Sink(Protocol):
    """What takes messages."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Deliver an inspection as JSON has it; any exception means: again later."""

    def close(self) -> None:
        """End."""


def named_sinks(settings: Settings) -> dict[str, Callable[[], Sink]]:
    """What makes the sinks that were asked for, by the names under which messages wait for them."""
    from blemish.server.sinks.mqtt import Mqtt
    from blemish.server.sinks.opcua import OpcUa
    from blemish.server.sinks.webhook import Webhook

    made: dict[str, Callable[[], Sink]] = {}
    made |= {place[:64]: partial(Webhook, place, settings.webhook_secret) for place in settings.webhooks}
    made |= {place[:64]: partial(Mqtt, place) for place in settings.mqtt}
    return made | {place[:64]: partial(OpcUa, place) for place in settings.opcua}


class Delivery(Worker):
    """Brings messages to one sink."""

    def __init__(self, store: Store, name: str, make: Callable[[], Sink]) -> None:
        self._store, self._name, self._make = store, name, make
        super().__init__()

    def _work(self) -> None:
        sink: Sink | None = None
        wait, query = IDLE, select(outbox).where(outbox.c.sink == self._name).order_by(outbox.c.id).limit(100)
        while not self._ended.wait(wait):
            try:
                sink = sink or self._make()
                wait = IDLE
                for row in self._store.rows(query):
                    sink.send(json.loads(row.body))
                    with self._store.write() as connection:
                        connection.execute(delete(outbox).where(outbox.c.id == row.id))
                    wait = 0.0
                    if self._ended.is_set():
                        break
            except Exception as error:
                if not isinstance(error, StoreError) and sink is not None:
                    _close(sink)
                    sink = None
                wait = min(PATIENCE, max(1.0, 2 * wait))
                log.warning("%s takes no messages (%s): again in %.0f s", self._name, error, wait)
        if sink is not None:
            _close(sink)


def _close(sink: Sink) -> None:
    try:
        sink.close()
    except Exception:
        log.debug("a sink did not close", exc_info=True)
