"""The first release's tables."""

import sqlalchemy as sa
from alembic import op

revision = "peer_0001"
down_revision = None


def upgrade() -> None:
    """Create the index of what each key signed."""
    op.create_table(
        "activity",
        sa.Column("key", sa.LargeBinary(32), primary_key=True),
        sa.Column("height", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "activity_covered",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("height", sa.BigInteger, nullable=False),
    )
