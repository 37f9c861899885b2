"""What a station remembers: SQLite in WAL mode, or PostgreSQL by its address, through SQLAlchemy.

Every change is one transaction, and each of them adds to the audit trail: a chain of rows whose hash covers the row
before, so that a change or a deletion in its middle breaks it. Only its end can be cut off unnoticed: note ``head``
elsewhere to notice that, too.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import Connection, Row, Select, create_engine, delete, event, func, insert, select, text, update
from sqlalchemy import inspect as look_into
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from blemish.errors import ConfigError, StoreError
from blemish.server.tables import VERSION, audit, inspections, labels, metadata, outbox

CHAINED = ("id", "model", "digest", "image", "name", "part", "decision", "score", "p_value", "batch", "position")
"""What the audit trail says of a verdict, and ``verify`` compares with its row."""
BUSY = 5000  # milliseconds that a writer waits for another program's transaction
_LOCK = 0x626C656D  # the number of PostgreSQL's advisory lock

Record = Mapping[str, Any]
BigId = Annotated[int, Field(ge=1, lt=2**31)]
Score = Annotated[float, Field(allow_inf_nan=False)]


def _plausible(at: Any) -> Any:
    if not 1971 <= at.year <= 9000:  # beyond, not every machine can compute with it
        raise ValueError("a year from 1971 to 9000 is needed")
    return at


class Search(BaseModel, extra="forbid"):
    """Which inspections: all conditions hold together; newest first."""

    model: Annotated[str | None, Field(max_length=64)] = None
    decision: Literal["ok", "review", "reject"] | None = None
    said: Annotated[Literal["good", "bad", "something", "nothing"] | None, Field(description="by a person")] = None
    part: Annotated[str | None, Field(max_length=200)] = None
    day: Annotated[date, AfterValidator(_plausible), Field(description="in the station's time zone")] | None = None
    since: Annotated[datetime, AfterValidator(_plausible)] | None = None
    until: Annotated[datetime, AfterValidator(_plausible)] | None = None
    min_score: Score | None = None
    max_score: Score | None = None
    cursor: Annotated[BigId | None, Field(description="`next` of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50

    def apply(self, query: Select[Any]) -> Select[Any]:
        """The query with these conditions, without order and limit."""
        given = ((CONDITIONS.get(name), value) for name, value in self if value is not None)
        return query.where(*(condition(value) for condition, value in given if condition))


TIMES: dict[str, Callable[[Any, Any], Any]] = {  # what a search asks of a column of times
    "day": lambda at, day: (at >= midnight(day)) & (at < midnight(day + timedelta(days=1))),
    "since": lambda at, since: at >= since.timestamp(),
    "until": lambda at, until: at < until.timestamp(),
}
SAID = {"something": inspections.c.said.is_not(None), "nothing": inspections.c.said.is_(None)}
CONDITIONS: dict[str, Callable[[Any], Any]] = {
    **{name: inspections.c[name].__eq__ for name in ("model", "decision", "part")},
    "said": lambda word: SAID.get(word, inspections.c.said == word),
    **{name: partial(of, inspections.c.at) for name, of in TIMES.items()},
    "min_score": inspections.c.score.__ge__,
    "max_score": inspections.c.score.__le__,
    "cursor": inspections.c.id.__lt__,
}
"""What a search asks of a row."""


def midnight(day: date) -> float:
    """When a day begins where the station stands."""
    return datetime(day.year, day.month, day.day).astimezone().timestamp()


def spoken_time(at: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def as_json(row: Row[Any]) -> dict[str, Any]:
    """One inspection as every answer has it: what ``blemish inspect`` prints, and what the station knows besides."""
    known = row._asdict()
    kept = ("image", "overlay", "map") if known["image_kept"] else ()
    names = ("decision", "score", "p_value", "regions", "width", "height", "id", "model", "digest", "source", "part")
    return {
        "path": known["name"],
        **{name: known[name] for name in names},
        "at": spoken_time(known["at"]),
        **{name: known[name] for name in ("brightness", "sharpness", "milliseconds", "said", "kind")},
        "image_sha256": known["image"],
        "links": {name: f"/v1/inspections/{known['id']}/{name}" for name in kept},
    }


class Store:
    """An opened store, brought to this version's tables; a new one where there is none and ``make`` allows it.

    Raises:
        StoreError: it cannot be opened, is no store, a newer version wrote it, or there is none and ``make`` is False.
        ConfigError: the address is none.
    """

    def __init__(self, url: str, make: bool = True) -> None:
        try:
            self.url = make_url(url if "://" in url else f"sqlite:///{url}")
            self._sqlite = self.url.get_backend_name() == "sqlite"
            # Of SQLite as many connections as are asked for: a page does not wait for a slow reader.
            options: dict[str, Any] = {"max_overflow": -1} if self._sqlite else {"pool_pre_ping": True}
            self.engine = create_engine(self.url, **options)
        except (ArgumentError, ImportError) as error:
            raise ConfigError(f"{url} is no store ({error}): give a file, or postgresql+psycopg://...") from error
        if not make and self._sqlite and not Path(self.name).is_file():
            raise StoreError(f"there is no store {self.name}: give the --store of the station")
        self._writing = threading.RLock()
        self._held, self.is_held = contextlib.ExitStack(), False
        self._holder: Connection | None = None  # PostgreSQL's lock lasts as long as it does
        if self._sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        try:
            self._migrate()
        except BaseException:
            self.engine.dispose()
            raise

    def _migrate(self) -> None:
        with self.write() as connection:
            if not look_into(connection).has_table("alembic_version"):  # new: made whole, with no step in between
                metadata.create_all(connection, checkfirst=False)
                connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
                connection.execute(text("INSERT INTO alembic_version VALUES (:now)"), {"now": VERSION})
            elif connection.scalar(text("SELECT version_num FROM alembic_version")) != VERSION:
                from alembic import command
                from alembic.config import Config
                from alembic.util.exc import CommandError

                config = Config(attributes={"connection": connection})
                config.set_main_option("script_location", "blemish.server:migrations")
                try:
                    command.upgrade(config, "head")
                except CommandError as error:
                    why = f"the store {self.name} was written by another version of Blemish ({error})"
                    raise StoreError(f"{why}: update Blemish, or give it another --store") from error

    @property
    def name(self) -> str:
        """For people: without the password."""
        return str(self.url.database) if self._sqlite else self.url.render_as_string()

    def hold(self) -> None:
        """Keep other stations off this store until this process ends; a StoreError where one is at work."""
        is_free = True
        if self._sqlite:
            try:
                self._held.enter_context(FileLock(f"{self.url.database}.lock", timeout=0, thread_local=False))
            except Timeout:
                is_free = False
        else:
            with self._translated():
                self._holder = self._held.enter_context(self.engine.connect())
                is_free = bool(self._holder.scalar(select(func.pg_try_advisory_lock(_LOCK))))
                self._holder.commit()
        self.is_held = is_free
        if not is_free:
            raise StoreError(f"another station works on {self.name}: stop it, or give this one its own --store")

    def renew_lock(self) -> None:
        """Hold it anew where the connection was lost that held it; raises as ``hold``."""
        if self._holder is None:
            return
        try:
            if self.is_held:
                self._holder.scalar(select(1))
                self._holder.commit()
                return
        except SQLAlchemyError:
            self.is_held = False
        with contextlib.suppress(SQLAlchemyError):
            self._held.close()
        self.hold()

    def close(self) -> None:
        self._held.close()
        self.engine.dispose()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that nobody else writes beside; a StoreError, and nothing changed, where it fails."""
        with self._writing, self._translated(), self.engine.connect() as opened:
            connection = opened.execution_options(writes=True)
            with connection.begin():
                if not self._sqlite:
                    connection.execute(select(func.pg_advisory_xact_lock(_LOCK + 1)))
                yield connection

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """What a query finds."""
        with self._translated(), self.engine.connect() as connection:
            return connection.execute(query).all()

    def first(self, query: Select[Any]) -> Row[Any] | None:
        """The first row that a query finds, or None."""
        return next(iter(self.rows(query.limit(1))), None)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            advice = {
                "locked": "another program holds it: close that program",
                "readonly": "it is read-only: make the file and its folder writable",
                "full": "the disk is full: free some space",
                "not a database": "it is no store: give another --store",
            }
            other = "give another --store, or see the station's log"
            said = next((words for sign, words in advice.items() if sign in reason), other)
            raise StoreError(f"the store {self.name} failed ({reason}): {said}") from error

    def note(self, connection: Connection, kind: str, actor: str, *bodies: Record) -> None:
        """Add links to the audit trail, in the transaction of what they tell."""
        previous = connection.scalar(select(audit.c.hash).order_by(audit.c.id.desc()).limit(1)) or ""
        at, rows = time.time(), []
        for body in bodies:
            row: dict[str, Any] = {"at": at, "kind": kind, "actor": actor, "body": json.dumps(body, sort_keys=True)}
            previous = _link(previous, at, kind, actor, row["body"])
            rows.append(row | {"hash": previous})
        connection.execute(insert(audit), rows)

    def record(self, rows: Sequence[Record], sinks: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Keep verdicts, with a message for each sink, in one transaction; as JSON, with their numbers."""
        with self.write() as connection:
            query = insert(inspections).returning(inspections, sort_by_parameter_order=True)
            kept = connection.execute(query, list(rows)).all()
            for source, same in groupby(kept, key=lambda row: row.source):
                noted = ({name: getattr(row, name) for name in CHAINED} for row in same)
                self.note(connection, "verdict", source, *noted)
            answers = [as_json(row) for row in kept]
            if sinks:
                messages = [{"inspection": answer["id"], "body": json.dumps(answer).encode()} for answer in answers]
                connection.execute(insert(outbox), [one | {"sink": sink} for one in messages for sink in sinks])
        return answers

    def find(self, search: Search) -> dict[str, Any]:
        """A page of verdicts, newest first, and the cursor of the next page or None."""
        query = search.apply(select(inspections)).order_by(inspections.c.id.desc()).limit(search.limit + 1)
        found = self.rows(query)
        more = len(found) > search.limit
        listed = [as_json(row) for row in found[: search.limit]]
        return {"inspections": listed, "next": listed[-1]["id"] if more else None}

    def part_verdict(self, model: str, part: str) -> dict[str, Any]:
        """Of all photographs of a part: its verdict is that of the worst."""
        found = self.rows(select(inspections).where(inspections.c.part == part, inspections.c.model == model))
        # Scores order what one model judged alike; a score that is not finite is the worst there is.
        order = ("ok", None, "review", "reject").index
        worst = max(found, key=lambda row: (order(row.decision), float("inf") if row.score is None else row.score))
        named = {name: getattr(worst, name) for name in ("decision", "score", "p_value")}
        return {"part": part, **named, "photographs": len(found), "worst": worst.id}

    def say(self, number: int, said: str | None, kind: str, person: str) -> Row[Any]:
        """Keep what a person says of a verdict; ``said`` None takes the last word back. The verdict's row."""
        row = select(inspections).where(inspections.c.id == number)
        own = select(labels).where(labels.c.inspection == number).order_by(labels.c.id.desc()).limit(1)
        with self.write() as connection:
            last = connection.execute(own).first()
            if said is not None:
                if last is not None and (last.said, last.kind or "", last.person) == (said, kind or "", person):
                    return connection.execute(row).one()  # said twice, as by a key that is pressed twice
                told = {"at": time.time(), "inspection": number, "said": said, "kind": kind, "person": person}
                connection.execute(insert(labels), told)
            elif last is not None:
                connection.execute(delete(labels).where(labels.c.id == last.id))
            else:
                return connection.execute(row).one()  # nothing was said of it
            valid = connection.execute(own).first()
            now = {"said": valid and valid.said, "kind": valid and (valid.kind or None)}
            connection.execute(update(inspections).where(inspections.c.id == number).values(**now))
            self.note(connection, "said" if said else "taken back", person, {"id": number, **now})
            return connection.execute(row).one()

    def count(self, search: Search) -> dict[str, Any]:
        """How many verdicts of each decision, and what people said of them."""
        columns = inspections.c
        query = search.apply(select(columns.decision, columns.said, func.count().label("n")))
        groups = self.rows(query.group_by(columns.decision, columns.said))
        decisions = dict.fromkeys(("ok", "review", "reject", "undecided"), 0)
        said = {"good_after_all": 0, "bad_after_all": 0, "said_good": 0, "said_bad": 0}
        for decision, word, n in map(tuple, groups):
            decisions[decision or "undecided"] += n
            if word is not None:
                said[f"said_{word}"] += n
                said["good_after_all"] += n * (word == "good" and decision in ("reject", "review"))
                said["bad_after_all"] += n * (word == "bad" and decision == "ok")
        return {**decisions, "total": sum(decisions.values()), **said}

    def verify(self, since: dict[str, Any] | None = None) -> dict[str, Any]:
        """Whether the audit trail is whole: its length, its last hash, and the first broken link with the reason.

        ``since`` is what it said when it was whole: then only later rows are read.
        """
        since = since or {"head": "", "rows": 0, "last": 0}
        previous, number, last, deleted, broken = since["head"], since["rows"], since["last"], 0, None
        query, columns = select(audit).order_by(audit.c.id).limit(1000), inspections.c
        while broken is None and (page := self.rows(query.where(audit.c.id > last))):
            said = {row.id: json.loads(row.body) for row in page if row.kind == "verdict"}
            wanted = columns.id.in_([one.get("id") for one in said.values()])
            stored = {row.id: row for row in self.rows(select(inspections).where(wanted))}
            if max((one.get("id", 0) for one in said.values() if one.get("id") not in stored), default=0) > deleted:
                notes = [json.loads(note.body) for note in self.rows(select(audit).where(audit.c.kind == "deleted"))]
                deleted = max((one["last"] for one in notes if "verdicts" in one), default=0)
            for row in page:
                noted, why = said.get(row.id, {}), ""
                own = stored.get(noted.get("id"))
                if row.hash != _link(previous, row.at, row.kind, row.actor, row.body):
                    why = "it does not follow from the row before"
                elif own is not None and any(getattr(own, name) != noted[name] for name in CHAINED):
                    why = f"inspection {own.id} is not what was noted of it"
                elif own is None and noted.get("id", 0) > deleted:
                    why = f"inspection {noted['id']} is gone, and nobody noted that it was deleted"
                if why:
                    broken = {"row": row.id, "at": spoken_time(row.at), "why": why}
                    break
                previous, number, last = row.hash, number + 1, row.id
        return {"whole": broken is None, "rows": number, "head": previous, "last": last, "broken": broken}


def _link(previous: str, at: float, kind: str, actor: str, body: str) -> str:
    return hashlib.sha256(json.dumps([previous, at, kind, actor, body]).encode()).hexdigest()


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, see _begin_sqlite
    # FULL: what was committed survives a power cut, not only the end of this process.
    for pragma in (f"busy_timeout={BUSY}", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that writes takes its lock at once: one that upgraded a reader's lock could only fail.
    kind = "IMMEDIATE" if connection.get_execution_options().get("writes") else "DEFERRED"
    connection.execute(text(f"BEGIN {kind}"))
