"""How a service comes to its chain: the one that it has stored, or a new one from the network's genesis block."""

from pathlib import Path

from ledger.errors import GenesisError
from ledger.replica import Replica
from ledger.store import ChainStore, url_of


def open_or_begin(database: Path, genesis: Path) -> Replica:
    """The replica in the SQLite file `database`, or where there is none, one that begins with the block in `genesis`.

    Raises `GenesisError` when that file cannot be read or the stored chain begins with another block, and as
    `Replica.create` and `Replica.open` do.
    """
    try:
        first = genesis.read_bytes()
    except OSError as error:
        raise GenesisError(f"cannot read the genesis block {genesis}: {error.strerror}") from None
    url = url_of(database)
    store = ChainStore.open(url) if database.exists() else ChainStore.create(url)
    stored = store.block(0)
    if stored is None:  # new, or the process was killed before block 0 was written
        return Replica.create(store, first)
    if stored != first:
        store.close()
        raise GenesisError(
            f"{database} holds a chain that does not begin with {genesis}; "
            "name the right genesis file, or move the database away and start again to fetch the chain anew"
        )
    return Replica.open(store)
