"""What the CA has issued, and its last lists of revoked certificates: rows beside the record pool. Blocks.

A key has one certificate of one issuer: its serial number follows from both (see `protocol.x509_tbs`). That a client's
or a node's key is revoked stands in the registry; services are not in it, so their revocations stand here.
"""

import msgspec
import sqlalchemy as sa

from ledger.schema import writing
from management.certificate import Kind
from management.records import RecordStore
from management.schema import certificates, revocation_lists
from protocol.registry import Reason


class Issued(msgspec.Struct, frozen=True):
    """A certificate (DER) and what is in it, in the order of the table's columns. Times in ms since the epoch."""

    issuer: str
    """The id of the CA's key."""
    key: str
    """The id of the certified key."""
    serial: str
    kind: Kind
    name: str
    not_before: int
    not_after: int
    certificate: bytes
    revoked: int | None = None
    reason: Reason | None = None
    voucher: str | None = None
    """The id of the key on whose word a client's next key was certified."""


class RevocationList(msgspec.Struct, frozen=True):
    """The last list of one issuer (DER), its number, and a digest of what it lists."""

    issuer: str
    number: int
    contents: str
    list: bytes


class IssuedCertificates:
    """The two tables of the CA."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def put(self, issued: Issued) -> None:
        """Keep a certificate, durably."""
        with self._store.write_lock, writing(self._store.engine) as connection:
            connection.execute(sa.insert(certificates), msgspec.structs.asdict(issued))

    def find(self, issuer: str, key: str) -> Issued | None:
        """The certificate of a key by an issuer."""
        found = self._select(certificates.c.issuer == issuer, certificates.c.key == key)
        return found[0] if found else None

    def of_name(self, kind: Kind, name: str) -> list[Issued]:
        """All certificates of one kind for one name, the newest last."""
        return self._select(certificates.c.kind == kind, certificates.c.name == name)

    def all(self, kind: Kind | None = None) -> list[Issued]:
        """All certificates, the newest last; or those of one kind."""
        return self._select(*([certificates.c.kind == kind] if kind else []))

    def revoked(self) -> list[Issued]:
        """Those that an operator revoked here."""
        return self._select(certificates.c.revoked.is_not(None))

    def vouched(self) -> list[Issued]:
        """Those that were issued on the word of a client's key."""
        return self._select(certificates.c.voucher.is_not(None))

    def revoke(self, key: str, time: int, reason: Reason) -> None:
        """Revoke the certificates of a key, by whichever issuer; the first revocation stands."""
        with self._store.write_lock, writing(self._store.engine) as connection:
            connection.execute(
                sa.update(certificates)
                .where(certificates.c.key == key, certificates.c.revoked.is_(None))
                .values(revoked=time, reason=reason)
            )

    def list_of(self, issuer: str) -> RevocationList | None:
        """The last list of an issuer."""
        query = sa.select(revocation_lists).where(revocation_lists.c.issuer == issuer)
        with self._store.engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else RevocationList(row.issuer, row.number, row.contents, bytes(row.list))

    def keep_list(self, made: RevocationList) -> None:
        """The new list takes the place of the one before."""
        with self._store.write_lock, writing(self._store.engine) as connection:
            connection.execute(sa.delete(revocation_lists).where(revocation_lists.c.issuer == made.issuer))
            connection.execute(sa.insert(revocation_lists), msgspec.structs.asdict(made))

    def _select(self, *where: sa.ColumnElement[bool]) -> list[Issued]:
        query = sa.select(certificates).where(*where).order_by(certificates.c.not_before, certificates.c.name)
        with self._store.engine.connect() as connection:
            rows = connection.execute(query).all()
        return [msgspec.convert(dict(zip(Issued.__struct_fields__, row, strict=True)), Issued) for row in rows]
