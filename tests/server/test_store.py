"""The store: migrations lead to today's tables, the audit trail notices changes, rows come back as they were."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import settings as limits

pytest.importorskip("sqlalchemy", reason="the extra [server] is not installed")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, event, text

from blemish.errors import ConfigError, StoreError
from blemish.server.app import create_app
from blemish.server.store import Search, Store, midnight
from blemish.server.tables import VERSION, inspections, metadata

ROW: dict[str, Any] = {
    **{"at": 1000.0, "model": "parts", "digest": "d" * 64, "image": "i" * 64, "image_kept": True, "source": "http"},
    **{"name": "a.png", "part": None, "decision": "ok", "score": 1.5, "p_value": 0.4, "regions": [], "width": 64},
    **{"height": 64, "brightness": 0.5, "sharpness": 0.1, "milliseconds": 3.0, "batch": 1, "position": 0},
}


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL server's databases: a server of our own, on a socket in its folder."""
    pytest.importorskip("psycopg", reason="the extra [postgresql] is not installed")
    programs = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/local/pgsql").glob("bin")]
    if not programs:
        pytest.skip("no PostgreSQL server is installed")
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # it does not run as root
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short, as a socket's path must be
    if user:
        shutil.chown(folder, **user)
    run = partial(subprocess.run, check=True, capture_output=True, cwd=folder, **user)
    data, options = folder / "data", f"-k {folder} -c listen_addresses= -c fsync=off"
    run([programs[-1] / "initdb", "-D", data, "-U", "blemish", "-A", "trust", "--locale=C.UTF-8"])
    run([programs[-1] / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start"])
    yield f"postgresql+psycopg://blemish@/{{name}}?host={folder}"
    run([programs[-1] / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"])
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store."""
    if request.param == "sqlite":
        return str(tmp_path / "station.db")
    server: str = request.getfixturevalue("postgresql")
    name = f"t{time.monotonic_ns()}"
    engine = create_engine(server.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.format(name=name)


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    opened = Store(address)
    yield opened
    opened.close()


def test_a_store_of_the_first_version_opens_with_its_rows_and_the_tables_of_today(store: Store, address: str) -> None:
    store.record([ROW])
    with store.write() as connection:  # as the first version left it
        connection.execute(text("DROP TABLE windows"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    store.close()
    again = Store(address)
    with again.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == [] and context.get_current_revision() == VERSION
    assert [one["score"] for one in again.find(Search())["inspections"]] == [1.5]
    assert again.verify()["whole"]
    again.close()


def test_a_store_of_a_newer_version_is_refused_in_words(store: Store, address: str) -> None:
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(StoreError, match=r"another version of Blemish.*update Blemish"):
        Store(address)


def test_what_is_no_store_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("good morning " * 100)
    with pytest.raises(StoreError, match="it is no store"):
        Store(str(tmp_path / "notes.txt"))
    with pytest.raises(ConfigError, match="is no store"):
        Store("nosuch://here")
    with pytest.raises(StoreError, match="unable to open"):
        Store(str(tmp_path / "missing" / "station.db"))


def test_one_station_a_store(store: Store, address: str) -> None:
    store.hold()
    other = Store(address)
    with pytest.raises(StoreError, match="another station works on"):
        other.hold()
    store.close()
    other.hold()
    other.close()


def test_a_lock_whose_connection_was_lost_is_taken_again_or_said(store: Store, address: str) -> None:
    store.hold()
    store.renew_lock()
    if store._holder is None:  # SQLite's is a file's
        return
    end = text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")

    def lose() -> None:
        with store.engine.connect() as connection:
            connection.execute(end)

    lose()
    store.renew_lock()
    other = Store(address)
    with pytest.raises(StoreError, match="another station works on"):
        other.hold()
    lose()
    other.hold()
    for _ in range(2):
        with pytest.raises(StoreError, match="another station works on"):
            store.renew_lock()
        assert not store.is_held
    other.close()
    store.renew_lock()
    assert store.is_held


def test_one_file_serves_under_two_names(settings: Any, address: str, model: Path) -> None:
    app = create_app(settings(store=address, models={"left": model, "right": model}))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        for name in ("left", "right"):
            assert client.get(f"/v1/models/{name}/health").status_code == 200


def test_a_store_that_is_read_only_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "station.db"))
    store.record([ROW])
    store.close()
    for query_only, address in ((0, f"sqlite:///file:{tmp_path / 'station.db'}?mode=ro&uri=true"), (1, str(store.url))):
        store = Store(address)  # a file that is so, or becomes so while it is open
        event.listen(store.engine, "checkout", lambda own, *_: own.execute(f"PRAGMA query_only={query_only}"))  # noqa: B023
        with pytest.raises(StoreError, match=r"read-only: make the file and its folder writable"):
            store.record([ROW])
        assert len(store.find(Search())["inspections"]) == 1 and store.verify()["rows"] == 1
        store.close()


def test_a_locked_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blemish.server.store.BUSY", 10)
    store = Store(str(tmp_path / "station.db"))
    other = sqlite3.connect(str(store.url.database), timeout=0)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"locked.*another program holds it"):
        store.record([ROW])
    other.close()
    assert store.record([ROW])[0]["id"] == 1


CHANGES = {
    "a body": ("UPDATE audit SET body = replace(body, '1.5', '0.5') WHERE id = 2", 2, "does not follow"),
    "a row gone": ("DELETE FROM audit WHERE id = 2", 3, "does not follow"),
    "an actor": ("UPDATE audit SET actor = 'somebody' WHERE id = 3", 3, "does not follow"),
    "a verdict": ("UPDATE inspections SET decision = 'reject' WHERE id = 3", 3, "inspection 3 is not what"),
    "a verdict gone": ("DELETE FROM inspections WHERE id = 2", 2, "inspection 2 is gone, and nobody noted"),
    "a score": ("UPDATE inspections SET score = 1.25 WHERE id = 1", 1, "inspection 1 is not what"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_audit_trail_notices(store: Store, change: str) -> None:
    for _ in range(4):
        store.record([ROW])
    whole = store.verify()
    assert whole["whole"] and whole["rows"] == 4 and len(whole["head"]) == 64
    store.record([ROW])
    later = store.verify(whole)
    assert later == store.verify() and later["rows"] == 5  # read on from there it is the same
    statement, row, why = CHANGES[change]
    with store.engine.begin() as connection:
        connection.execute(text(statement))
    found = store.verify()
    assert not found["whole"] and found["broken"]["row"] == row and why in found["broken"]["why"]


def test_a_row_that_retention_deleted_breaks_nothing(store: Store) -> None:
    store.record([ROW, ROW])
    with store.write() as connection:
        connection.execute(inspections.delete().where(inspections.c.id == 1))
        store.note(connection, "deleted", "station", {"verdicts": 1, "first": 1, "last": 1})
    assert store.verify()["whole"]
    assert store.record([ROW])[0]["id"] == 3  # numbers are never given twice


def test_many_threads_make_one_chain(store: Store) -> None:
    def write() -> None:
        for _ in range(10):
            store.record([ROW, ROW])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.verify()["rows"] == 80 and store.verify()["whole"]


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=40).filter(lambda text: "\x00" not in text and text.isprintable())
rows = st.fixed_dictionaries(
    {"score": st.none() | numbers, "name": words, "part": st.none() | words, "at": st.floats(0, 4e9)},
    optional={"decision": st.sampled_from(["ok", "review", "reject", None]), "model": st.sampled_from(["a", "b"])},
)


@limits(max_examples=12)
@given(st.lists(rows, min_size=1, max_size=12), st.data())
def test_pages_hold_what_was_written_newest_first(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Whatever is asked for, the pages together are what a loop over the rows in memory finds."""
    store = Store(str(tmp_path_factory.mktemp("store") / "station.db"))
    full = [ROW | row for row in written]
    ids = [answer["id"] for answer in store.record(full)]
    scores = [row["score"] for row in full if row["score"] is not None]
    asked: dict[str, Any] = {
        "model": data.draw(st.none() | st.sampled_from(["a", "b", "parts"])),
        "decision": data.draw(st.none() | st.sampled_from(["ok", "reject"])),
        "min_score": data.draw(st.none() | st.sampled_from(scores)) if scores else None,
    }
    wanted = [
        (number, row)
        for number, row in zip(ids, full)
        if all(asked[key] in (None, row[key]) for key in ("model", "decision"))
        and (asked["min_score"] is None or (row["score"] is not None and row["score"] >= asked["min_score"]))
    ][::-1]
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = store.find(Search(**asked, limit=3, cursor=cursor))
        found += page["inspections"]
        if (cursor := page["next"]) is None:
            break
    assert [one["id"] for one in found] == [number for number, _ in wanted]
    for one, (_, row) in zip(found, wanted):
        assert (one["path"], one["part"], one["score"]) == (row["name"], row["part"], row["score"])
        assert one["score"] is None or math.copysign(1, one["score"]) == math.copysign(1, row["score"])
    assert store.count(Search(**asked))["total"] == len(wanted)
    store.close()


def test_a_part_that_an_earlier_model_rejected_stays_rejected(store: Store) -> None:
    both = store.record([ROW | {"part": "S1"} | one for one in ({"decision": "reject"}, {"digest": "e", "score": 9.0})])
    assert store.part_verdict("parts", "S1")["worst"] == both[0]["id"]


def test_a_clock_that_jumps_back_disorders_nothing(store: Store) -> None:
    for at in (2000.0, 1000.0, 3000.0):
        store.record([ROW | {"at": at}])
    assert [one["id"] for one in store.find(Search())["inspections"]] == [3, 2, 1]
    assert store.verify()["whole"]


def test_a_day_is_one_of_the_station_s_own_time_zone() -> None:
    search = Search(day="2026-03-01")
    assert search.day is not None
    assert midnight(search.day) % 900 == 0  # zones differ by quarters of an hour at least
    for wild in ("0001-01-01", "9999-12-31"):
        with pytest.raises(ValueError, match="1971 to 9000"):
            Search(day=wild)
