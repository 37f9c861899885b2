"""Who may do what: roles, sessions, forged requests, guessed tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from blemish.server.access import ATTEMPTS, COOKIE
from blemish.server.app import create_app
from blemish.server.settings import Settings
from blemish.server.tables import sessions, tokens

Serve = Callable[..., TestClient]


@pytest.fixture
def guarded(serve: Serve) -> tuple[TestClient, dict[str, str]]:
    """A station beyond loopback, and a token of each role."""
    client = serve(host="0.0.0.0")
    made = {
        role: client.app.state.station.access.new_token(f"a {role}", role) for role in ("viewer", "operator", "admin")
    }
    return client, made


ASKED = (  # method, address, body, and the least role
    ("GET", "/v1/inspections", None, "viewer"),
    ("GET", "/v1/models", None, "viewer"),
    ("GET", "/metrics", None, "viewer"),
    ("POST", "/v1/models/parts/inspect", b"", "operator"),
    ("DELETE", "/v1/inspections/1/said", None, "operator"),
    ("POST", "/v1/models/parts/relearn", None, "operator"),
    ("POST", "/v1/models/parts/relearn/accept", None, "admin"),
    ("PUT", "/v1/models/parts", b"", "admin"),
    ("DELETE", "/v1/models/other", None, "admin"),
    ("GET", "/v1/audit", None, "admin"),
)


def test_every_role_may_do_what_it_should_and_no_more(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, made = guarded
    ranks = ["", "viewer", "operator", "admin"]
    for method, address, body, least in ASKED:
        for role in ranks:
            headers = {"Authorization": f"Bearer {made[role]}"} if role else {}
            status = client.request(method, address, content=body, headers=headers).status_code
            if ranks.index(role) < ranks.index(least):
                assert status == (403 if role else 401), (role, method, address)
            else:
                assert status not in (401, 403), (role, method, address, status)
    for address in ("/healthz", "/readyz"):
        assert client.get(address).status_code == 200


def test_every_address_but_a_few_needs_a_token(guarded: tuple[TestClient, dict[str, str]]) -> None:
    """Also one that is added later: all are asked for without a token."""
    client, _ = guarded
    described = client.app.openapi()["paths"]
    opened = []
    for address, methods in described.items():
        for method in methods:
            place = address.replace("{number}", "1").replace("{model}", "parts")
            if client.request(method.upper(), place).status_code != 401:
                opened.append(place)
    assert sorted(opened) == ["/healthz", "/readyz", "/v1/login"]


def test_a_session_changes_things_only_with_its_csrf_token(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, made = guarded
    assert client.post("/v1/login", json={"token": "guessed"}).status_code == 401
    answer = client.post("/v1/login", json={"token": made["operator"]})
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict")) and "secure" not in cookie
    csrf = answer.json()["csrf"]
    assert client.get("/v1/me").json() == {"name": "a operator", "role": "operator", "csrf": csrf}
    address = "/v1/inspections/1/said"
    for headers, status in (({}, 403), ({"X-CSRF-Token": "guessed"}, 403), ({"X-CSRF-Token": csrf}, 404)):
        assert client.delete(address, headers=headers).status_code == status
    for origin, status in (("http://evil.example", 403), ("http://127.0.0.1:8000", 404)):
        assert client.delete(address, headers={"X-CSRF-Token": csrf, "Origin": origin}).status_code == status
    kept = client.cookies[COOKIE]
    assert client.post("/v1/logout", headers={"X-CSRF-Token": csrf}).status_code == 204
    client.cookies.set(COOKIE, kept)
    assert client.get("/v1/me").status_code == 401  # ended in the store, not only in the browser


def test_a_revoked_token_opens_nothing(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, made = guarded
    client.post("/v1/login", json={"token": made["viewer"]})
    assert client.get("/v1/me").status_code == 200
    assert client.app.state.station.access.revoke("a viewer") == 1
    assert client.get("/v1/me").status_code == 401
    client.cookies.clear()
    assert client.get("/v1/me", headers={"Authorization": f"Bearer {made['viewer']}"}).status_code == 401


def test_the_store_holds_nothing_that_opens(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, made = guarded
    client.post("/v1/login", json={"token": made["admin"]})
    store = client.app.state.station.store
    held = "".join(str(tuple(row)) for table in (tokens, sessions) for row in store.rows(table.select()))
    assert not any(secret in held for secret in (*made.values(), client.cookies[COOKIE]))


def test_guessing_is_slowed(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, made = guarded
    for _ in range(ATTEMPTS):
        assert client.get("/v1/me", headers={"Authorization": "Bearer guessed"}).status_code == 401
    answer = client.get("/v1/me", headers={"Authorization": "Bearer guessed"})
    assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 61
    # Behind a proxy all clients have one address: what one does wrong stops none of the others.
    assert client.get("/v1/me", headers={"Authorization": f"Bearer {made['admin']}"}).status_code == 200
    assert client.post("/v1/login", json={"token": made["admin"]}).status_code == 200
    assert client.post("/v1/login", json={"token": "guessed"}).status_code == 429


FORGED: tuple[tuple[dict[str, str], int], ...] = (
    ({"Host": "evil.example"}, 421),
    ({"Host": "127.0.0.1:8000"}, 404),
    ({"Host": "localhost"}, 404),
    ({"Host": "[::1]:8000"}, 404),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 404),
    ({f"X-{number}": "1" for number in range(100)}, 431),
)


@pytest.mark.parametrize(("headers", "status"), FORGED)
def test_on_loopback_other_sites_are_kept_out(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.delete("/v1/inspections/1/said", headers=headers).status_code == status


def test_answers_say_what_browsers_may_do_with_them(client: TestClient) -> None:
    for address in ("/", "/v1/models", "/nothing"):
        headers = client.get(address).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_settings_that_are_wrong_are_refused(settings: Callable[..., Settings]) -> None:
    for change in ({"keep_images": "some"}, {"models": {"../x": "a"}}, {"queue": 0}, {"unknown": 1}):
        with pytest.raises(ValueError, match="validation error"):
            settings(**change)
    assert settings().is_open and not settings(host="10.0.0.5").is_open


@pytest.mark.parametrize("proxied", [{"tls": True}, {"hosts": ("station.plant",)}])
def test_behind_a_proxy_tokens_are_needed_on_loopback_too(
    serve: Callable[..., TestClient], proxied: dict[str, Any]
) -> None:
    assert serve(**proxied).get("/v1/me").status_code == 401


def test_a_proxy_that_nobody_told_of_is_refused(client: TestClient) -> None:
    assert client.get("/v1/me").json()["role"] == "admin"
    answer = client.get("/v1/me", headers={"X-Forwarded-For": "10.0.0.7"})
    assert answer.status_code == 403 and "--tls" in answer.json()["detail"]


@pytest.mark.parametrize("address", ["/v1/models/parts/threshold", "/v1/login", "/v1/models/parts/nothing"])
def test_a_large_body_is_taken_only_where_images_and_models_are(client: TestClient, address: str) -> None:
    answer = client.request("PUT" if "models" in address else "POST", address, content=b"[" * 100_000)
    assert answer.status_code in (404, 405, 413) and "decode" not in answer.text


def test_names_of_a_station_beyond_loopback(settings: Callable[..., Settings]) -> None:
    app: Any = create_app(settings(host="0.0.0.0", hosts=("line-2.local",)))
    with TestClient(app, base_url="http://line-2.local") as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/healthz", headers={"Host": "other.local"}).status_code == 421
