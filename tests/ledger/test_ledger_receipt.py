"""Receipts: they prove offline, and nothing in them can be changed or left out unnoticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger.errors import LedgerError
from ledger.handover import Start
from ledger.receipt import Receipt, ReceiptError, make_receipt, verify_receipt
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.block import Block
from protocol.canonical import TxId
from protocol.registry import Client, EndorsementPolicy
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network

Commit = Callable[..., list[str]]


def read(data: bytes) -> Receipt:
    """A receipt as a value, to be changed."""
    return msgspec.json.decode(data, type=Receipt)


def refused(receipt: Receipt | bytes, genesis: bytes) -> ReceiptError:
    """The refusal of a receipt."""
    data = receipt if isinstance(receipt, bytes) else canonical.encode(receipt)
    with pytest.raises(ReceiptError) as caught:
        verify_receipt(data, genesis)
    assert caught.value.step
    return caught.value


@pytest.fixture
def wishes(network: Network, commit: Commit) -> list[Transaction]:
    """Five transactions in block 2, the last of which is recorded as invalid."""
    assert commit(network.put(EndorsementPolicy("assets.issue", "AND('A', 'B')"))) == ["valid"]
    made = [network.issue("GOLD", {"c1": 5}), *(network.evidence(f"x-{n}") for n in range(3)), network.evidence("x-0")]
    assert commit(*made) == ["valid"] * 4 + ["already-recorded"]
    return made


@pytest.mark.requirement("K-15")
def test_it_proves(wishes: list[Transaction], replica: Replica, genesis: bytes) -> None:
    """A receipt says what, who, where, with which outcome, and who endorsed; for invalid transactions too."""
    for wish, code in ((wishes[0], "valid"), (wishes[2], "valid"), (wishes[4], "already-recorded")):
        report = verify_receipt(make_receipt(replica.store, wish.id), genesis)
        assert (wish.id, wish.kind, "c1", 2, code) == (
            report.transaction,
            report.kind,
            report.client,
            report.height,
            report.code,
        )
        assert report.nodes == ("A", "B")
        assert len(report.steps) == 11


@pytest.mark.requirement("K-15")
def test_registry_transactions(network: Network, replica: Replica, commit: Commit, genesis: bytes) -> None:
    """Receipts of registry transactions rest on the administrators or the registrar."""
    spki = software_keys.ecdsa("c3").spki
    put = network.put(Client("c3", spki, ""))
    arguments = {"name": "c4", "key": msgspec.to_builtins(spki), "certificate": "ab" * 32}
    add = network.transaction("registry", "add_client", arguments, client="ca", signers=[network.registrar])
    assert commit(put, add) == ["valid", "valid"]
    for wish in (put, add):
        report = verify_receipt(make_receipt(replica.store, wish.id), genesis)
        assert report.nodes == ()
        assert "need no endorsement" in report.steps[-2]
    data = read(make_receipt(replica.store, put.id))
    for left_out in data.registry:
        if left_out.key.startswith(("administrator/", "registrar/", "channel")):
            rest = tuple(proven for proven in data.registry if proven is not left_out)
            refused(msgspec.structs.replace(data, registry=rest), genesis)


def test_not_in_the_chain(replica: Replica, wishes: list[Transaction], genesis: bytes) -> None:
    """There is no receipt of what is not in the chain, and none of block 0."""
    first = replica.store.event(0)
    assert first is not None
    for identity in (TxId("ab" * 32), TxId(first.outcomes[0][0])):
        with pytest.raises(LedgerError) as caught:
            make_receipt(replica.store, identity)
        assert caught.value.code == "not-found"
    assert wishes
    assert genesis == replica.store.block(0)


@pytest.mark.requirement("K-15")
def test_no_byte_can_be_changed(replica: Replica, wishes: list[Transaction], genesis: bytes) -> None:
    """Any changed byte is refused, with the step that failed."""
    good = make_receipt(replica.store, wishes[1].id)
    steps = set()
    for place in range(0, len(good), 17):
        bad = bytearray(good)
        bad[place] = bad[place] ^ 1 if bad[place] ^ 1 != bad[place] else 0
        steps.add(refused(bytes(bad), genesis).step)
    assert {"form", "header", "transaction", "outcome", "registry", "endorsements"} <= steps
    verify_receipt(good, genesis)


def test_no_byte_can_be_left_out_or_added(replica: Replica, wishes: list[Transaction], genesis: bytes) -> None:
    """A receipt is one canonical value and nothing after it."""
    good = make_receipt(replica.store, wishes[1].id)
    for bad in (good + b"\n", b" " + good, good[:-1], b"", b"null", b"[" * 100_000):
        assert refused(bad, genesis).step == "form"


def test_no_entry_can_be_left_out(replica: Replica, wishes: list[Transaction], genesis: bytes) -> None:
    """Each registry entry of a receipt is needed: those that decide, and those that show that nothing else does."""
    data = read(make_receipt(replica.store, wishes[0].id))
    keys = [proven.key for proven in data.registry]
    assert {"node/A", "node/B", "node/C", "policy/assets", "policy/assets.issue", "client/c1"} <= set(keys)
    for left_out in keys:
        rest = tuple(proven for proven in data.registry if proven.key != left_out)
        error = refused(msgspec.structs.replace(data, registry=rest), genesis)
        assert error.step in {"registry", "client", "endorsements", "revocations"}, left_out
        assert "nothing shows whether" in str(error) or "were left out" in str(error)
    assert refused(msgspec.structs.replace(data, registry=()), genesis).step == "registry"


@pytest.mark.requirement("K-15", "E-5")
def test_the_own_policy_cannot_be_hidden(network: Network, replica: Replica, commit: Commit, genesis: bytes) -> None:
    """Leaving out `assets.issue` in favour of the laxer `assets` is noticed."""
    assert commit(network.put(EndorsementPolicy("assets.issue", "ALL"), EndorsementPolicy("assets", "ANY"))) == [
        "valid"
    ]
    issue = network.issue("GOLD", {"c1": 5})
    block = network.block(replica, [issue], network.endorse([issue], by=("A", "B", "C"), height=1))
    replica.apply(block.encode())
    data = read(make_receipt(replica.store, issue.id))
    alone = msgspec.structs.replace(data, endorsements=data.endorsements[:1])
    assert "ALL is not met by A" in str(refused(alone, genesis))
    rest = tuple(proven for proven in data.registry if proven.key != "policy/assets.issue")
    hidden = refused(msgspec.structs.replace(alone, registry=rest), genesis)
    assert str(hidden) == "endorsements: nothing shows whether the registry has policy/assets.issue"


def test_a_node_cannot_be_hidden(network: Network, replica: Replica, commit: Commit, genesis: bytes) -> None:
    """Where the policy speaks of all nodes, leaving one out to make the majority smaller is noticed."""
    assert commit(network.put(EndorsementPolicy("evidence", "ALL"))) == ["valid"]
    wish = network.evidence("x")
    replica.apply(network.block(replica, [wish], network.endorse([wish], by=("A", "B", "C"), height=1)).encode())
    data = read(make_receipt(replica.store, wish.id))
    for node in "ABC":
        rest = tuple(proven for proven in data.registry if proven.key != f"node/{node}")
        votes = tuple(each for each in data.endorsements if each.vote.node != node)
        hidden = refused(msgspec.structs.replace(data, registry=rest, endorsements=votes), genesis)
        assert str(hidden) == "endorsements: entries under 'node/' were left out"


@pytest.mark.requirement("E-22")
def test_endorsements(replica: Replica, wishes: list[Transaction], genesis: bytes) -> None:
    """Too few, repeated, or borrowed endorsements prove nothing."""
    data = read(make_receipt(replica.store, wishes[1].id))
    other = read(make_receipt(replica.store, wishes[2].id))
    first, second = data.endorsements
    renamed = msgspec.structs.replace(first, vote=msgspec.structs.replace(first.vote, node="C"))
    for endorsements, step in (
        ((), "policy"),
        ((first,), "policy"),
        ((first, first), "endorsements"),
        ((first, first, second), "endorsements"),
        ((first, renamed), "endorsements"),
        (other.endorsements, "endorsements"),
        ((first, msgspec.structs.replace(second, path=second.path[1:])), "endorsements"),
        ((first, msgspec.structs.replace(second, index=-1)), "endorsements"),
        ((first, msgspec.structs.replace(second, index=2**70)), "endorsements"),
    ):
        assert refused(msgspec.structs.replace(data, endorsements=endorsements), genesis).step == step


def test_parts_of_another_receipt(replica: Replica, wishes: list[Transaction], genesis: bytes) -> None:
    """No part of a receipt can be taken from another transaction's."""
    data, other = (read(make_receipt(replica.store, wish.id)) for wish in (wishes[1], wishes[4]))
    parts: dict[str, str] = {
        "transaction": "transaction",
        "index": "transaction",
        "path": "transaction",
        "outcome": "outcome",
        "outcome_path": "outcome",
        "endorsements": "endorsements",
    }
    for part, step in parts.items():
        changed: Any = msgspec.structs.replace(data, **{part: getattr(other, part)})
        assert refused(changed, genesis).step == step, part


@pytest.mark.requirement("K-15")
def test_another_network(network: Network, replica: Replica, wishes: list[Transaction], tmp_path: Path) -> None:
    """A receipt proves nothing to who holds another network's genesis, even if the same center key signs both."""
    good = make_receipt(replica.store, wishes[1].id)
    stranger = Network("other")
    assert refused(good, stranger.genesis()).step == "handovers"
    stranger.center = network.center
    claimed = Start(0, Block.decode(stranger.genesis()).authentication)
    moved = msgspec.structs.replace(read(good), start=claimed)
    assert "header is of network test" in str(refused(moved, stranger.genesis()))
    assert refused(good, b"{}").step == "genesis"
    unsigned = msgspec.json.decode(stranger.genesis())
    unsigned["header"]["signatures"] = []
    assert refused(good, canonical.encode(unsigned)).step == "genesis"
    assert tmp_path.is_dir()


def test_a_contract_with_a_dot_in_its_name(network: Network, replica: Replica, commit: Commit, genesis: bytes) -> None:
    """The policy that decides is found and proven for every name that a client can choose."""
    wish = network.transaction("assets.issue", "x", {})
    assert commit(wish) == ["unknown-contract"]
    assert verify_receipt(make_receipt(replica.store, wish.id), genesis).code == "unknown-contract"


def test_proofs_with_few_entries(tmp_path: Path) -> None:
    """Where a complete kind is the first or the last of all entries, nothing stands beside it."""
    network = Network(policies={"evidence": "ANY"}, clients=("c1",))
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    genesis = network.genesis()
    replica = Replica.create(store, genesis)
    gone = network.registry("remove", {"keys": ["registrar/ca"]})
    replica.apply(network.block(replica, [gone]).encode())
    wish = network.evidence("x")
    replica.apply(network.block(replica, [wish]).encode())
    for each in (gone, wish):
        assert verify_receipt(make_receipt(store, each.id), genesis).code == "valid"
    store.close()
