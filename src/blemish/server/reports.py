"""A shift on one page: what was judged, what people said, what changed."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Float, cast, func, select

from blemish.server.health import promise
from blemish.server.station import Station
from blemish.server.store import TIMES, Search, as_json, spoken_time
from blemish.server.tables import audit, inspections

COLUMNS = (
    *("id", "at", "model", "path", "part", "decision", "score", "p_value", "said", "kind", "source", "digest"),
    *("regions", "brightness", "sharpness", "milliseconds", "image_sha256"),
)
TOLD = ("model active", "model retired", "said", "taken back", "promise withdrawn", "promise restored", "deleted")
WORST, PAGE = 12, 1000


def shift(station: Station, search: Search) -> dict[str, Any]:
    """Counts in all and by hour, the strangest parts, and what the audit trail has of that time."""
    columns = inspections.c
    hour = func.floor(cast(columns.at, Float) / 3600).label("hour")
    query = search.apply(select(hour, columns.decision, func.count().label("n"), func.avg(columns.score)))
    hours: dict[str, dict[str, Any]] = {}
    for at, decision, n, mean in map(tuple, station.store.rows(query.group_by(hour, columns.decision).order_by(hour))):
        row = hours.setdefault(spoken_time(3600 * at), dict.fromkeys(("ok", "review", "reject", "undecided"), 0))
        row[decision or "undecided"] = n
        row[f"mean_score_{decision or 'undecided'}"] = mean
    # By p-value first: scores compare images of one model alone. One that is not finite is the strangest there is.
    order = (columns.score.is_not(None), func.coalesce(columns.p_value, 1), columns.score.desc(), columns.id.desc())
    strange = search.apply(select(inspections)).order_by(*order).limit(WORST)
    changes = select(audit).where(audit.c.kind.in_(TOLD)).order_by(audit.c.id.desc()).limit(PAGE)
    for name, of in TIMES.items():
        if (value := getattr(search, name)) is not None:
            changes = changes.where(of(audit.c.at, value))
    names = [search.model] if search.model in station.judges else [*station.judges]
    return {
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "filters": search.model_dump(mode="json", exclude_none=True, exclude={"limit", "cursor"}),
        "counts": station.store.count(search),
        "hours": [{"hour": at, **row} for at, row in hours.items()],
        "worst": [as_json(row) for row in station.store.rows(strange)],
        "promises": [{"model": name, **promise(station, name)} for name in names if name is not None],
        "changes": [audit_json(row) for row in station.store.rows(changes)][::-1],
    }


def audit_json(row: Any) -> dict[str, Any]:
    """A row of the audit trail as answers have it."""
    named = {name: getattr(row, name) for name in ("id", "kind", "actor", "hash")}
    return {**named, "at": spoken_time(row.at), "body": json.loads(row.body)}


def as_csv(station: Station, search: Search, for_excel: bool) -> Iterator[str]:
    """A row for each verdict, newest first, in pieces; no text from outside is a formula in a spreadsheet."""
    search = search.model_copy(update={"limit": PAGE})
    lines: list[list[Any]] = [list(COLUMNS)]
    if for_excel:  # which takes text without this mark for a Windows one
        yield "\ufeff"
    while True:
        page = station.store.find(search)
        for one in page["inspections"]:
            values = [len(one[name]) if name == "regions" else one[name] for name in COLUMNS]
            lines.append([_harmless(value) if isinstance(value, str) else value for value in values])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        yield text.getvalue()
        if page["next"] is None:
            return
        lines, search = [], search.model_copy(update={"cursor": page["next"]})


def _harmless(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
