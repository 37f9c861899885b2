"""The first tables: a store that is new is made whole from ``tables.py``, so that this step has nothing to do."""

revision, down_revision = "0001", None


def upgrade() -> None:
    pass
