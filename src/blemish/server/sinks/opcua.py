"""The last verdict as variables of an OPC UA server of our own, which a PLC reads or subscribes to.

Under ``Objects/Blemish`` each model has ``Id``, ``Decision``, ``Score``, ``Part`` and ``At``. ``Id`` is written last: a
PLC that sees it change finds the others already changed.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

NAMESPACE = "urn:blemish:station"


class OpcUa:
    """``opc.tcp://HOST:PORT/PATH`` is where it listens."""

    def __init__(self, address: str) -> None:
        from asyncua import ua
        from asyncua.sync import Server

        parts = urlsplit(address)
        self._ua, self._server = ua, Server()
        self._server.set_endpoint(urlunsplit((*parts[:2], parts.path or "/blemish/", "", "")))
        self._server.set_server_name("Blemish: the inspection station")
        self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        self._space = self._server.register_namespace(NAMESPACE)
        self._folder = self._server.nodes.objects.add_object(self._space, "Blemish")
        self._nodes: dict[str, dict[str, Any]] = {}
        self._server.start()

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
