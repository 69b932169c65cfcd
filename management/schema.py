"""The tables of the record pool, beside those of the chain in the same database: a cut is one commit over both."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "management_version"

metadata = sa.MetaData()

records = sa.Table(  # acknowledged transactions that are in no block yet
    "records",
    metadata,
    sa.Column(
        "sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False
    ),  # the order of receipt
    sa.Column("id", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("raw", sa.LargeBinary, nullable=False),  # the canonical bytes as they came
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("valid_until", sa.BigInteger, nullable=False),
)
decided = sa.Table(  # at most one block that is decided and not signed yet
    "decided",
    metadata,
    sa.Column("height", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("center", sa.String(64), nullable=False),  # who is about to sign it
    sa.Column("authentication", sa.String(64), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # canonical bytes, the header unsigned
)
refusals = sa.Table(  # what ended outside the chain
    "refusals",
    metadata,
    sa.Column("id", sa.LargeBinary(32), primary_key=True),
    sa.Column("time", sa.BigInteger, nullable=False, index=True),
    sa.Column("final", sa.Boolean, nullable=False),
    sa.Column("problem", sa.LargeBinary, nullable=False),  # JSON of `management.outcome.Refusal`
)
enrolments = sa.Table(
    "enrolments",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # invited, waiting, approved, issuing, issued, refused
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=True),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("csr", sa.LargeBinary, nullable=True),  # DER
    sa.Column("certificate", sa.LargeBinary, nullable=True),  # DER
    sa.Column("transaction", sa.String(64), nullable=True),
)
certificates = sa.Table(  # every certificate that the CA's key has signed here
    "certificates",
    metadata,
    sa.Column("issuer", sa.String(64), primary_key=True),  # the id of the CA's key
    sa.Column("key", sa.String(64), primary_key=True),  # the id of the key that is certified
    sa.Column("serial", sa.String(40), nullable=False),  # hexadecimal; it follows from the two keys
    sa.Column("kind", sa.String(16), nullable=False),  # client, node, service
    sa.Column("name", sa.String(64), nullable=False, index=True),
    sa.Column("not_before", sa.BigInteger, nullable=False),
    sa.Column("not_after", sa.BigInteger, nullable=False),
    sa.Column("certificate", sa.LargeBinary, nullable=False),  # DER
    sa.Column("revoked", sa.BigInteger, nullable=True),  # when an operator revoked it; clients and nodes: the registry
    sa.Column("reason", sa.String(32), nullable=True),
    sa.Column("voucher", sa.String(64), nullable=True),  # the id of the key on whose word it was issued
)
revocation_lists = sa.Table(
    "revocation_lists",
    metadata,
    sa.Column("issuer", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("contents", sa.String(64), nullable=False),  # SHA-256 over what it lists
    sa.Column("list", sa.LargeBinary, nullable=False),  # DER
)
