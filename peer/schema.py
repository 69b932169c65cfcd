"""The peer's own tables, beside those of the chain in the same database: a block and its index are one commit."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "peer_version"

metadata = sa.MetaData()

activity = sa.Table(  # which blocks hold a signature of a key
    "activity",
    metadata,
    sa.Column("key", sa.LargeBinary(32), primary_key=True),  # the SHA-256 of the public key
    sa.Column("height", sa.BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
activity_covered = sa.Table(  # one row: up to which height the index is complete
    "activity_covered",
    metadata,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("height", sa.BigInteger, nullable=False),
)
