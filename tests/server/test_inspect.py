"""Judging over HTTP: what comes back is what is stored, and what the library says of the same image."""

from __future__ import annotations

from fastapi.testclient import TestClient

from blemish.inspection.inspector import Inspector


def test_a_verdict_is_that_of_the_library_and_is_stored(
    client: TestClient, inspector: Inspector, good: bytes, bad: bytes
) -> None:
    for content in (good, bad):
        answer = client.post("/v1/models/parts/inspect", content=content)
        assert answer.status_code == 200, answer.text
        (said,) = answer.json()["verdicts"]
        verdict = inspector(content)
        assert said["score"] == verdict.score and said["decision"] == verdict.decision
        assert client.get(f"/v1/inspections/{said['id']}").json() == said
        assert client.get(said["links"]["image"]).content == content
        assert client.post(f"/v1/inspections/{said['id']}/replay").json()["same"]
        print(said)
