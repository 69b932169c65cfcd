"""From a trusted header to the centers in force: handovers, heads that a reader trusts, centers that expired."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger.evidence import Evidence, make_evidence, trusted_head, verify_evidence
from ledger.exhibit import ExhibitError, read_head
from ledger.exhibiting import Exhibits, changes_at, next_change
from ledger.handover import Head, UsedKey, check_not_revoked
from ledger.proof import UnprovenError, WatchedEntries
from ledger.receipt import make_receipt, verify_receipt
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import block as blocks
from protocol import canonical
from protocol.block import Block
from protocol.canonical import TxId
from protocol.registry import Center, Channel, Revocation
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import GENESIS_TIME, Network
from tests.ledger.evidence_world import OTHER, SECOND, History

THIEF = software_keys.ecdsa("somebody else")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A chain on which the centers changed three times."""
    made = History(tmp_path_factory.mktemp("evidence"))
    yield made
    made.store.close()


def head_at(history: History, height: int) -> bytes:
    """The head file that somebody has who verified evidence from the block after `height`."""
    (identity, _), *_ = history.store.event(height + 1).outcomes  # type: ignore[union-attr]
    evidence = make_evidence(history.store, identity)  # type: ignore[arg-type]
    verify_evidence(evidence, history.genesis)
    return trusted_head(evidence)


def refused(evidence: Evidence, genesis: bytes, head: bytes | None = None) -> str:
    """Why evidence is refused, with the step."""
    with pytest.raises(ExhibitError) as caught:
        verify_evidence(canonical.encode(evidence), genesis, head)
    return str(caught.value)


@pytest.mark.requirement("K-15", "K-12")
@pytest.mark.parametrize(("height", "left"), [(3, 3), (4, 2), (5, 1), (6, 1), (7, 0), (8, 0)])
def test_from_a_head_that_the_reader_trusts(history: History, height: int, left: int) -> None:
    """From a verified head on, only the handovers after it are shown, and the head is needed to verify them."""
    head = head_at(history, height)
    evidence = history.evidence(history.late, start=height)
    assert len(evidence.handovers) == left
    report = verify_evidence(canonical.encode(evidence), history.genesis, head)
    assert (report.start.height, len(report.centers)) == (height, left + 1)
    assert f"handovers: the handovers start from block {height}, " in refused(evidence, history.genesis)
    other = head_at(history, 2)
    assert "and the head given is block 2" in refused(evidence, history.genesis, other)


@pytest.mark.requirement("K-15", "K-12")
@pytest.mark.parametrize("height", [2, 4, 5, 7, 8])
def test_evidence_from_genesis_is_held_to_a_head_as_well(history: History, height: int) -> None:
    """With a head, evidence from genesis on must follow from both."""
    evidence = make_evidence(history.store, history.late.id)
    report = verify_evidence(evidence, history.genesis, head_at(history, height))
    assert (report.start.height, len(report.centers)) == (0, 4)


@pytest.mark.requirement("K-15", "K-12", "K-14")
def test_stolen_keys_of_former_centers(history: History) -> None:
    """Who has a former center's key can tell another story from genesis on; whoever trusts a later head refuses it."""
    good = history.evidence(history.late)
    story = msgspec.structs.replace(good, handovers=())
    history.centers = [history.first_center]
    try:
        # The thief also has to lie about the registry: the true one names other centers.
        center = Center("center-1", history.first_center.spki, "device-a")
        forged = history.lie(story, {"center/center-1": center, "center/center-2": None})
    finally:
        history.centers = [OTHER]
    verify_evidence(canonical.encode(forged), history.genesis)
    for height in (4, 5, 7):
        error = refused(forged, history.genesis, head_at(history, height))
        assert error.startswith("head: ")
        assert "no center's" in error or "center signatures where 2 are needed" in error
    assert "head: block 9 does not come after block 9" in refused(forged, history.genesis, _own_head(history))


@pytest.mark.requirement("K-15", "K-12")
def test_forged_handovers(history: History) -> None:
    """A handover signed by others, or with a center that its header does not commit, is refused."""
    good = history.evidence(history.late)
    first = good.handovers[0]
    header = blocks.decode_header(first.header)
    stolen = msgspec.structs.replace(first, header=THIEF.envelope(blocks.PAYLOAD_TYPE, header.encode()))
    reason = refused(_with_first(good, stolen), history.genesis)
    assert reason == f"handovers: the header is signed by key {THIEF.id[:16]}…, which is no center's"

    usurper = canonical.encode(Center("center-1", THIEF.spki, "device-a"))
    entries = tuple(
        msgspec.structs.replace(each, entry=msgspec.Raw(usurper)) if each.key == "center/center-1" else each
        for each in first.registry
    )
    reason = refused(_with_first(good, msgspec.structs.replace(first, registry=entries)), history.genesis)
    assert reason.startswith("handovers: center/center-1 is not under the registry root")

    late = msgspec.structs.replace(header, time=header.time - 10_000)
    signed = history.first_center.envelope(blocks.PAYLOAD_TYPE, late.encode())
    reason = refused(_with_first(good, msgspec.structs.replace(first, header=signed)), history.genesis)
    assert reason == "handovers: the time of block 4 is before that of block 0"

    twice = msgspec.structs.replace(first.header, signatures=first.header.signatures * 2)
    reason = refused(_with_first(good, msgspec.structs.replace(first, header=twice)), history.genesis)
    assert reason == "handovers: a center signed the header of block 4 twice"


@pytest.mark.requirement("K-15")
def test_a_head_is_proven_as_well(history: History) -> None:
    """A head file whose entries are not under its header, or of another network, is refused."""
    head = head_at(history, 5)
    assert read_head(head).height == 5
    evidence = make_evidence(history.store, history.late.id)
    for bad in (head[:-1], head.replace(b'"registry_count":2', b'"registry_count":3'), b"{}"):
        with pytest.raises(ExhibitError, match=r"^head: "):
            verify_evidence(evidence, history.genesis, bad)
    other = Network("other")
    with pytest.raises(ExhibitError, match=r"^handovers: .*that is another genesis block"):
        verify_evidence(evidence, other.genesis())


def test_changes_are_found_by_the_index(history: History) -> None:
    """The next change of some entries is found without reading a block; heights are between the two named."""
    store = history.store
    centers, channel = ("center/", "center0"), ("channel", "channel\0")
    revocation = (f"revocation/{SECOND.id}", f"revocation/{SECOND.id}\0")
    assert next_change(store, [centers], after=0, before=99) == 4
    assert next_change(store, [centers], after=4, before=99) == 5
    assert next_change(store, [centers], after=5, before=99) is None
    assert next_change(store, [channel], after=0, before=5) is None
    assert next_change(store, [revocation, ("custody/", "custody0")], after=1, before=99) == 7
    assert changes_at(store, [centers, channel], 4).keys() == {"center/center-1"}
    assert changes_at(store, [centers, channel], 5).keys() == {"center/center-2", "channel"}


@pytest.mark.requirement("K-15", "K-13")
def test_centers_whose_time_is_over(tmp_path: Path) -> None:
    """Expired centers still sign the block that brings a new key; evidence shows all of it, and goes on from there."""
    network = Network()
    over = GENESIS_TIME + 10_000
    entries = [
        msgspec.structs.replace(entry, until=over) if isinstance(entry, Center) else entry
        for entry in network.entries()
    ]
    genesis = network.genesis(entries)
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    replica = Replica.create(store, genesis)
    replica.apply(network.block(replica, [network.evidence("before")]).encode())
    repair = network.put(Center("center-1", SECOND.spki, "device-a"))
    replica.apply(network.block(replica, [repair], time=over + 5000).encode())
    network.center = SECOND
    after = network.evidence("after", valid_until=over + 60_000)
    replica.apply(network.block(replica, [after]).encode())

    for wish in (repair, after):
        assert verify_receipt(make_receipt(store, wish.id), genesis).code == "valid"
    data = make_evidence(store, repair.id)
    report = verify_evidence(data, genesis)
    assert "their time was over, and the block holds nothing but changes of the registry" in report.steps[3].found
    evidence = msgspec.json.decode(make_evidence(store, after.id), type=Evidence)
    (handover,) = evidence.handovers
    assert [bytes(each) for each in handover.transactions] == [repair.raw]
    for changed, reason in (
        ({"transactions": (), "trees_root": None}, "which is no center's"),
        ({"transactions": ()}, "these are not the transactions of block 2"),
        ({"trees_root": None}, "without the root of the trees"),
        ({"transactions": (msgspec.Raw(after.raw),)}, "these are not the transactions of block 2"),
        ({"trees_root": "ab" * 32}, "these are not the transactions of block 2"),
    ):
        bad = msgspec.structs.replace(evidence, handovers=(msgspec.structs.replace(handover, **changed),))
        error = refused(bad, genesis)
        assert error.startswith("handovers: ")
        assert reason in error
    store.close()


@pytest.mark.requirement("K-15", "K-14")
def test_the_revocation_of_a_center_is_a_handover(tmp_path: Path) -> None:
    """A revoked center is left out from the next block on, and so is one whose device was revoked."""
    network = Network()
    entries = [
        *network.entries(),
        Center("center-2", OTHER.spki, "device-b"),
        Center("center-3", SECOND.spki, "device-c"),
    ]
    genesis = network.genesis(entries)
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    replica = Replica.create(store, genesis)
    key = network.center.id
    identity = network.devices["device-c"].id
    for revocation in (
        Revocation(key, "center/center-1", "key-compromise", 0),
        Revocation(identity, "device/device-c", "key-compromise", 0),
    ):
        replica.apply(network.sign(network.block(replica, [network.put(revocation)]), by=[OTHER]).encode())
    wish = network.evidence("x")
    replica.apply(network.sign(network.block(replica, [wish]), by=[OTHER]).encode())
    data = make_evidence(store, wish.id)
    report = verify_evidence(data, genesis)
    shown = [[used.holder for used in each.centers] for each in report.centers]
    assert shown == [
        ["center/center-1", "center/center-2", "center/center-3"],
        ["center/center-2", "center/center-3"],
        ["center/center-2"],
    ]
    evidence = msgspec.json.decode(data, type=Evidence)
    header = Block.decode(store.block(3) or b"").header
    for revoked in (network.center, SECOND):
        signed = software_keys.envelope(blocks.PAYLOAD_TYPE, header.encode(), [revoked])
        error = refused(msgspec.structs.replace(evidence, header=signed), genesis)
        assert error == f"header: the header is signed by key {revoked.id[:16]}…, which is no center's"
        hidden = msgspec.structs.replace(evidence, header=signed, handovers=())
        assert refused(hidden, genesis) == error.replace("header: ", "registry: ", 1)
    store.close()


def _with_first(good: Evidence, handover: object) -> Evidence:
    return msgspec.structs.replace(good, handovers=(handover, *good.handovers[1:]))


def _own_head(history: History) -> bytes:
    """The head of the last block, as one finds it in evidence of the block after it."""
    registry = history.replica.registry
    evidence = history.evidence(history.late)
    header = blocks.decode_header(evidence.header)
    assert registry.root == header.registry_root
    entries = WatchedEntries(history.store.registry(header.height))
    for kind in ("center", "channel", "device", "revocation", "custody"):
        entries.under(kind)
    assert entries["channel"]
    return canonical.encode(Head(header.encode(), len(entries), entries.proof()))


@pytest.mark.requirement("K-15", "K-5")
def test_tiers_decide_who_the_centers_are(tmp_path: Path) -> None:
    """Where the channel asks for a tier, a new custody statement of a center's device is shown, and is what counts."""
    network = Network()
    statements = [network.custody(device, "probed") for device in network.devices]
    entries = [
        msgspec.structs.replace(entry, least_tier="probed") if isinstance(entry, Channel) else entry
        for entry in [*network.entries(), Center("center-2", OTHER.spki, "device-b")]
    ]
    keys = {network.node_keys["B", "device-b"].id: "probed", OTHER.id: "probed"}
    statements[1] = network.custody("device-b", keys)  # type: ignore[arg-type]
    genesis = network.genesis([*entries, *statements])
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    replica = Replica.create(store, genesis)
    before = network.evidence("before")
    replica.apply(network.block(replica, [before]).encode())
    # The first center's device is found to be worse: its center signs no more from the next block on.
    worse = network.custody("device-a", "read-back", time=network.time + 1)
    replica.apply(network.block(replica, [network.put(worse)]).encode())
    after = network.evidence("after")
    trees = network.endorse([after], by=("B", "C"), height=replica.height)
    draft = replica.draft(replica.time + 1, [after], trees).block
    replica.apply(network.sign(draft, by=[OTHER]).encode())

    assert verify_evidence(make_evidence(store, before.id), genesis).signers[0].tier == "probed"
    data = make_evidence(store, after.id)
    report = verify_evidence(data, genesis)
    assert [used.holder for used in report.signers] == ["center/center-2"]
    assert [each.height for each in report.centers] == [0, 2]
    assert verify_receipt(make_receipt(store, after.id), genesis).nodes == ("B", "C")
    evidence = msgspec.json.decode(data, type=Evidence)
    header = blocks.decode_header(evidence.header)
    signed = network.center.envelope(blocks.PAYLOAD_TYPE, header.encode())
    error = refused(msgspec.structs.replace(evidence, header=signed), genesis)
    assert error == f"header: the header is signed by key {network.center.id[:16]}…, which is no center's"
    rest = tuple(each for each in evidence.handovers[0].registry if each.key != "custody/device-b")
    handover = msgspec.structs.replace(evidence.handovers[0], registry=rest)
    error = refused(msgspec.structs.replace(evidence, handovers=(handover,)), genesis)
    assert "nothing shows whether the registry has custody/device-b" in error
    store.close()


@pytest.mark.requirement("K-15", "K-12")
def test_announced_rotations(tmp_path: Path) -> None:
    """After rotations of a node's, a center's and a client's key, each block's evidence shows the keys of its day."""
    network = Network()
    genesis = network.genesis()
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    replica = Replica.create(store, genesis)
    new_node, new_center, new_client = (software_keys.ecdsa(f"new {each}") for each in ("node", "center", "client"))
    old_node, old_center, old_client = network.node_keys["A", "device-a"], network.center, network.clients["c1"]
    wishes = []

    def commit(*transactions: Transaction) -> None:
        checked = replica.apply(network.block(replica, transactions).encode())
        assert [outcome.code for outcome in checked.outcomes] == ["valid"] * len(transactions)

    def record(number: int) -> None:
        wishes.append(network.evidence(f"x-{number}"))
        commit(wishes[-1])

    record(0)
    commit(
        network.rotate("node/A", old_node, new_node, device="device-a", since=3, overlap=1),
        network.rotate("center/center-1", old_center, new_center, device="device-a", since=3),
        network.renew_client("c1", old_client, new_client, since=3),
    )
    network.center, network.clients["c1"] = new_center, new_client
    record(1)  # the old key of the node counts up to height 4
    network.node_keys["A", "device-a"] = new_node
    record(2)
    record(3)
    shown = []
    for wish in wishes:
        report = verify_evidence(make_evidence(store, wish.id), genesis)
        assert verify_receipt(make_receipt(store, wish.id), genesis).nodes == ("A", "B")
        shown.append((report.authors[0].id, report.votes[0].key.id, report.signers[0].id, len(report.centers)))
    assert shown == [
        (old_client.id, old_node.id, old_center.id, 1),
        (new_client.id, old_node.id, new_center.id, 2),
        (new_client.id, new_node.id, new_center.id, 2),
        (new_client.id, new_node.id, new_center.id, 2),
    ]
    store.close()


@pytest.mark.requirement("K-14", "K-15")
def test_revocations_are_looked_for_by_themselves(history: History) -> None:
    """Whatever else asks: a key is refused by its own revocation, by its device's, and without its device."""
    registry = history.replica.registry
    first, second = history.network.devices["device-a"].id, SECOND.id
    check_not_revoked(registry, UsedKey("center/center-2", OTHER.id, "", "device-b"))
    with pytest.raises(UnprovenError, match="of center/center-1 was revoked"):
        check_not_revoked(registry, UsedKey("center/center-1", second, "", "device-a"))
    with pytest.raises(UnprovenError, match="the registry has no device/device-x"):
        check_not_revoked(registry, UsedKey("node/A", "ab" * 32, "", "device-x"))
    entry = Revocation(first, "device/device-a", "key-compromise", 0)
    lost = registry.changed({f"revocation/{first}": canonical.encode(entry)})
    with pytest.raises(UnprovenError, match=r"device device-a, where key abababababababab… lives, was revoked"):
        check_not_revoked(lost, UsedKey("node/A", "ab" * 32, "", "device-a"))


@pytest.mark.requirement("K-15")
def test_handovers_are_remembered(history: History) -> None:
    """Who makes many exhibits makes each handover once, and the same ones."""
    exhibits = Exhibits(history.store)
    for _ in range(2):
        for wish in (history.late, history.early, history.middle, history.issue):
            made = canonical.encode(exhibits.make(TxId(wish.id), Evidence))
            assert made == make_evidence(history.store, wish.id)


@pytest.mark.requirement("K-15")
def test_an_entry_that_was_written_anew_is_no_handover(tmp_path: Path) -> None:
    """Where nothing that decides who the centers are is different, nothing is shown."""
    network = Network()
    genesis = network.genesis()
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    replica = Replica.create(store, genesis)
    again = network.put(Center("center-1", network.center.spki, "device-a"))
    replica.apply(network.block(replica, [again]).encode())
    wish = network.evidence("x")
    replica.apply(network.block(replica, [wish]).encode())
    assert changes_at(store, [("center/", "center0")], 1).keys() == {"center/center-1"}
    data = make_evidence(store, wish.id)
    assert msgspec.json.decode(data, type=Evidence).handovers == ()
    assert verify_evidence(data, genesis).code == "valid"
    store.close()
