"""How a service comes to its chain: begun from genesis, found again, or refused."""

from pathlib import Path

import pytest

from ledger.errors import GenesisError
from ledger.opening import open_or_begin
from tests.chain_builder import Network


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    """The file of a genesis block."""
    path = tmp_path / "genesis.json"
    path.write_bytes(Network().genesis())
    return path


@pytest.mark.parametrize("name", ["chain.db", "a?b #1 100%.db"])
def test_a_chain_that_was_begun_is_found_again(tmp_path: Path, genesis: Path, name: str) -> None:
    """Under whatever name its file has; that file, and no other, is the database."""
    database = tmp_path / "chains" / name
    database.parent.mkdir()
    first = open_or_begin(database, genesis)
    head = first.authentication
    first.store.close()
    again = open_or_begin(database, genesis)
    assert (again.height, again.authentication) == (0, head)
    again.store.close()
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in database.parent.iterdir()} == {name}


def test_a_chain_of_another_genesis_is_refused(tmp_path: Path, genesis: Path) -> None:
    """The stored chain stays as it is, and the message says what to do."""
    database = tmp_path / "chain.db"
    open_or_begin(database, genesis).store.close()
    before = database.read_bytes()
    genesis.write_bytes(Network("other").genesis())
    with pytest.raises(GenesisError, match=r"does not begin with .*name the right genesis file, or move"):
        open_or_begin(database, genesis)
    assert database.read_bytes() == before


def test_a_missing_genesis_block_is_named(tmp_path: Path, genesis: Path) -> None:
    """No database is made without it."""
    genesis.unlink()
    with pytest.raises(GenesisError, match=r"cannot read the genesis block .*genesis\.json: No such file"):
        open_or_begin(tmp_path / "chain.db", genesis)
    assert list(tmp_path.iterdir()) == []
