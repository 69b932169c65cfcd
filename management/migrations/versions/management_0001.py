"""The first release's tables."""

import sqlalchemy as sa
from alembic import op

revision = "management_0001"
down_revision = None


def upgrade() -> None:
    """Create the tables of the record pool."""
    op.create_table(
        "records",
        sa.Column(
            "sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False
        ),
        sa.Column("id", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("valid_until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "decided",
        sa.Column("height", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("center", sa.String(64), nullable=False),
        sa.Column("authentication", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.LargeBinary(32), primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False, index=True),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("problem", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "enrolments",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=True),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.Column("csr", sa.LargeBinary, nullable=True),
        sa.Column("certificate", sa.LargeBinary, nullable=True),
        sa.Column("transaction", sa.String(64), nullable=True),
    )
