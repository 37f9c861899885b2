"""POST each verdict as JSON. The body is signed: ``X-Blemish-Signature: sha256=`` and its HMAC by the shared secret."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

SECONDS = 10


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
        with self._opener.open(Request(self._address, body, headers), timeout=SECONDS):  # raises above 299
            pass

    def close(self) -> None:
        pass
