"""The first tables, as they were then."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def _columns(kind: Any, names: str, nullable: bool = False) -> Iterator[sa.Column[Any]]:
    for name in names.split():
        yield sa.Column(name, kind, nullable=nullable)


def upgrade() -> None:
    double, short, digest, name = sa.Double, sa.String(8), sa.String(64), sa.String(64)
    person, text, whole, flag = sa.String(100), sa.Text, sa.Integer, sa.Boolean
    op.create_table(
        "inspections",
        sa.Column("id", whole, primary_key=True),
        *_columns(double, "at brightness sharpness milliseconds"),
        *_columns(name, "model source"),
        *_columns(digest, "digest image"),
        *_columns(flag, "image_kept"),
        *_columns(text, "name"),
        *_columns(sa.String(200), "part", nullable=True),
        *_columns(short, "decision", nullable=True),
        *_columns(double, "score p_value", nullable=True),
        *_columns(sa.JSON, "regions"),
        *_columns(whole, "width height batch position"),
        *_columns(sa.String(4), "said", nullable=True),
        *_columns(person, "kind", nullable=True),
        sqlite_autoincrement=True,
    )
    for index, columns in (("at", ["at"]), ("model", ["model", "id"]), ("part", ["part"]), ("image", ["image"])):
        op.create_index(f"ix_inspections_{index}", "inspections", columns)
    op.create_table(
        "labels",
        sa.Column("id", whole, primary_key=True),
        *_columns(double, "at"),
        *_columns(whole, "inspection"),
        *_columns(sa.String(4), "said"),
        *_columns(person, "kind person"),
    )
    op.create_index("ix_labels_inspection", "labels", ["inspection"])
    op.create_table(
        "models",
        sa.Column("name", name, primary_key=True),
        sa.Column("digest", digest, primary_key=True),
        *_columns(sa.String(16), "suffix"),
        *_columns(sa.String(10), "state"),
        *_columns(double, "at"),
        *_columns(text, "why"),
        *_columns(digest, "scores"),
    )
    op.create_table(
        "audit",
        sa.Column("id", whole, primary_key=True),
        *_columns(double, "at"),
        *_columns(sa.String(32), "kind"),
        *_columns(person, "actor"),
        *_columns(text, "body"),
        *_columns(digest, "hash"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tokens",
        sa.Column("hash", digest, primary_key=True),
        *_columns(person, "name"),
        *_columns(short, "role"),
        *_columns(double, "at"),
        *_columns(flag, "revoked"),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", digest, primary_key=True),
        *_columns(digest, "token csrf"),
        *_columns(double, "expires"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", whole, primary_key=True),
        *_columns(name, "sink"),
        *_columns(whole, "inspection"),
        *_columns(sa.LargeBinary, "body"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_sink", "outbox", ["sink"])
