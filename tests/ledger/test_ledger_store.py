"""The chain store: one commit per block, and what happens to it when things go wrong."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ledger import schema
from ledger.errors import StoreError
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.canonical import TxId
from protocol.registry import Client, EndorsementPolicy, registry_root
from tests.chain_builder import Network

Commit = Callable[..., list[str]]
NewReplica = Callable[[], Replica]
ROOT = Path(__file__).parents[2]


def database_of(store: ChainStore) -> Path:
    """The file of a store."""
    path = schema.sqlite_file(str(store.engine.url))
    assert path is not None
    return path


class TestCreateAndOpen:
    """Two functions."""

    def test_create_refuses_what_is_there(self, tmp_path: Path) -> None:
        """An existing file, whatever is in it, is never taken for a new store."""
        path = tmp_path / "chain.db"
        path.write_bytes(b"")
        with pytest.raises(StoreError, match="there is a chain at"):
            ChainStore.create(url_of(path))

    def test_create_needs_its_folder(self, tmp_path: Path) -> None:
        """Folders are not created implicitly."""
        with pytest.raises(StoreError, match="create its folder first"):
            ChainStore.create(url_of(tmp_path / "nowhere" / "chain.db"))
        assert not (tmp_path / "nowhere").exists()

    def test_open_refuses_what_is_missing(self, tmp_path: Path) -> None:
        """Opening creates nothing."""
        with pytest.raises(StoreError, match="there is no chain at"):
            ChainStore.open(url_of(tmp_path / "chain.db"))
        assert list(tmp_path.iterdir()) == []

    def test_an_empty_store_is_no_chain(self, tmp_path: Path, genesis: bytes) -> None:
        """A store whose process was killed before block 0 opens, is no replica yet, and can become one."""
        path = tmp_path / "chain.db"
        ChainStore.create(url_of(path)).close()
        store = ChainStore.open(url_of(path))
        assert (store.height(), store.block(0), store.device_sequences()) == (-1, None, {})
        with pytest.raises(StoreError, match="create the chain"):
            Replica.open(store)
        assert Replica.create(store, genesis).height == 0
        with pytest.raises(StoreError, match="holds a chain already"):
            Replica.create(store, genesis)
        store.close()

    def test_any_path(self, tmp_path: Path) -> None:
        """A path may hold what means something else in a URL."""
        path = tmp_path / "a?b#c%20d é.db"
        ChainStore.create(url_of(path)).close()
        assert path.exists()
        assert {each.name.partition("-")[0] for each in tmp_path.iterdir()} == {path.name}

    def test_a_newer_schema(self, replica: Replica) -> None:
        """A database of a newer release is refused, and left as it is."""
        path = database_of(replica.store)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE chain_version SET version_num = 'chain_9999'")
        connection.close()
        with pytest.raises(StoreError, match="newer release"):
            ChainStore.open(url_of(path))

    def test_the_migrations_make_the_schema(self, replica: Replica) -> None:
        """What the migrations build is what the code's tables say."""
        with replica.store.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": "chain_version"})
            assert compare_metadata(context, schema.metadata) == []

    def test_durability(self, replica: Replica) -> None:
        """Every connection runs WAL with synchronous=FULL."""
        with replica.store.engine.connect() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            ]
        assert pragmas == ["wal", 2]


class TestDamage:
    """Somebody edits or breaks the file."""

    def test_garbage(self, tmp_path: Path) -> None:
        """A file that is no database is refused with what to do."""
        path = tmp_path / "chain.db"
        path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
        with pytest.raises(StoreError, match="fetch the chain again"):
            ChainStore.open(url_of(path))

    def test_broken_pages(self, network: Network, replica: Replica, commit: Commit) -> None:
        """Broken pages give a ledger error, whether they are met when opening, reading or appending."""
        commit(*(network.evidence(f"x-{n}") for n in range(50)))
        path = database_of(replica.store)
        replica.store.close()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with pytest.raises(StoreError, match="fetch the chain again"):
            Replica.open(ChainStore.open(url_of(path))).store.digest()

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            ("UPDATE blocks SET body = substr(body, 2) WHERE height = 1", "block 1 in the store is damaged"),
            ("UPDATE registry_history SET entry = NULL WHERE key = 'client/c1'", "not the one that block 1 commits"),
            ("DELETE FROM registry_history WHERE key = 'center/center-1'", "not the one that block 1 commits"),
            ("UPDATE registry_history SET key = 'client/c9' WHERE key = 'client/c1'", "not the one that block 1"),
        ],
    )
    def test_edited(self, replica: Replica, commit: Commit, statement: str, reason: str) -> None:
        """A last block that does not decode, or a registry that it does not commit, is noticed when opening."""
        commit()
        path = database_of(replica.store)
        replica.store.close()
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()
        with pytest.raises(StoreError, match=reason):
            Replica.open(ChainStore.open(url_of(path)))

    def test_edited_state_shows_in_the_digest(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A changed value gives another digest."""
        commit(network.evidence("x"))
        before = replica.store.digest()
        with replica.store.engine.begin() as connection:
            connection.execute(sa.update(schema.state).where(schema.state.c.key == "evidence/x").values(value=b"{}"))
        after = replica.store.digest()
        assert before[0] == after[0]
        assert before[1] != after[1]

    def test_locked_by_another(self, network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database that another process keeps locked is a ledger error; later the same block goes in."""
        monkeypatch.setattr(schema, "SQLITE_PRAGMAS", (*schema.SQLITE_PRAGMAS, "busy_timeout=1"))
        replica.store.close()
        checked = replica.check(network.block(replica, [network.evidence("x")]))
        other = sqlite3.connect(database_of(replica.store), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            replica.append(checked)
        other.execute("ROLLBACK")
        other.close()
        replica.append(checked)
        assert replica.store.height() == 1


class TestAppend:
    """One commit per block."""

    def test_all_or_nothing(self, network: Network, replica: Replica) -> None:
        """When `also` fails, nothing of the block is stored and the replica stands where it stood."""
        before = replica.store.digest()
        checked = replica.check(network.block(replica, [network.evidence("x")]))

        def fail(connection: sa.Connection) -> None:
            assert connection.scalar(sa.select(sa.func.max(schema.blocks.c.height))) == 1
            raise RuntimeError("the pool is on fire")

        with pytest.raises(RuntimeError, match="on fire"):
            replica.append(checked, also=fail)
        assert before == replica.store.digest()
        assert (replica.height, replica.store.height(), replica.store.block(1)) == (0, 0, None)
        replica.append(checked)
        assert replica.store.height() == 1

    def test_also_takes_part(self, network: Network, replica: Replica) -> None:
        """What `also` writes is there together with the block."""
        with replica.store.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE pool (height INTEGER)")
        checked = replica.check(network.block(replica, []))

        def also(connection: sa.Connection) -> None:
            connection.exec_driver_sql("INSERT INTO pool VALUES (1)")

        replica.append(checked, also=also)
        with replica.store.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT height FROM pool").scalar() == 1

    @pytest.mark.requirement("M-6")
    def test_a_race(self, network: Network, replica: Replica) -> None:
        """Of two centers on one database, one gets the height; the other stores nothing and can go on."""
        other = Replica.open(ChainStore.open(url_of(database_of(replica.store))))
        mine = replica.check(network.block(replica, [network.evidence("mine")]))
        theirs = other.check(network.block(other, [network.evidence("theirs")]))
        replica.append(mine)
        with pytest.raises(StoreError, match="block 1 or one of its transactions is there already"):
            other.append(theirs)
        assert other.height == 0
        assert replica.store.state("evidence/theirs") is None
        again = Replica.open(other.store)
        again.apply(network.block(again, [network.evidence("theirs")]).encode())
        assert replica.store.height() == 2
        other.store.close()

    def test_many_removals(self, network: Network, replica: Replica) -> None:
        """A block may remove more keys than a database takes in one statement."""
        checked = replica.check(network.block(replica, []))
        gone: dict[str, bytes | None] = {f"evidence/{n}": None for n in range(40_000)}
        replica.append(msgspec.structs.replace(checked, writes=gone))
        assert replica.height == 1

    @pytest.mark.requirement("K-10")
    def test_sequences_never_go_back(self, network: Network, replica: Replica) -> None:
        """Votes that were carried over do not make the highest sequence of a device smaller."""
        early, late = network.evidence("early"), network.evidence("late")
        carried = network.endorse([early])
        replica.apply(network.block(replica, [late], network.endorse([late])).encode())
        assert replica.store.device_sequences() == {"device-a": 2, "device-b": 2}
        replica.apply(network.block(replica, [early], carried).encode())
        assert replica.store.device_sequences() == {"device-a": 2, "device-b": 2}

    def test_where_things_are(self, network: Network, replica: Replica, commit: Commit) -> None:
        """Transactions are found by id with height, place and code; what is not there is not found."""
        wishes = [network.evidence("x"), network.evidence("x", digest="cd" * 32)]
        commit(*wishes)
        found = replica.store.locate([*(wish.id for wish in wishes), TxId("ab" * 32)])
        assert {wishes[0].id: (1, 0, "valid"), wishes[1].id: (1, 1, "already-recorded")} == {
            each: (place.height, place.index, place.code) for each, place in found.items()
        }
        assert (replica.store.block(2), replica.store.event(2), replica.store.outcomes(2)) == (None, None, None)

    def test_the_registry_at_old_heights(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The registry can be had as it was after any block, changed and removed entries too."""
        roots, registries = [replica.registry.root], [replica.store.registry(0)]
        for wish in (
            network.put(EndorsementPolicy("evidence", "ALL")),
            network.registry("remove", {"keys": ["client/c2"]}),
            network.put(EndorsementPolicy("evidence", "ANY"), Client("c2", network.clients["c2"].spki, "")),
        ):
            assert commit(wish) == ["valid"]
            roots.append(replica.registry.root)
            registries.append(replica.store.registry(replica.height))
        assert len(set(roots)) == 4
        assert registries == [replica.store.registry(height) for height in range(4)]
        assert roots == [registry_root(entries) for entries in registries]

    def test_the_digest_is_one_snapshot(self, network: Network, replica: Replica) -> None:
        """Equal state gives an equal digest, and the digest says at which height."""
        height, digest = replica.store.digest()
        replica.apply(network.block(replica, []).encode())
        assert (1, digest) == replica.store.digest()
        assert height == 0


KILLED = """
import sys
from pathlib import Path
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from tests.chain_builder import Network

network = Network()
replica = Replica.open(ChainStore.open(url_of(Path(sys.argv[1]))))
while True:
    height = replica.height
    wishes = [network.evidence(f"{height}-{n}") for n in range(20)]
    replica.apply(network.block(replica, wishes).encode())
    print(replica.height, replica.store.digest()[1], flush=True)
"""


def test_killed_while_appending(network: Network, replica: Replica) -> None:
    """After a SIGKILL in the middle of appends the chain opens, has all that was acknowledged, and goes on."""
    path = database_of(replica.store)
    replica.store.close()
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.readlines()
    whole = [line.split() for line in acknowledged if line.endswith("\n")]
    height = int(whole[-1][0])
    again = Replica.open(ChainStore.open(url_of(path)))
    assert again.height in (height, height + 1)
    if again.height == height:
        assert whole[-1][1] == again.store.digest()[1]
    # All of a block is there, or nothing: a fresh replica fed from this one comes to the same state.
    fresh = Replica.create(ChainStore.create(url_of(path.with_name("fresh.db"))), again.store.block(0) or b"")
    for each in range(1, again.height + 1):
        fresh.apply(again.store.block(each) or b"")
    assert again.store.digest() == fresh.store.digest()
    again.apply(network.block(again, [network.evidence("after the crash")]).encode())
    assert again.height == again.store.height()
    again.store.close()
    fresh.store.close()
