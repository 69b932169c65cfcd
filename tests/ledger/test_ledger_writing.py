"""Transactions that read before they write."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from ledger.errors import StoreError
from ledger.schema import device_sequences, writing
from ledger.store import ChainStore, url_of

INSERT = sa.insert(device_sequences)


def test_who_reads_first_and_writes_later_is_not_overtaken(tmp_path: Path) -> None:
    """A writing transaction holds the lock from its beginning: another writer waits, and both succeed."""
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    order: list[str] = []
    begun = threading.Event()

    def other() -> None:
        begun.wait(10)
        with writing(store.engine) as connection:
            order.append("other")
            connection.execute(INSERT, {"device": "b", "sequence": 2})

    thread = threading.Thread(target=other)
    thread.start()
    with writing(store.engine) as connection:
        assert connection.execute(sa.select(device_sequences)).all() == []
        begun.set()
        thread.join(0.2)
        connection.execute(INSERT, {"device": "a", "sequence": 1})
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]
    assert store.device_sequences() == {"a": 1, "b": 2}
    store.close()


def test_who_does_not_say_so_is_overtaken(tmp_path: Path) -> None:
    """The failure that `writing` is there for: a snapshot that is older than the last commit cannot be written to."""
    store = ChainStore.create(url_of(tmp_path / "chain.db"))

    def overtaken() -> None:
        with store.engine.begin() as connection:
            connection.execute(sa.select(device_sequences)).all()
            with writing(store.engine) as other:
                other.execute(INSERT, {"device": "b", "sequence": 2})
            connection.execute(INSERT, {"device": "a", "sequence": 1})

    with pytest.raises(StoreError, match="locked"):
        overtaken()
    store.close()
