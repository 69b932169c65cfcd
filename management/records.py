"""The record pool on disk: what was acknowledged, what is decided, and what ended outside the chain.

Everything here blocks. One thread writes; the lock keeps it and the thread that appends blocks from waiting for
each other inside the database, where waiting is polling.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from ledger import schema as chain_schema
from ledger.store import ChainStore, Location
from management import schema
from management.outcome import Refusal
from management.schema import decided, records, refusals
from protocol.block import Block
from protocol.canonical import TxId
from protocol.transaction import Transaction

REFUSALS_KEPT: Final = 200_000
"""How many outcomes outside the chain are remembered; the devices' guards remember final ones longer."""
KEYS_PER_QUERY: Final = 1000


class Row(msgspec.Struct, frozen=True):
    """An acknowledged transaction, ready to be written. Times are milliseconds since the epoch."""

    sequence: int
    transaction: Transaction
    received_at: int


class Settlement(msgspec.Struct, frozen=True):
    """A pooled transaction that will be in no block, and why."""

    transaction: TxId
    refusal: Refusal
    time: int


class Work(msgspec.Struct):
    """What goes into one commit: transactions to keep, and transactions to let go."""

    rows: list[Row] = []
    settlements: list[Settlement] = []


class Known(msgspec.Struct):
    """Those of the transactions that were not taken because their outcome is known already."""

    located: dict[TxId, Location] = {}
    refused: dict[TxId, Refusal] = {}

    def __contains__(self, transaction: TxId) -> bool:
        return transaction in self.located or transaction in self.refused


class RecordStore:
    """The tables of the record pool, in the database of the chain."""

    def __init__(self, chain: ChainStore) -> None:
        self.chain = chain
        self.engine = chain.engine
        self.write_lock = threading.Lock()
        self._settled = 0

    @staticmethod
    def open(chain: ChainStore) -> "RecordStore":
        """The record pool beside a chain, brought to this release's schema; raises `StoreError`."""
        chain_schema.upgrade(chain.engine, schema.MIGRATIONS, schema.VERSION_TABLE)
        return RecordStore(chain)

    def load(self) -> list[tuple[int, bytes]]:
        """All pooled transactions: sequence and bytes, in the order of receipt."""
        query = sa.select(records.c.sequence, records.c.raw).order_by(records.c.sequence)
        with self.engine.connect() as connection:
            return [(sequence, bytes(raw)) for sequence, raw in connection.execute(query)]

    def write(self, work: Work) -> Known:
        """One commit (group commit): when it returns, everything in `work` survives a power loss.

        Transactions that the chain holds, or that were finally refused, are not taken: the answer names them.
        """
        known = self.outcomes([row.transaction.id for row in work.rows]) if work.rows else Known()
        taken = [row for row in work.rows if row.transaction.id not in known.located]
        taken = [row for row in taken if not _is_final(known.refused.get(row.transaction.id))]
        retried = [row.transaction.id for row in taken if row.transaction.id in known.refused]
        for transaction in retried:
            del known.refused[transaction]
        with self.write_lock, chain_schema.writing(self.engine) as connection:
            if taken:
                connection.exec_driver_sql(*_many(self.engine, sa.insert(records), [_values(row) for row in taken]))
            self._forget_refusals(connection, [*retried, *(each.transaction for each in work.settlements)])
            if work.settlements:
                connection.execute(sa.insert(refusals), [_outcome(each) for each in work.settlements])
                self.delete(connection, [each.transaction for each in work.settlements])
                self._prune(connection, len(work.settlements))
        return known

    def outcomes(self, ids: Sequence[TxId]) -> Known:
        """What is known of transactions that are not in the pool."""
        known = Known(located=self.chain.locate(ids), refused={})
        with self.engine.connect() as connection:
            for some in _chunks(ids):
                query = sa.select(refusals.c.problem).where(refusals.c.id.in_([bytes.fromhex(each) for each in some]))
                for (problem,) in connection.execute(query):
                    refusal = _refusal_decoder.decode(problem)
                    if refusal.transaction:
                        known.refused[refusal.transaction] = refusal
        return known

    def delete(self, connection: sa.Connection, ids: Iterable[TxId]) -> None:
        """Take transactions out of the pool, inside a commit of the caller's."""
        values: list[tuple[object, ...]] = [(bytes.fromhex(each),) for each in ids]
        if values:
            statement = sa.delete(records).where(records.c.id == sa.bindparam("b_id"))
            connection.exec_driver_sql(*_many(self.engine, statement, values))

    def decide(self, block: Block, body: bytes, center: str) -> None:
        """Record, before anybody signs it, that this is the block of its height and who is about to sign.

        A crash after this line signs and appends the same block at the next start; a crash before it signed nothing.
        """
        row = {
            "height": block.header.height,
            "center": center,
            "authentication": block.authentication,
            "body": body,
        }
        with self.write_lock, chain_schema.writing(self.engine) as connection:
            connection.execute(sa.insert(decided), row)

    def undecided_body(self, height: int) -> bytes | None:
        """The canonical bytes (header unsigned) of the block that is decided for `height`, if there is one."""
        with self.engine.connect() as connection:
            body = connection.scalar(sa.select(decided.c.body).where(decided.c.height == height))
        return None if body is None else bytes(body)

    def finish(self, connection: sa.Connection, block: Block) -> None:
        """Let go of a block's transactions and of the decision, inside the commit that appends the block."""
        self.delete(connection, [transaction.id for transaction in block.transactions])
        connection.execute(sa.delete(decided).where(decided.c.height <= block.header.height))

    def _forget_refusals(self, connection: sa.Connection, ids: Sequence[TxId]) -> None:
        for some in _chunks(ids):
            connection.execute(sa.delete(refusals).where(refusals.c.id.in_([bytes.fromhex(each) for each in some])))

    def _prune(self, connection: sa.Connection, added: int) -> None:
        """Keep the newest outcomes only; looked at once in a while, because counting walks the table."""
        before, self._settled = self._settled, self._settled + added
        if before // 1000 == self._settled // 1000 and before:
            return
        count = connection.scalar(sa.select(sa.func.count()).select_from(refusals)) or 0
        if count > REFUSALS_KEPT:
            oldest = sa.select(refusals.c.id).order_by(refusals.c.time).limit(count - REFUSALS_KEPT)
            connection.execute(sa.delete(refusals).where(refusals.c.id.in_(oldest)))


def _many(
    engine: sa.Engine, statement: sa.Insert | sa.Delete, values: list[tuple[object, ...]]
) -> tuple[str, list[tuple[object, ...]]]:
    """A statement in the driver's own words: many rows at a fraction of SQLAlchemy's cost for each."""
    return str(statement.compile(dialect=engine.dialect)), values


def _values(row: Row) -> tuple[object, ...]:
    transaction = row.transaction
    return (
        row.sequence,
        bytes.fromhex(transaction.id),
        transaction.raw,
        row.received_at,
        transaction.payload.valid_until,
    )


def _outcome(settlement: Settlement) -> dict[str, object]:
    refusal = msgspec.structs.replace(settlement.refusal, transaction=settlement.transaction)
    return {
        "id": bytes.fromhex(settlement.transaction),
        "time": settlement.time,
        "final": refusal.final,
        "problem": msgspec.json.encode(refusal),
    }


def _is_final(refusal: Refusal | None) -> bool:
    return refusal is not None and refusal.final


def _chunks(ids: Sequence[TxId]) -> Iterable[Sequence[TxId]]:
    return (ids[i : i + KEYS_PER_QUERY] for i in range(0, len(ids), KEYS_PER_QUERY))


_refusal_decoder = msgspec.json.Decoder(Refusal)
