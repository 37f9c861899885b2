"""The description for programs: what it says is what is answered, whatever is asked; and the page that lists it all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fastapi.testclient import TestClient

from blemish.server.app import create_app
from blemish.server.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "rest.md"
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
NAMES = ("status_code", "content_type", "response_schema")
ENDLESS = "/v1/events"


@pytest.mark.slow
def test_whatever_is_asked_is_answered_as_described(settings: Callable[..., Settings], bad: bytes) -> None:
    """Never a 500, never a status or a body that the description does not know; of a model and a verdict that exist."""
    app = create_app(settings(hosts=("testserver", "localhost")))
    admin = {"Authorization": f"Bearer {app.state.station.access.new_token('tests', 'admin')}"}
    with TestClient(app, base_url="http://127.0.0.1", headers=admin) as client:
        assert client.post("/v1/models/parts/inspect", content=bad).status_code == 200
        schema = schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path=ENDLESS)
        checked = [schemathesis.checks.not_a_server_error, *(getattr(checks, f"{name}_conformance") for name in NAMES)]
        for operation in (found.ok() for found in schema.get_all_operations()):

            @hypothesis.settings(max_examples=15, suppress_health_check=list(hypothesis.HealthCheck))
            @hypothesis.given(operation.as_strategy())
            def ask(case: Any) -> None:
                exists = {"number": 1} | ({} if case.method == "DELETE" else {"model": "parts"})
                case.path_parameters.update({key: exists[key] for key in exists.keys() & case.path_parameters.keys()})
                case.call_and_validate(checks=checked, headers=admin)

            ask()


def test_the_reference_lists_every_address(client: TestClient) -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set()
    for address in re.findall(r"`(?:GET|POST|PUT|DELETE) (/[^`?\s]*)", text) + re.findall(r"`(/v1/[^`?\s]*)`", text):
        named.add(address)
    described = client.app.openapi()["paths"]
    missing = [path for path in described if path not in named and path.rpartition("/")[0] + "/image" not in named]
    assert missing == []
