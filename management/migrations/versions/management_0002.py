"""The tables of the CA: what it has issued, and its lists of what is revoked."""

import sqlalchemy as sa
from alembic import op

revision = "management_0002"
down_revision = "management_0001"


def upgrade() -> None:
    """Create the tables of the CA."""
    op.create_table(
        "certificates",
        sa.Column("issuer", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False, index=True),
        sa.Column("not_before", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("revoked", sa.BigInteger, nullable=True),
        sa.Column("reason", sa.String(32), nullable=True),
        sa.Column("voucher", sa.String(64), nullable=True),
    )
    op.create_table(
        "revocation_lists",
        sa.Column("issuer", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("contents", sa.String(64), nullable=False),
        sa.Column("list", sa.LargeBinary, nullable=False),
    )
