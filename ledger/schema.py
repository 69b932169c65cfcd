"""The tables of a chain, and how a database is opened: one schema for SQLite and PostgreSQL.

SQLite runs in WAL mode with synchronous=FULL: what is committed survives a power loss.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from ledger.errors import StoreError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
BUSY_MILLISECONDS: Final = 10_000
SQLITE_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    f"busy_timeout={BUSY_MILLISECONDS}",
    # State keys are spread over the whole table: small caches and frequent checkpoints write each page many times.
    "cache_size=-32768",  # KiB
    "wal_autocheckpoint=8000",  # pages of 4 KiB
)
FETCH_AGAIN: Final = (
    "restore it from a backup; a device or a peer may also move it away and fetch the chain again, "
    "but never a management service: its record pool holds what it has acknowledged"
)

_WRITES: Final = "hsm_endorser_writes"

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
"""State keys: every database sorts them by their UTF-8 bytes."""

metadata = sa.MetaData()

blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("height", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("authentication", sa.String(64), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # the canonical bytes of the whole block
    sa.Column("outcomes", sa.LargeBinary, nullable=False),  # canonical JSON: the outcomes in order
)
transactions = sa.Table(
    "transactions",
    metadata,
    sa.Column("id", sa.LargeBinary(32), primary_key=True),
    sa.Column("height", sa.BigInteger, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("code", sa.String(64), nullable=False),
    sqlite_with_rowid=False,
)
state = sa.Table(
    "state",
    metadata,
    sa.Column("key", Key, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
registry_history = sa.Table(
    "registry_history",
    metadata,
    sa.Column("key", Key, primary_key=True),
    sa.Column("height", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry", sa.LargeBinary, nullable=True),  # null: removed at this height
    sqlite_with_rowid=False,
)
device_sequences = sa.Table(
    "device_sequences",
    metadata,
    sa.Column("device", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)


def engine(url: str) -> sa.Engine:
    """An engine for `url` whose transactions are what they say, and durable.

    A database that cannot be read or written raises `StoreError`; rows that contradict each other raise
    SQLAlchemy's `IntegrityError`, which callers expect where they race.
    """
    made = sa.create_engine(url, pool_size=8, max_overflow=8, pool_timeout=30)
    sa.event.listen(made, "handle_error", _on_error)
    if made.dialect.name == "sqlite":
        sa.event.listen(made, "connect", _on_sqlite_connect)
        sa.event.listen(made, "begin", _on_sqlite_begin)
    return made


def writing(database: sa.Engine) -> AbstractContextManager[sa.Connection]:
    """A transaction that holds the write lock from its beginning.

    On SQLite, one that reads first and writes later fails (SQLITE_BUSY_SNAPSHOT) when another wrote in between.
    """
    return database.execution_options(**{_WRITES: True}).begin()


def upgrade(database: sa.Engine, migrations: Path, version_table: str) -> None:
    """Bring the tables that `migrations` describe to this release's schema.

    Raises `StoreError` for a database that a newer release has written.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with writing(database) as connection:
        config.attributes.update(connection=connection, version_table=version_table)
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"the database was written by a newer release of hsm-endorser ({error}); start that release on it"
            ) from None


def sqlite_file(url: str) -> Path | None:
    """The file behind an SQLite URL; None for other databases."""
    parsed = sa.make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _on_sqlite_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, not where sqlite3 guesses
    for pragma in SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _on_error(context: sa.engine.ExceptionContext) -> None:
    error = context.original_exception
    if isinstance(context.sqlalchemy_exception, sa.exc.DatabaseError | sa.exc.InterfaceError) and not isinstance(
        context.sqlalchemy_exception, sa.exc.IntegrityError
    ):
        place = context.engine.url.database if context.engine else ""
        raise StoreError(
            f"the database {place} cannot be read or written ({error}); make room, stop who else holds it, or, "
            f"where it is damaged, {FETCH_AGAIN}"
        ) from error


def _on_sqlite_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")
