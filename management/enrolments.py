"""Who was invited to enrol, who asks for it, and what they were given: rows beside the record pool. Blocks."""

from typing import Final, Literal

import msgspec
import sqlalchemy as sa

from ledger.schema import writing
from management.errors import BusyError, EnrolmentError
from management.records import RecordStore
from management.schema import enrolments

MOST_WAITING: Final = 1000
"""Requests without a secret that may wait for an operator at one time: anybody can make one."""

State = Literal["invited", "waiting", "approved", "issuing", "issued", "refused"]


class Enrolment(msgspec.Struct, frozen=True):
    """One client's way to its certificate, in the order of the table's columns; the secret `expires` (epoch, ms)."""

    name: str
    state: State
    secret_hash: bytes | None = None
    expires: int = 0
    csr: bytes | None = None
    certificate: bytes | None = None
    transaction: str | None = None


class Enrolments:
    """The table of enrolments."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def find(self, name: str) -> Enrolment | None:
        """The enrolment of a name."""
        with self._store.engine.connect() as connection:
            row = connection.execute(sa.select(enrolments).where(enrolments.c.name == name)).first()
        return None if row is None else _enrolment(row)

    def waiting(self) -> list[Enrolment]:
        """Those that wait for an operator."""
        with self._store.engine.connect() as connection:
            query = sa.select(enrolments).where(enrolments.c.state == "waiting").order_by(enrolments.c.name)
            return [_enrolment(row) for row in connection.execute(query)]

    def put(self, enrolment: Enrolment) -> None:
        """Keep an enrolment as it stands now, durably."""
        values = msgspec.structs.asdict(enrolment)
        with self._store.write_lock, writing(self._store.engine) as connection:
            changed = connection.execute(
                sa.update(enrolments).where(enrolments.c.name == enrolment.name).values(values)
            )
            if changed.rowcount == 0:
                connection.execute(sa.insert(enrolments), values)

    def ask(self, name: str, csr: bytes) -> Enrolment:
        """A request without a secret now waits for an operator; raises `BusyError` when too many do."""
        with self._store.engine.connect() as connection:
            query = sa.select(sa.func.count()).select_from(enrolments).where(enrolments.c.state == "waiting")
            count = connection.scalar(query) or 0
        if count >= MOST_WAITING:
            raise BusyError(f"{count} enrolments wait for an operator already; ask for an enrolment secret", 60)
        enrolment = Enrolment(name, "waiting", csr=csr)
        self.put(enrolment)
        return enrolment

    def decide(self, name: str, state: Literal["approved", "refused"]) -> Enrolment:
        """An operator's decision about one that waits; raises `EnrolmentError`."""
        enrolment = self.find(name)
        if enrolment is None or enrolment.state != "waiting":
            found = "nothing" if enrolment is None else f"an enrolment that is {enrolment.state}"
            raise EnrolmentError("not-waiting", f"{found} where a waiting enrolment of {name} is expected")
        decided = msgspec.structs.replace(enrolment, state=state)
        self.put(decided)
        return decided


def _enrolment(row: "sa.Row[tuple[object, ...]]") -> Enrolment:
    # SQLAlchemy's column names are strings of a kind of their own, which msgspec takes for none.
    return msgspec.convert(dict(zip(Enrolment.__struct_fields__, row, strict=True)), Enrolment)
