"""A network, a replica of its chain at block 0, and the way from wishes to outcomes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.transaction import Transaction
from tests.chain_builder import Network

Commit = Callable[..., list[str]]


@pytest.fixture(scope="session")
def block_zero(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A database with block 0 alone, to be copied, and the bytes of block 0."""
    path = tmp_path_factory.mktemp("ledger") / "chain.db"
    store = ChainStore.create(url_of(path))
    genesis = Network().genesis()
    Replica.create(store, genesis)
    store.close()
    return path, genesis


@pytest.fixture
def network() -> Network:
    """Nodes A, B, C; clients c1 and c2; two of three administrators; two of three nodes endorse."""
    return Network()


@pytest.fixture
def genesis(block_zero: tuple[Path, bytes]) -> bytes:
    """Block 0 of every replica here."""
    return block_zero[1]


@pytest.fixture
def new_replica(block_zero: tuple[Path, bytes], tmp_path: Path) -> Iterator[Callable[[], Replica]]:
    """Makes replicas at block 0, each with a database of its own."""
    made: list[Replica] = []

    def make() -> Replica:
        path = tmp_path / f"chain-{len(made)}.db"
        shutil.copy(block_zero[0], path)
        made.append(Replica.open(ChainStore.open(url_of(path))))
        return made[-1]

    yield make
    for replica in made:
        replica.store.close()


@pytest.fixture
def replica(new_replica: Callable[[], Replica]) -> Replica:
    """A replica at block 0."""
    return new_replica()


@pytest.fixture
def commit(network: Network, replica: Replica) -> Commit:
    """Puts transactions into the next block; the codes of their outcomes."""

    def put(*transactions: Transaction, time: int | None = None) -> list[str]:
        block = network.block(replica, transactions, time=time)
        return [outcome.code for outcome in replica.apply(block.encode()).outcomes]

    return put
