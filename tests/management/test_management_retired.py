"""The keys that count no more, as they are read from the chain."""

from pathlib import Path

import pytest

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from management import retired
from management.retired import RetiredKeys
from tests import software_keys
from tests.chain_builder import Network


@pytest.mark.requirement("K-14")
def test_an_interrupted_reading_retires_no_key_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the database fails while the chain is read, the next reading finds the replaced key retired and no other."""
    network, new = Network(), software_keys.ecdsa("the next key of c1")
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    replica = Replica.create(store, network.genesis())
    replica.apply(network.block(replica, [network.renew_client("c1", network.clients["c1"], new)]).encode())
    keys, whole = RetiredKeys(store), retired.versions

    def fails_late(store: ChainStore, kind: str, *, after: int = -1) -> object:
        if kind == "revocation":
            raise OSError("the database is locked")
        return whole(store, kind, after=after)

    with monkeypatch.context() as patched:
        patched.setattr(retired, "versions", fails_late)
        with pytest.raises(OSError, match="locked"):
            keys.at(replica.height)
    assert set(keys.at(replica.height)) == {network.clients["c1"].id}
    assert keys.find_earlier(new.public.id, replica.height) is None
    store.close()
