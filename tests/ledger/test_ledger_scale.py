"""Nothing takes quadratic time: the sizes that the protocol allows stay within a few seconds of one busy core."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from ledger import execution
from ledger.receipt import make_receipt, verify_receipt
from ledger.registry_view import RegistryView
from ledger.replica import Replica
from protocol import canonical
from protocol.block import Block
from protocol.endorsement import MAX_LEAVES, Vote
from protocol.registry import Client, EndorsementPolicy, key_of
from tests import software_keys
from tests.chain_builder import Network

Commit = Callable[..., list[str]]
CLIENTS = 100_000


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The body takes at most so much CPU time of this process; quadratic behaviour takes many times as much."""
    began = time.process_time()
    yield
    took = time.process_time() - began
    assert took < seconds, f"{took:.1f} s"


@pytest.fixture(scope="module")
def crowded() -> RegistryView:
    """The registry of the usual network with 100,000 clients."""
    spki = software_keys.ecdsa("one of many").spki
    entries = [*Network().entries(), *(Client(f"n{number}", spki, "") for number in range(CLIENTS))]
    return RegistryView({key_of(entry): canonical.encode(entry) for entry in entries})


def test_a_block_of_registrations(network: Network, crowded: RegistryView) -> None:
    """1,000 registrations over 100,000 clients cost no copy of the registry each."""
    key = msgspec.to_builtins(software_keys.ecdsa("one more").spki)
    wishes = [
        network.transaction(
            "registry",
            "add_client",
            {"name": f"new{number}", "key": key, "certificate": "ab" * 32},
            client="ca",
            signers=[network.registrar],
        )
        for number in range(1000)
    ]
    with within(3):
        result = execution.execute(wishes, crowded, lambda _keys: {}, height=1, time=0)
        assert {outcome.code for outcome in result.outcomes} == {"valid"}
        assert len(result.registry.entries) == len(crowded.entries) + 1000
        assert result.registry.root != crowded.root
    assert len(crowded.entries) < len(result.registry.entries)
    assert crowded.client("new0") is None
    assert result.registry.client("new999") is not None


def test_policies_beside_many_clients(network: Network, crowded: RegistryView) -> None:
    """Changes that bring no key do not look at all clients."""
    wishes = [network.put(EndorsementPolicy(f"p{number}", "ALL")) for number in range(50)]
    with within(2):
        result = execution.execute(wishes, crowded, lambda _keys: {}, height=1, time=0)
    assert {outcome.code for outcome in result.outcomes} == {"valid"}


def test_4096_entries_at_once(network: Network, crowded: RegistryView) -> None:
    """The largest change is done at once, with all its keys compared with those of all clients."""
    spki = software_keys.ecdsa("one more").spki
    clients = [Client(f"more{number}", spki, "") for number in range(4095)]
    taken = software_keys.ecdsa("one of many").spki
    entries = network.entries()
    center = msgspec.structs.replace(next(e for e in entries if e.__class__.__name__ == "Center"), key=taken)
    wishes = [network.put(*clients), network.put(center, *clients)]
    with within(4):
        result = execution.execute(wishes, crowded, lambda _keys: {}, height=1, time=0)
    assert [outcome.code for outcome in result.outcomes] == ["valid", "key-in-use"]


def test_the_largest_tree(network: Network, replica: Replica) -> None:
    """A tree of 65,536 leaves, most of votes that are elsewhere, is judged in linear time."""
    wish = network.evidence("x")
    others = [
        Vote(network=network.name, transaction=f"{number:064x}", node="A", verdict="reject", reason="expired")
        for number in range(MAX_LEAVES - 1)
    ]
    trees = network.endorse([wish], besides=others)
    with within(6):
        line = network.block(replica, [wish], trees).encode()
        replica.apply(line)
        receipt = make_receipt(replica.store, wish.id)
    assert verify_receipt(receipt, replica.store.block(0) or b"").nodes == ("A", "B")


def test_32_administrators(network: Network, replica: Replica, commit: Commit) -> None:
    """32 signatures, which is as many as an envelope holds, are verified in no time."""
    wish = network.put(EndorsementPolicy("evidence", "ANY"), administrators=["admin-1"] * 31 + ["admin-2"])
    with within(1):
        assert commit(wish) == ["valid"]
    assert replica.height == 1


def test_unknown_kinds_leave_nothing_behind(network: Network, crowded: RegistryView) -> None:
    """Asking for the policy of ever new transaction types does not make the registry grow."""
    before = {name: len(value) for name, value in vars(crowded).items() if isinstance(value, dict)}
    for number in range(1000):
        assert crowded.policy(f"loans.take{number}") is None
    assert before == {name: len(value) for name, value in vars(crowded).items() if isinstance(value, dict)}
    assert crowded.policy("assets.issue") is crowded.policy("assets.transfer")
    assert network.policies


def test_a_receipt_beside_many_clients(network: Network, replica: Replica, commit: Commit) -> None:
    """The proofs of a receipt are made from one tree over the registry."""
    spki = software_keys.ecdsa("one of many").spki
    puts = [network.put(*(Client(f"n{n}-{m}", spki, "") for m in range(2500))) for n in range(4)]
    assert commit(*puts) == ["valid"] * 4
    wish = network.evidence("x")
    assert commit(wish) == ["valid"]
    with within(1):
        receipt = make_receipt(replica.store, wish.id)
    assert verify_receipt(receipt, replica.store.block(0) or b"").height == 2
    assert Block.decode(replica.store.block(2) or b"").header.transaction_count == 1
