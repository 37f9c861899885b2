"""What a station remembers, as tables. Times are seconds since 1970, in UTC; texts from outside are only ever values.

A change here needs a step in ``migrations/versions``, by which a store of the version before becomes one of this.
"""

from sqlalchemy import JSON, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()
Float = Double  # 64 bits everywhere: a score must come back as it was

inspections = Table(
    "inspections",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("model", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # of the model's file
    Column("image", String(64), nullable=False),  # SHA-256 of the image file's content: its name on disk
    Column("image_kept", Boolean, nullable=False),
    Column("source", String(64), nullable=False),  # http, or the name of a watched folder or camera
    Column("name", Text, nullable=False),  # of the file, as the sender called it
    Column("part", String(200)),
    Column("decision", String(8)),
    Column("score", Float),  # None where it is not finite
    Column("p_value", Float),
    Column("regions", JSON, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("brightness", Float, nullable=False),
    Column("sharpness", Float, nullable=False),
    Column("milliseconds", Float, nullable=False),  # from arrival to judged
    Column("batch", Integer, nullable=False),  # how many images were judged together ...
    Column("position", Integer, nullable=False),  # ... and which of them this was: what a replay repeats
    Column("said", String(4)),  # good or bad: what a person said last
    Column("kind", String(100)),  # of defect, where a person named it
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
    Column("at", Float, nullable=False),
    Column("inspection", Integer, nullable=False, index=True),
    Column("said", String(4), nullable=False),
    Column("kind", String(100), nullable=False),
    Column("person", String(100), nullable=False),
)
models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),  # of the file, which is kept below that name
    Column("suffix", String(16), nullable=False),
    Column("state", String(10), nullable=False),  # active or retired
    Column("at", Float, nullable=False),  # since when it has that state
    Column("why", Text, nullable=False),
    Column("scores", String(64), nullable=False),  # digest of the first model that gave the same scores
)
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("actor", String(100), nullable=False),
    Column("body", Text, nullable=False),  # JSON
    Column("hash", String(64), nullable=False),  # of the row before and of this one
    sqlite_autoincrement=True,
)
tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("role", String(8), nullable=False),
    Column("at", Float, nullable=False),
    Column("revoked", Boolean, nullable=False),
)
sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("token", String(64), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("expires", Float, nullable=False),
)
windows = Table(  # of consecutive parts, each tested once against the promise
    "windows",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("last", Integer, nullable=False),  # inspection
    Column("since", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("parts", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    Column("p_rejected", Float, nullable=False),
    Column("p_scores", Float, nullable=False),
    Column("alarm", Boolean, nullable=False),  # until a person has acknowledged it
    Index("ix_windows_model", "model", "digest", "id"),
)
outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sink", String(64), nullable=False, index=True),
    Column("inspection", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
