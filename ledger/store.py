"""The chain store: blocks, where each transaction stands, the state, and the registry at every height.

One commit per block. Reads are safe from any thread; appending belongs to one.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ledger import schema
from ledger.contracts.registry import PREFIX as REGISTRY_PREFIX
from ledger.errors import StoreError
from ledger.schema import blocks, device_sequences, registry_history, state, transactions
from protocol import canonical
from protocol.block import Outcome
from protocol.canonical import TxId
from protocol.messages import CommitEvent

VERSION_TABLE: Final = "chain_version"
FETCH_AGAIN: Final = schema.FETCH_AGAIN
KEYS_PER_QUERY: Final = 500
ROWS_PER_READ: Final = 5000

_Row = tuple[Any, ...]


class Location(msgspec.Struct, frozen=True, gc=False):
    """Where a transaction stands in the chain, and what became of it."""

    height: int
    index: int
    code: str


class Commit(msgspec.Struct, frozen=True):
    """Everything that one block changes, ready to be written."""

    height: int
    time: int
    authentication: str
    body: bytes
    outcomes: list[Outcome]
    writes: Mapping[str, bytes | None]
    sequences: Mapping[str, int]
    """The highest tree-head sequence that the block shows, by device."""


class ChainStore:
    """A chain's database. Create and open are two functions: nothing is created implicitly."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._insert_block = _statement(engine, blocks)
        self._insert_transaction = _statement(engine, transactions)
        self._insert_history = _statement(engine, registry_history)
        self._put_state = _statement(engine, state, replace="value")
        # Votes that were carried over show an older sequence than the blocks before them.
        self._put_sequence = _statement(engine, device_sequences, replace="sequence", only_upwards=True)

    @staticmethod
    def create(url: str) -> "ChainStore":
        """A new, empty store; raises `StoreError` when there is one."""
        path = schema.sqlite_file(url)
        if path:
            _create_file(path)
        store = ChainStore(schema.engine(url))
        schema.upgrade(store.engine, schema.MIGRATIONS, VERSION_TABLE)
        if store.height() >= 0:
            raise StoreError(f"the database {sa.make_url(url).database} holds a chain already; open it")
        return store

    @staticmethod
    def open(url: str) -> "ChainStore":
        """The store that is there, brought to this release's schema; raises `StoreError`."""
        path = schema.sqlite_file(url)
        if path and not path.exists():
            raise StoreError(f"there is no chain at {path}; create it from the network's genesis.json")
        store = ChainStore(schema.engine(url))
        schema.upgrade(store.engine, schema.MIGRATIONS, VERSION_TABLE)
        return store

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    def height(self) -> int:
        """The height of the last block; -1 in an empty store."""
        with self.engine.connect() as connection:
            height = connection.scalar(sa.select(sa.func.max(blocks.c.height)))
        return -1 if height is None else int(height)

    def block(self, height: int) -> bytes | None:
        """The canonical bytes of a block."""
        with self.engine.connect() as connection:
            body = connection.scalar(sa.select(blocks.c.body).where(blocks.c.height == height))
        return None if body is None else bytes(body)

    def outcomes(self, height: int) -> list[Outcome] | None:
        """The outcomes of a block's transactions, in order."""
        with self.engine.connect() as connection:
            data = connection.scalar(sa.select(blocks.c.outcomes).where(blocks.c.height == height))
        return None if data is None else _outcomes_decoder.decode(data)

    def event(self, height: int) -> CommitEvent | None:
        """What the event stream says of a block."""
        query = sa.select(blocks.c.time, blocks.c.authentication, blocks.c.outcomes).where(blocks.c.height == height)
        with self.engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        outcomes = _outcomes_decoder.decode(row.outcomes)
        return CommitEvent(height, row.time, row.authentication, tuple((o.transaction, o.code) for o in outcomes))

    def locate(self, ids: Iterable[TxId]) -> dict[TxId, Location]:
        """Where those of the transactions stand that are in the chain."""
        rows = self._select("SELECT id, height, position, code FROM transactions WHERE id", map(bytes.fromhex, ids))
        return {TxId(bytes(each).hex()): Location(height, index, code) for each, height, index, code in rows}

    def fetch(self, keys: Collection[str]) -> dict[str, bytes]:
        """The values of those state keys that have one."""
        return {key: bytes(value) for key, value in self._select("SELECT key, value FROM state WHERE key", keys)}

    def _select(self, query: str, values: Iterable[Any]) -> Iterator[Sequence[Any]]:
        """The rows of `query` whose last named column is one of `values`, in the driver's own words.

        SQLAlchemy's IN costs several times the query itself for each value.
        """
        wanted = list(values)
        if not wanted:
            return
        with self.engine.connect() as connection:
            mark = "?" if self.engine.dialect.paramstyle == "qmark" else "%s"
            for some in _chunks(wanted):
                marks = ",".join([mark] * len(some))
                yield from connection.exec_driver_sql(f"{query} IN ({marks})", tuple(some)).fetchall()

    def state(self, key: str) -> bytes | None:
        """The value of one state key."""
        return self.fetch((key,)).get(key)

    def digest(self) -> tuple[int, str]:
        """The height, and a SHA-256 over the whole state there, sorted by key: a full scan in one snapshot."""
        digest = hashlib.sha256()
        with self.engine.connect() as connection, connection.begin():
            height = connection.scalar(sa.select(sa.func.max(blocks.c.height)))
            rows = connection.execution_options(yield_per=ROWS_PER_READ).execute(
                sa.select(state.c.key, state.c.value).order_by(state.c.key)
            )
            for key, value in rows:
                name = key.encode()
                digest.update(b"%d:%s%d:%s" % (len(name), name, len(value), value))
        return (-1 if height is None else int(height)), digest.hexdigest()

    def registry(self, height: int) -> dict[str, bytes]:
        """All registry entries as they were after the block at `height`."""
        latest = (
            sa.select(registry_history.c.key, sa.func.max(registry_history.c.height).label("height"))
            .where(registry_history.c.height <= height)
            .group_by(registry_history.c.key)
            .subquery()
        )
        query = sa.select(registry_history.c.key, registry_history.c.entry).join(
            latest,
            sa.and_(registry_history.c.key == latest.c.key, registry_history.c.height == latest.c.height),
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query.where(registry_history.c.entry.is_not(None)))
            return {key: bytes(entry) for key, entry in rows}

    def device_sequences(self) -> dict[str, int]:
        """The highest tree-head sequence that the chain shows, by device (for the guard's roll-back check)."""
        with self.engine.connect() as connection:
            return dict(connection.execute(sa.select(device_sequences)).all())

    def append(self, commit: Commit, also: Callable[[sa.Connection], None] | None = None) -> None:
        """Write one block and all that it changes in one commit; `also` runs inside it.

        The primary key on height makes a second block of the same height fail with `StoreError`.
        """
        registry = [
            (key.removeprefix(REGISTRY_PREFIX), commit.height, value)
            for key, value in commit.writes.items()
            if key.startswith(REGISTRY_PREFIX)
        ]
        try:
            with schema.writing(self.engine) as connection:
                self._insert_block(
                    connection,
                    [
                        (
                            commit.height,
                            commit.time,
                            commit.authentication,
                            commit.body,
                            canonical.encode(commit.outcomes),
                        )
                    ],
                )
                self._insert_transaction(
                    connection,
                    [
                        (bytes.fromhex(outcome.transaction), commit.height, index, outcome.code)
                        for index, outcome in enumerate(commit.outcomes)
                    ],
                )
                self._put_state(connection, [item for item in commit.writes.items() if item[1] is not None])
                for some in _chunks([key for key, value in commit.writes.items() if value is None]):
                    connection.execute(sa.delete(state).where(state.c.key.in_(some)))
                self._insert_history(connection, registry)
                self._put_sequence(connection, list(commit.sequences.items()))
                if also:
                    also(connection)
        except sa.exc.IntegrityError as error:
            raise StoreError(
                f"block {commit.height} or one of its transactions is there already: {error.orig}"
            ) from None


_Execute = Callable[[sa.Connection, list[_Row]], None]


def _statement(engine: sa.Engine, table: sa.Table, replace: str = "", *, only_upwards: bool = False) -> _Execute:
    """An insert of many rows (tuples in the order of the columns), compiled once and given to the driver as it is.

    Where there is a row already, its column `replace` gets the new value (if it is higher, with `only_upwards`).
    SQLAlchemy's own way costs several times the insert itself for each row.
    """
    insert = postgresql.insert(table) if engine.dialect.name == "postgresql" else sqlite.insert(table)
    if replace:
        insert = insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={replace: insert.excluded[replace]},
            where=insert.excluded[replace] > table.c[replace] if only_upwards else None,
        )
    sql = str(insert.compile(dialect=engine.dialect, column_keys=[column.name for column in table.columns]))

    def execute(connection: sa.Connection, rows: list[_Row]) -> None:
        if rows:
            connection.exec_driver_sql(sql, rows)

    return execute


def _create_file(path: Path) -> None:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise StoreError(f"there is a chain at {path} already; open it, or move it away") from None
    except OSError as error:
        raise StoreError(f"cannot create {path} ({error.strerror}); create its folder first") from None


def _chunks(values: list[Any]) -> Iterator[list[Any]]:
    return (values[i : i + KEYS_PER_QUERY] for i in range(0, len(values), KEYS_PER_QUERY))


def url_of(path: Path) -> str:
    """The URL of an SQLite database at `path`."""
    return sa.URL.create("sqlite", database=str(path.absolute())).render_as_string(hide_password=False)


_outcomes_decoder = msgspec.json.Decoder(list[Outcome])
