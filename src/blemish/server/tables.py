"""What a station remembers, as tables. Times are seconds since 1970, in UTC; texts from outside are only ever values.

A change here needs a step in ``migrations/versions``, by which a store of the version before becomes one of this.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, String, Table, Text

VERSION = "0002"  # the newest step
metadata = MetaData()
Float = Double  # 64 bits everywhere: a score must come back as it was
Short, Word, Name, Digest = String(8), String(16), String(64), String(64)


def _of(kind: Any, names: str, **options: Any) -> Iterator[Column[Any]]:
    for name in names.split():
        yield Column(name, kind, **{"nullable": False, **options})


inspections = Table(
    "inspections",
    metadata,
    Column("id", Integer, primary_key=True),
    *_of(Float, "at brightness sharpness"),
    *_of(Float, "milliseconds"),  # from arrival to judged
    *_of(Name, "model"),
    *_of(Digest, "digest image"),  # SHA-256 of the model's file and of the image file: their names on disk
    *_of(Boolean, "image_kept"),
    *_of(Name, "source"),  # http, folder, camera or line
    *_of(Text, "name"),  # of the file, as the sender called it
    *_of(String(200), "part", nullable=True),
    *_of(Short, "decision", nullable=True),
    *_of(Float, "score p_value", nullable=True),  # None where it is not finite
    *_of(JSON, "regions"),
    *_of(Integer, "width height"),
    *_of(Integer, "batch position"),  # how many images were judged together, and which of them: a replay repeats it
    *_of(String(4), "said", nullable=True),  # good or bad: what a person said last
    *_of(String(100), "kind", nullable=True),  # of defect, where a person named it
    Index("ix_inspections_at", "at"),
    Index("ix_inspections_model", "model", "id"),
    Index("ix_inspections_part", "part"),
    Index("ix_inspections_image", "image"),
    sqlite_autoincrement=True,  # a number is never given twice, also after rows were deleted
)
labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    *_of(Float, "at"),
    *_of(Integer, "inspection", index=True),
    *_of(String(4), "said"),
    *_of(String(100), "kind person"),
)
models = Table(
    "models",
    metadata,
    *_of(Name, "name digest", primary_key=True),  # the file is kept below its digest
    *_of(Word, "suffix"),
    *_of(String(10), "state"),  # active or retired
    *_of(Float, "at"),  # since when it has that state
    *_of(Text, "why"),
    *_of(Digest, "scores"),  # digest of the first model that gave the same scores
)
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    *_of(Float, "at"),
    *_of(String(32), "kind"),
    *_of(String(100), "actor"),
    *_of(Text, "body"),  # JSON
    *_of(Digest, "hash"),  # of the row before and of this one
    sqlite_autoincrement=True,
)
tokens = Table(
    "tokens",
    metadata,
    Column("hash", Digest, primary_key=True),
    *_of(String(100), "name"),
    *_of(Short, "role"),
    *_of(Float, "at"),
    *_of(Boolean, "revoked"),
)
sessions = Table(
    "sessions",
    metadata,
    Column("hash", Digest, primary_key=True),
    *_of(Digest, "token csrf"),
    *_of(Float, "expires"),
)
windows = Table(  # of consecutive parts, each tested once against the promise
    "windows",
    metadata,
    Column("id", Integer, primary_key=True),
    *_of(Name, "model digest"),
    *_of(Integer, "last"),  # inspection
    *_of(Float, "since until"),
    *_of(Integer, "parts rejected"),
    *_of(Float, "p_rejected p_scores"),
    *_of(Boolean, "alarm"),  # until a person has acknowledged it
    Index("ix_windows_model", "model", "digest", "id"),
)
outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True),
    *_of(Name, "sink", index=True),
    *_of(Integer, "inspection"),
    *_of(LargeBinary, "body"),
    sqlite_autoincrement=True,
)
