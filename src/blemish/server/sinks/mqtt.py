"""Publish each verdict to a topic, with quality of service 1: the broker has confirmed it before the next."""

import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

SECONDS = 10


class Mqtt:
    """``mqtt://USER:PASSWORD@HOST:PORT/TOPIC``, or ``mqtts://`` for TLS."""

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
        if not connected.wait(SECONDS):
            self.close()
            raise ConnectionError("the broker refuses the connection: look at name, password and its log")

    def send(self, message: Mapping[str, Any]) -> None:
        sent = self._client.publish(self._topic, json.dumps(message), qos=1)
        sent.wait_for_publish(SECONDS)
        if not sent.is_published():
            raise TimeoutError("the broker did not confirm it")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
