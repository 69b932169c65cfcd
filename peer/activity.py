"""The index of what each key signed: which blocks to read for it. Written in the same commit as the block (K-14)."""

import sqlalchemy as sa

from ledger import schema as chain_schema
from ledger.store import ChainStore
from peer import schema
from peer.schema import activity, activity_covered
from protocol import trace
from protocol.block import Block

BLOCKS_AT_ONCE = 64
"""How many blocks one commit adds when the index is made for a chain that is there already."""


class Activity:
    """The index of one chain."""

    def __init__(self, store: ChainStore) -> None:
        self._store = store

    @staticmethod
    def open(store: ChainStore) -> "Activity":
        """The index of a chain, brought to its height: a chain that an older release kept is read once."""
        chain_schema.upgrade(store.engine, schema.MIGRATIONS, schema.VERSION_TABLE)
        index = Activity(store)
        index._catch_up()
        return index

    def record(self, connection: sa.Connection, block: Block) -> None:
        """Take in the next block; for `Replica.append`, inside its commit."""
        rows = [{"key": bytes.fromhex(key), "height": block.header.height} for key in sorted(trace.signers(block))]
        if rows:
            connection.execute(sa.insert(activity), rows)
        connection.execute(sa.delete(activity_covered))
        connection.execute(sa.insert(activity_covered).values(one=1, height=block.header.height))

    def heights(self, key: str, *, start: int, limit: int) -> list[int]:
        """The heights of at most `limit` blocks from `start` on that hold a signature of `key`, in order."""
        query = (
            sa.select(activity.c.height)
            .where(activity.c.key == bytes.fromhex(key), activity.c.height >= start)
            .order_by(activity.c.height)
            .limit(limit)
        )
        with self._store.engine.connect() as connection:
            return list(connection.scalars(query))

    def covered(self) -> int:
        """Up to which height the index is complete; -1 when it is empty."""
        with self._store.engine.connect() as connection:
            height = connection.scalar(sa.select(activity_covered.c.height))
        return -1 if height is None else int(height)

    def _catch_up(self) -> None:
        height, top = self.covered() + 1, self._store.height()
        while height <= top:
            with chain_schema.writing(self._store.engine) as connection:
                for each in range(height, min(height + BLOCKS_AT_ONCE, top + 1)):
                    data = self._store.block(each)
                    if data is not None:
                        self.record(connection, Block.decode(data))
            height += BLOCKS_AT_ONCE
