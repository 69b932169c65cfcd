"""Keys that begin, end and change their tier, as the management service sees them: whom it asks, what it cuts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from management.draft import draft
from management.pool import Cast, CheckedTree, Endorsed, Record
from management.rule_now import lapsed, rule_now
from protocol import canonical
from protocol.endorsement import approval, decode_head
from protocol.registry import Center, EndorsementPolicy, Entry, Node, NodeKey, Replicated
from protocol.transaction import Transaction
from tests.chain_builder import FOR_EVER, Network

MINUTE = 60_000
Begin = Callable[..., Replica]


@pytest.fixture
def network() -> Network:
    """Two of three nodes must approve."""
    return Network()


@pytest.fixture
def begin(tmp_path: Path, network: Network) -> Iterator[Begin]:
    """Makes a replica whose block 0 has these entries beside, or instead of, the network's own."""
    made: list[Replica] = []

    def make(*changed: Entry) -> Replica:
        entries = {(type(each), getattr(each, "name", "")): each for each in (*network.entries(), *changed)}
        store = ChainStore.create(url_of(tmp_path / f"{len(made)}.db"))
        made.append(Replica.create(store, network.genesis(entries.values())))
        return made[-1]

    yield make
    for replica in made:
        replica.store.close()


def endorsed(network: Network, transaction: Transaction, *nodes: str) -> Endorsed:
    """The transaction, approved by these nodes; a registry transaction by none."""
    casts: dict[str, Cast] = {}
    for node in nodes:
        vote, device = approval(network.name, transaction.id, node), f"device-{node.lower()}"
        tree = network.tree(device, [vote])
        checked = CheckedTree(
            tree, tuple(decode_head(each.head) for each in tree.branches), len(canonical.encode(tree))
        )
        casts[node] = Cast(checked, vote.leaf().hex(), device)
    return Endorsed(Record(transaction, 0, 0, "endorsed"), casts)


def key(network: Network, node: str, **lifetime: int) -> NodeKey:
    """The node's key with another lifetime."""
    device = f"device-{node.lower()}"
    return NodeKey(network.node_keys[node, device].spki, device, **lifetime)


@pytest.mark.requirement("K-13", "E-6")
def test_nobody_is_asked_in_vain(network: Network, begin: Begin) -> None:
    """Whoever's key has expired, or is to count later, is not asked, and a refusal can say why."""
    replica = begin(Node("A", (key(network, "A", until=1),)), Node("B", (key(network, "B", since=2),)))
    rule = rule_now(replica, "evidence.record")
    assert rule is not None
    assert rule.holders == {"A": (), "B": (), "C": ("device-c",)}
    said = {each.device: (each.nodes, each.said, each.detail) for each in lapsed(replica, rule, ("A", "B", "C"))}
    assert said.keys() == {"device-a", "device-b"}
    assert said["device-a"][:2] == (("A",), "not-asked")
    assert "has expired" in said["device-a"][2]
    assert "counts from height 2 on" in said["device-b"][2]
    replica.apply(network.block(replica, [], time=network.time).encode())
    rule = rule_now(replica, "evidence.record")
    assert rule is not None
    assert rule.holders["B"] == ("device-b",)
    assert rule_now(replica, "loans.take") is None


@pytest.mark.requirement("K-5", "E-6")
def test_not_below_the_policys_tier(network: Network, begin: Begin) -> None:
    """Whose key is below the tier that a policy asks for is not asked for it, and the refusal names that."""
    policy = EndorsementPolicy("evidence", "OutOf(1, 'A', 'B')", Replicated(), least_tier="probed")
    replica = begin(policy, network.custody("device-a", "probed"), network.custody("device-b", "read-back"))
    rule = rule_now(replica, "evidence.record")
    assert rule is not None
    assert rule.holders == {"A": ("device-a",), "B": ()}
    (said,) = lapsed(replica, rule, ("A", "B"))
    assert (said.device, said.detail) == ("device-b", "its key is below tier probed, which the policy asks for")


@pytest.mark.requirement("K-5", "M-5")
def test_a_vote_that_counts_no_more(network: Network, begin: Begin) -> None:
    """When a policy asks for more than the votes at hand, the transaction is endorsed again; no block is refused."""
    replica = begin(network.custody("device-a", "probed"), network.custody("device-b", "read-back"))
    waiting = endorsed(network, network.evidence("x"), "A", "B")
    assert draft(replica, [waiting], network.time, empty=False).checked is not None
    policy = EndorsementPolicy("evidence", "OutOf(2, 'A', 'B', 'C')", least_tier="probed")
    replica.apply(network.block(replica, [network.put(policy)]).encode())
    made = draft(replica, [waiting], network.time, empty=False)
    assert (made.checked, made.dropped, made.again) == (None, [], [waiting.record])


@pytest.mark.requirement("K-13", "M-5")
def test_with_an_expired_center(network: Network, begin: Begin) -> None:
    """Only what the administrators put right gets into a block; clients' transactions wait, and none is lost."""
    end = network.time + MINUTE
    replica = begin(Center("center-1", network.center.spki, "device-a", until=end))
    wish = endorsed(network, network.evidence("x"), "A", "B")
    repair = endorsed(network, network.put(Center("center-1", network.center.spki, "device-a", until=FOR_EVER)))
    alone = draft(replica, [wish], end, empty=True)
    assert (alone.checked, alone.dropped, alone.again) == (None, [], [])
    made = draft(replica, [wish, repair], end, empty=False)
    assert made.checked is not None
    assert [each.id for each in made.checked.block.transactions] == [repair.record.id]
    assert (made.dropped, made.again) == ([], [])
    replica.apply(network.sign(made.checked.block).encode())
    after = draft(replica, [wish], end, empty=False)
    assert after.checked is not None
    replica.apply(network.sign(after.checked.block).encode())
    assert replica.height == 2
