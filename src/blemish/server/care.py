"""What a station does by itself: tests promises, lets go of what is kept no longer, and says what it deleted."""

import logging
import time
from collections import Counter
from typing import Any

from sqlalchemy import Row, and_, delete, func, or_, select, update

from blemish.errors import BlemishError
from blemish.server.health import watch_promise
from blemish.server.station import Station
from blemish.server.tables import inspections, labels, outbox, sessions
from blemish.server.worker import Worker

PERIOD, RETENTION_PERIOD = 5.0, 600.0  # seconds
GRACE = 3600.0  # seconds for which every photograph is kept, so that people can look at it
BATCH = 1000  # rows deleted in one transaction: judging waits for no longer
FULL = 0.95  # of a bound on the disk, that is left after the oldest photographs went
log = logging.getLogger("blemish.server")


class Caretaker(Worker):
    """Looks after one station."""

    _patience = None  # a deletion that was begun ends

    def __init__(self, here: Station) -> None:
        self._here = here
        super().__init__()

    def _work(self) -> None:
        cleaned = -RETENTION_PERIOD
        while not self._ended.wait(PERIOD):
            try:
                for name in [*self._here.judges]:
                    watch_promise(self._here, name)
                for sink, waiting in undelivered(self._here).items():
                    self._here.metrics.undelivered.labels(sink).set(waiting)
                if time.monotonic() - cleaned >= RETENTION_PERIOD:
                    cleaned = time.monotonic()
                    let_go(self._here)
            except BlemishError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("the caretaker failed")


def undelivered(here: Station) -> dict[str, int]:
    """How many messages wait for each sink."""
    found = here.store.rows(select(outbox.c.sink, func.count()).group_by(outbox.c.sink))
    return dict.fromkeys(here.sinks, 0) | dict(map(tuple, found))


def let_go(here: Station, now: float | None = None) -> dict[str, int]:
    """Delete what the settings keep no longer; how many verdicts and photographs went."""
    settings, columns = here.settings, inspections.c
    now = time.time() if now is None else now
    gone = Counter({"verdicts": 0, "photographs": 0})
    if settings.keep is not None:
        old = columns.at < now - settings.keep.total_seconds()
        while rows := here.store.rows(select(inspections).where(old).order_by(columns.id).limit(BATCH)):
            gone["photographs"] += _drop_photographs(here, rows, "older than --keep")
            numbers = [row.id for row in rows]
            with here.store.write() as connection:
                connection.execute(delete(inspections).where(columns.id.in_(numbers)))
                connection.execute(delete(labels).where(labels.c.inspection.in_(numbers)))
                told = {"verdicts": len(rows), "first": numbers[0], "last": numbers[-1], "why": "older than --keep"}
                here.store.note(connection, "deleted", "station", told)
            gone["verdicts"] += len(rows)
    if settings.keep_images != "all":
        unwanted = and_(columns.image_kept, columns.at < now - GRACE, ~_kept_images(settings.keep_images))
        while rows := here.store.rows(select(inspections).where(unwanted).order_by(columns.id).limit(BATCH)):
            gone["photographs"] += _drop_photographs(here, rows, "not of --keep-images")
    if settings.max_disk is not None:
        sizes = dict(here.pictures.sizes())
        excess: float = sum(sizes.values()) - settings.max_disk
        excess += (1 - FULL) * settings.max_disk if excess > 0 else 0
        while excess > 0:
            query = select(inspections).where(columns.image_kept).order_by(columns.id).limit(BATCH)
            rows, freed = [], 0
            for row in here.store.rows(query):
                rows, freed = [*rows, row], freed + sizes.get(row.image, 0)
                if freed >= excess:
                    break
            if not rows:
                break
            gone["photographs"] += _drop_photographs(here, rows, "above --max-disk")
            excess -= sum(sizes.pop(row.image, 0) for row in rows if not here.pictures.path(row.image).exists())
    with here.store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.expires < now))
    return dict(gone)


def _kept_images(words: str) -> Any:
    """A condition on rows, of ``rejected,reviewed,labelled,1%``; the share is by number, and so always the same."""
    columns, kept = inspections.c, []
    for word in words.split(","):
        if word.endswith("%"):
            kept.append(columns.id % 10_000 < round(100 * float(word[:-1])))
        elif word in ("rejected", "reviewed"):
            kept.append(columns.decision == {"rejected": "reject", "reviewed": "review"}[word])
        elif word == "labelled":
            kept.append(columns.said.is_not(None))
        elif word == "all":
            kept.append(columns.id > 0)
    return or_(columns.id < 0, func.coalesce(or_(*kept), False)) if kept else columns.id < 0


def _drop_photographs(here: Station, rows: Any, why: str) -> int:
    """Delete files that no other row needs, after the rows say so."""
    numbers = [row.id for row in rows if row.image_kept]
    if not numbers:
        return 0
    columns = inspections.c
    with here.pictures.lock:  # no photograph of the same content arrives in between
        with here.store.write() as connection:
            connection.execute(update(inspections).where(columns.id.in_(numbers)).values(image_kept=False))
            told = {"photographs": len(numbers), "first": numbers[0], "last": numbers[-1], "why": why}
            here.store.note(connection, "deleted", "station", told)
        images = {row.image for row in rows}
        needed: set[Row[Any]] = set()
        for row in here.store.rows(select(columns.image).where(columns.image.in_(images), columns.image_kept)):
            needed.add(row.image)
        for image in images - needed:
            here.pictures.remove(image)
    return len(numbers)
