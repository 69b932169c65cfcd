"""Votes at the edge of a key's life: what was signed in time and is cut too late is asked for again, never dropped."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from management.draft import Draft, draft
from management.pool import Cast, CheckedTree, Endorsed, Record
from protocol import canonical
from protocol.endorsement import approval, decode_head
from protocol.registry import Device, Entry, Revocation
from tests.chain_builder import Network

DAY = 24 * 3600 * 1000


@pytest.fixture
def network() -> Network:
    """Two of three nodes must approve."""
    return Network()


@pytest.fixture
def replica(tmp_path: Path, network: Network) -> Iterator[Replica]:
    """A replica at block 0."""
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    yield Replica.create(store, network.genesis())
    store.close()


def endorsed(network: Network) -> Endorsed:
    """A transaction that A and B approved at height 0."""
    wish = network.evidence("edge")
    casts = {}
    for node in ("A", "B"):
        vote, device = approval(network.name, wish.id, node), f"device-{node.lower()}"
        tree = network.tree(device, [vote])
        heads = tuple(decode_head(branch.head) for branch in tree.branches)
        casts[node] = Cast(CheckedTree(tree, heads, len(canonical.encode(tree))), vote.leaf().hex(), device)
    return Endorsed(Record(wish, 0, 0, "endorsed"), casts)


def after(network: Network, replica: Replica, *entries: Entry, blocks: int = 1) -> None:
    """Bring entries into the registry, then cut empty blocks until there are so many."""
    replica.apply(network.block(replica, [network.put(*entries)], []).encode())
    assert [outcome.code for outcome in replica.store.outcomes(replica.height) or ()] == ["valid"]
    for _ in range(blocks - 1):
        replica.apply(network.block(replica, [], []).encode())


def ended(network: Network, **lifetime: int) -> Entry:
    """Node A's entry, its key with another lifetime."""
    node = network.node_entry("A")
    return msgspec.structs.replace(node, keys=(msgspec.structs.replace(node.keys[0], **lifetime),))


def standing(made: Draft) -> tuple[int, int, int]:
    """How many transactions are in the block, asked for again, and dropped."""
    return len(made.checked.block.transactions) if made.checked else 0, len(made.again), len(made.dropped)


@pytest.mark.requirement("K-12")
@pytest.mark.parametrize(("last", "blocks", "expected"), [(2, 1, (1, 0, 0)), (2, 2, (0, 1, 0)), (1, 1, (0, 1, 0))])
def test_a_vote_counts_up_to_the_last_height_of_its_key(
    network: Network, replica: Replica, last: int, blocks: int, expected: tuple[int, int, int]
) -> None:
    """In the block of that height it stands; one block later the transaction is asked for again, by the next key."""
    waiting = endorsed(network)
    after(network, replica, ended(network, last=last), blocks=blocks)
    assert standing(draft(replica, [waiting], replica.time + 1, empty=False)) == expected


@pytest.mark.requirement("K-13")
@pytest.mark.parametrize(("ahead", "expected"), [(-1, (1, 0, 0)), (0, (0, 1, 0))])
def test_a_vote_counts_until_its_key_expires_by_the_blocks_time(
    network: Network, replica: Replica, ahead: int, expected: tuple[int, int, int]
) -> None:
    """It is the time of the block to be cut that counts, not that of the block before."""
    waiting, end = endorsed(network), network.time + DAY // 100
    after(network, replica, ended(network, until=end))
    assert standing(draft(replica, [waiting], end + ahead, empty=False)) == expected


@pytest.mark.requirement("K-14")
@pytest.mark.parametrize("whole_device", [False, True])
def test_a_vote_by_a_revoked_key_is_asked_for_again(network: Network, replica: Replica, *, whole_device: bool) -> None:
    """From the block after the revocation on, of the key itself or of its device's identity."""
    waiting = endorsed(network)
    key, holder = network.node_keys["B", "device-b"].id, "node/B"
    if whole_device:
        key, holder = network.devices["device-b"].id, "device/device-b"
    after(network, replica, Revocation(key, holder, "key-compromise", 0))
    assert standing(draft(replica, [waiting], replica.time + 1, empty=False)) == (0, 1, 0)


@pytest.mark.requirement("K-13")
def test_a_vote_from_a_device_that_has_ended_is_asked_for_again(network: Network, replica: Replica) -> None:
    """A key counts no longer than the device that it lives on."""
    waiting = endorsed(network)
    (entry,) = [each for each in network.entries() if isinstance(each, Device) and each.name == "device-b"]
    after(network, replica, msgspec.structs.replace(entry, last=1))
    assert standing(draft(replica, [waiting], replica.time + 1, empty=False)) == (0, 1, 0)
