"""Who is told of verdicts: at least once, in order, from the store.

A message is committed with its verdict and leaves the store once its sink has taken it. Each sink has a thread of its
own: one that is down delays nothing but its own messages, which wait. ``id`` in a message tells a receiver that it has
seen it before.
"""

import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sqlalchemy import delete, select

from blemish.errors import StoreError
from blemish.server.settings import Settings, without_password
from blemish.server.store import Store
from blemish.server.tables import outbox
from blemish.server.worker import Worker

PATIENCE = 60.0  # seconds at most between two attempts
IDLE = 0.5  # seconds between two looks into the store, where nothing tells of a new message
ANSWER = 10  # seconds that a receiver may take
log = logging.getLogger("blemish.server")


class Sink(Protocol):
    """What takes messages."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Deliver an inspection as JSON has it; any exception means: again later."""

    def close(self) -> None:
        """End."""


def named_sinks(settings: Settings) -> dict[str, Callable[[], Sink]]:
    """What makes the sinks that were asked for, by the names under which messages wait for them."""
    made: dict[str, Callable[[], Sink]] = {}
    made |= {_name(place): partial(Webhook, place, settings.webhook_secret) for place in settings.webhooks}
    made |= {_name(place): partial(Mqtt, place) for place in settings.mqtt}
    return made | {_name(place): partial(OpcUa, place) for place in settings.opcua}


def _name(place: str) -> str:
    """Of an address; what is too long for the store ends in its digest."""
    shown = without_password(place)
    return shown if len(shown) <= 64 else f"{shown[:51]}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


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
                rows = self._store.rows(query)
                for row in rows:
                    sink.send(json.loads(row.body))
                    with self._store.write() as connection:
                        connection.execute(delete(outbox).where(outbox.c.id == row.id))
                    if self._ended.is_set():
                        break
                wait = 0.0 if rows else IDLE
            except Exception as error:
                if not isinstance(error, StoreError):
                    _close(sink)
                    sink = None
                wait = min(PATIENCE, max(1.0, 2 * wait))
                log.warning("%s takes no messages (%s): again in %.0f s", self._name, error, wait)
        _close(sink)


def _close(sink: Sink | None) -> None:
    try:
        if sink is not None:
            sink.close()
    except Exception:
        log.debug("a sink did not close", exc_info=True)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # a signed message goes nowhere else


class Webhook:
    """One address, which answers 2xx where it has taken a message."""

    def __init__(self, address: str, secret: str) -> None:
        self._address, self._secret = address, secret.encode()
        self._opener = build_opener(_NoRedirect)

    def send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode()
        headers = {"Content-Type": "application/json", "X-Blemish-Id": str(message["id"])}
        if self._secret:
            headers["X-Blemish-Signature"] = "sha256=" + hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        self._opener.open(Request(self._address, body, headers), timeout=ANSWER).close()  # raises above 299

    def close(self) -> None:
        pass


class Mqtt:
    """A topic, with quality of service 1: the broker has confirmed a message before the next.

    ``mqtt://USER:PASSWORD@HOST:PORT/TOPIC``, or ``mqtts://`` for TLS.
    """

    def __init__(self, address: str) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        parts, connected = urlsplit(address), threading.Event()
        is_secure, self._topic = parts.scheme == "mqtts", parts.path.lstrip("/") or "blemish"
        self._client = Client(CallbackAPIVersion.VERSION2)
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if is_secure:
            self._client.tls_set()

        def told(*given: Any) -> None:
            if not given[3].is_failure:
                connected.set()

        self._client.on_connect = told
        self._client.connect(parts.hostname or "localhost", parts.port or (8883 if is_secure else 1883))
        self._client.loop_start()  # in a thread, which also keeps the broker's peace
        if not connected.wait(ANSWER):
            self.close()
            raise ConnectionError("the broker refuses the connection: look at name, password and its log")

    def send(self, message: Mapping[str, Any]) -> None:
        sent = self._client.publish(self._topic, json.dumps(message), qos=1)
        sent.wait_for_publish(ANSWER)
        if not sent.is_published():
            raise TimeoutError("the broker did not confirm it")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class OpcUa:
    """An OPC UA server of our own at ``opc.tcp://HOST:PORT/PATH``, which a PLC reads or subscribes to.

    Under ``Objects/Blemish`` each model has ``Id``, ``Decision``, ``Score``, ``Part`` and ``At`` of its last verdict.
    ``Id`` is written last: a PLC that sees it change finds the others already changed.
    """

    def __init__(self, address: str) -> None:
        from asyncua import ua
        from asyncua.sync import Server

        parts = urlsplit(address)
        self._ua, self._server = ua, Server()
        self._nodes: dict[str, dict[str, Any]] = {}
        try:
            self._server.set_endpoint(urlunsplit((*parts[:2], parts.path or "/blemish/", "", "")))
            self._server.set_server_name("Blemish: the inspection station")
            self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            self._space = self._server.register_namespace("urn:blemish:station")
            self._folder = self._server.nodes.objects.add_object(self._space, "Blemish")
            self._server.start()
        except BaseException:
            self._server.tloop.stop()  # its thread
            raise

    def send(self, message: Mapping[str, Any]) -> None:
        score = message["score"]
        values = {
            "Decision": message["decision"] or "",
            "Score": float("nan") if score is None else float(score),
            "Part": message["part"] or "",
            "At": message["at"],
            "Id": int(message["id"]),
        }
        if (nodes := self._nodes.get(message["model"])) is None:
            own = self._folder.add_object(self._space, message["model"])
            nodes = {name: own.add_variable(self._space, name, value) for name, value in values.items()}
            self._nodes[message["model"]] = nodes
        for name, value in values.items():
            nodes[name].write_value(value, self._ua.VariantType.Int64 if name == "Id" else None)

    def close(self) -> None:
        self._server.stop()
