"""What the registry has ever said: every version of its entries, with the height and block time of each change."""

from collections.abc import Iterator
from typing import Final

import msgspec
import sqlalchemy as sa

from ledger.schema import blocks, registry_history
from ledger.store import ChainStore

ROWS_PER_READ: Final = 2000


class Version(msgspec.Struct, frozen=True):
    """An entry (canonical bytes) as a block left it; `entry` is None where the block removed it."""

    key: str
    """`kind/name`."""
    height: int
    time: int
    """The block's time, in milliseconds since the epoch."""
    entry: bytes | None


def versions(store: ChainStore, kind: str, *, after: int = -1) -> Iterator[Version]:
    """All versions of the entries of one kind (`client` for all `client/…`) from blocks above `after`.

    In the order of the chain, entry by entry in a block; one snapshot of the database. Blocks the caller.
    """
    query = (
        sa.select(registry_history.c.key, registry_history.c.height, blocks.c.time, registry_history.c.entry)
        .join(blocks, blocks.c.height == registry_history.c.height)
        .where(
            registry_history.c.key >= f"{kind}/",
            registry_history.c.key < f"{kind}0",  # "0" is what follows "/"
            registry_history.c.height > after,
        )
        .order_by(registry_history.c.height, registry_history.c.key)
    )
    with store.engine.connect() as connection:
        for row in connection.execution_options(yield_per=ROWS_PER_READ).execute(query):
            yield Version(row.key, row.height, row.time, None if row.entry is None else bytes(row.entry))


def block_time(store: ChainStore, height: int) -> int:
    """The time of the block at `height`, in milliseconds since the epoch; zero where there is no such block."""
    with store.engine.connect() as connection:
        return connection.scalar(sa.select(blocks.c.time).where(blocks.c.height == height)) or 0
