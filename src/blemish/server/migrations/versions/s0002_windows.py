"""Windows of parts that were tested against the promise."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.create_table(
        "windows",
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("model", "digest")),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("last", "parts", "rejected")),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("since", "until", "p_rejected", "p_scores")),
        sa.Column("alarm", sa.Boolean, nullable=False),
    )
    op.create_index("ix_windows_model", "windows", ["model", "digest", "id"])
