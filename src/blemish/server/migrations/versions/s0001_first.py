"""The first tables."""

from alembic import op

from blemish.server.tables import metadata

revision, down_revision = "0001", None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
