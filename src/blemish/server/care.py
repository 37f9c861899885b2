"""What a station does by itself: tests promises, lets go of what is kept no longer, and says what it deleted."""

import logging
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import Row, and_, delete, false, func, or_, select, true, update

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


class Maintenance(Worker):
    """What a station does by the clock: its lock, its promises, its gauges, and what it keeps no longer."""

    _patience = None  # a deletion that was begun ends

    def __init__(self, station: Station) -> None:
        self._station = station
        super().__init__()

    def _work(self) -> None:
        cleaned = -RETENTION_PERIOD
        while not self._ended.wait(PERIOD):
            try:
                self._station.store.renew_lock()
                for name in [*self._station.judges]:
                    watch_promise(self._station, name)
                waiting = self._station.store.rows(select(outbox.c.sink, func.count()).group_by(outbox.c.sink))
                for sink, count in [*dict.fromkeys(self._station.sinks, 0).items(), *map(tuple, waiting)]:
                    self._station.metrics.undelivered.labels(sink).set(count)
                room = self._station.settings.max_disk or float("inf")
                is_filling = self._station.pictures.written > (1 - FULL) * room
                if is_filling or time.monotonic() - cleaned >= RETENTION_PERIOD:
                    cleaned = time.monotonic()
                    apply_retention(self._station)
            except BlemishError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("maintenance failed")


def apply_retention(station: Station, now: float | None = None) -> None:
    """Delete what the settings keep no longer; the audit trail has how many verdicts and photographs went."""
    settings, columns = station.settings, inspections.c
    now = time.time() if now is None else now
    if settings.keep is not None:
        old = columns.at < now - settings.keep.total_seconds()
        while rows := station.store.rows(select(inspections).where(old).order_by(columns.id).limit(BATCH)):
            _drop_photographs(station, rows, "older than --keep")
            numbers = [row.id for row in rows]
            with station.store.write() as connection:
                connection.execute(delete(inspections).where(columns.id.in_(numbers)))
                connection.execute(delete(labels).where(labels.c.inspection.in_(numbers)))
                told = {"verdicts": len(rows), "first": numbers[0], "last": numbers[-1], "why": "older than --keep"}
                station.store.note(connection, "deleted", "station", told)
    if settings.keep_images != "all":
        unwanted = and_(columns.image_kept, columns.at < now - GRACE, ~_kept_images(settings.keep_images))
        while rows := station.store.rows(select(inspections).where(unwanted).order_by(columns.id).limit(BATCH)):
            _drop_photographs(station, rows, "not of --keep-images")
    if settings.max_disk is not None:
        station.pictures.written, sizes = 0, dict(station.pictures.sizes())
        excess: float = sum(sizes.values()) - settings.max_disk
        excess += (1 - FULL) * settings.max_disk if excess > 0 else 0
        oldest = select(inspections).where(columns.image_kept).order_by(columns.id).limit(BATCH)
        while excess > 0 and (rows := station.store.rows(oldest)):
            freed = [*accumulate(sizes.get(row.image, 0) for row in rows)]
            rows = rows[: bisect_left(freed, excess) + 1]
            _drop_photographs(station, rows, "above --max-disk")
            excess -= sum(sizes.pop(row.image, 0) for row in rows if not station.pictures.path(row.image).exists())
    with station.store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.expires < now))


def _kept_images(words: str) -> Any:
    """A condition on rows, of ``rejected,reviewed,labelled,1%``; the share is by number: the same always, spread."""
    columns = inspections.c
    named = {
        "all": true(),
        "none": false(),
        "rejected": columns.decision.is_not_distinct_from("reject"),
        "reviewed": columns.decision.is_not_distinct_from("review"),
        "labelled": columns.said.is_not(None),
    }
    shares = (word for word in words.split(",") if word.endswith("%"))
    kept = [named[word] for word in words.split(",") if word in named]
    return or_(
        false(), *kept, *(columns.id % 10_000 * 6181 % 10_000 < round(100 * float(share[:-1])) for share in shares)
    )


def _drop_photographs(station: Station, rows: Sequence[Row[Any]], why: str) -> None:
    """Delete files that no other row needs, after the rows say so."""
    numbers, columns = [row.id for row in rows if row.image_kept], inspections.c
    if not numbers:
        return
    with station.pictures.lock:  # no photograph of the same content arrives in between
        images = {row.image for row in rows}
        other = (columns.image.in_(images), columns.image_kept, columns.id.not_in(numbers))
        needed = station.store.rows(select(columns.image).where(*other))
        for image in images.difference(row.image for row in needed):
            station.pictures.remove(image)
        with station.store.write() as connection:
            connection.execute(update(inspections).where(columns.id.in_(numbers)).values(image_kept=False))
            told = {"photographs": len(numbers), "first": numbers[0], "last": numbers[-1], "why": why}
            station.store.note(connection, "deleted", "station", told)
