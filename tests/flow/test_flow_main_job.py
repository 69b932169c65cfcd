"""The main job through all processes: endorsed on tokens, cut into blocks, verified and kept by peers."""

import time

import pytest

from cli import keys
from cli.keys import SoftwareKey
from ledger.receipt import verify_receipt
from protocol import canonical, endorsement
from protocol.block import Block
from protocol.keys import PublicKey
from protocol.registry import Node, decode_entry
from tests.flow.running_network import RunningNetwork
from transport.connect import connect_blocking
from transport.problem import ProblemError

SIGNATURES = "hsm_endorser_device_signatures_total"


@pytest.mark.requirement("E-3", "E-6", "E-10", "E-13", "E-14", "E-16", "M-4")
def test_a_signed_transaction_ends_on_every_peer(network: RunningNetwork) -> None:
    """What a client signs is committed, and both peers hold the same state."""
    wish = network.evidence("pump-7")
    with network.management() as management:
        status = management.submit(wish.raw, wait=20)
    assert (status.status, status.code) == ("committed", "valid")
    network.wait_level(status.height or 0)
    digests = set()
    for name in network.peers:
        with network.peer(name) as peer:
            assert b'"client":"alice"' in peer.state("evidence/pump-7")
            digests.add(peer.digest())
    assert len(digests) == 1


@pytest.mark.requirement("E-11", "E-17", "E-22")
def test_a_block_proves_its_endorsements_with_keys_from_genesis(network: RunningNetwork) -> None:
    """Each head in a block is signed by a key that genesis lists for the head's node; nobody is asked."""
    status = network.ended(_submit(network, "valve-1"))
    genesis = Block.decode(network.layout.genesis.read_bytes())
    (entries,) = (transaction.payload.arguments["entries"] for transaction in genesis.transactions)
    registered = {
        node.name: PublicKey.load(node.keys[0].key)
        for node in (_node(entry) for entry in entries if entry["type"] == "node")
    }
    with network.management() as management:
        block = Block.decode(management.block(status.height or 0))
    approvers = set()
    for tree in block.trees:
        for branch in tree.branches:
            head = endorsement.decode_head(branch.head)
            endorsement.verify_head(branch.head, head, registered[branch.node])
            approvers.add(branch.node)
    assert len(approvers) >= 2


@pytest.mark.requirement("K-15", "E-17")
def test_a_receipt_from_one_peer_verifies_offline(network: RunningNetwork) -> None:
    """A receipt names the endorsing nodes and verifies with genesis.json alone; a changed byte does not."""
    transaction = _submit(network, "valve-2")
    status = network.ended(transaction)
    network.wait_level(status.height or 0)
    with network.peer("peer-2") as peer:
        receipt = peer.receipt(transaction)
    report = verify_receipt(receipt, network.layout.genesis.read_bytes())
    assert (report.transaction, report.code, report.client) == (transaction, "valid", "alice")
    assert len(report.nodes) >= 2


@pytest.mark.requirement("E-2")
def test_an_unknown_client_is_refused_before_any_device_is_asked(network: RunningNetwork) -> None:
    """A client that is not on the whitelist gets its reason, and no device is asked."""
    until = time.time_ns() // 1_000_000 + 60_000
    payload = keys.payload(network.name, "stranger", "evidence.record", {}, valid_until=until)
    with network.management() as management, pytest.raises(ProblemError) as refusal:
        management.submit(keys.sign(payload, [SoftwareKey.generate()])[1])
    assert refusal.value.problem.code == "unknown-client"
    assert refusal.value.problem.devices == ()


@pytest.mark.requirement("E-3")
def test_a_wrong_reference_signature_is_refused(network: RunningNetwork) -> None:
    """A signature of bob's under a transaction of alice's is refused with the reason."""
    wish = network.evidence("forged")
    other = network.evidence("forged", client="bob")
    mixed = wish.raw.replace(wish.envelope.signatures[0].keyid.encode(), other.envelope.signatures[0].keyid.encode())
    with network.management() as management, pytest.raises(ProblemError) as refusal:
        management.submit(mixed)
    assert refusal.value.problem.code == "bad-signature"


@pytest.mark.requirement("E-4", "M-7")
def test_a_replay_changes_nothing(network: RunningNetwork) -> None:
    """The same transaction again answers with its first commit."""
    wish = network.evidence("once")
    with network.management() as management:
        first = management.submit(wish.raw, wait=20)
        again = management.submit(wish.raw, wait=20)
    assert (first.status, first.height) == (again.status, again.height)


@pytest.mark.requirement("M-7")
def test_an_expired_transaction_is_refused(network: RunningNetwork) -> None:
    """A transaction whose time is over is refused at once."""
    wish = network.evidence("late", valid_until=time.time_ns() // 1_000_000 - 1)
    with network.management() as management, pytest.raises(ProblemError) as refusal:
        management.submit(wish.raw)
    assert refusal.value.problem.code == "expired"


@pytest.mark.requirement("M-7")
def test_a_coin_is_spent_once(network: RunningNetwork) -> None:
    """The second transfer of a coin is refused by the devices, who say that it is spent."""
    issue = network.sign("assets.issue", {"symbol": "EUR", "outputs": [{"owner": "alice", "amount": 5}]})
    pay = {"inputs": [f"{issue.id}:0"], "outputs": [{"owner": "bob", "amount": 5}]}
    with network.management() as management:
        assert management.submit(issue.raw, wait=20).code == "valid"
        assert management.submit(network.sign("assets.transfer", pay).raw, wait=20).code == "valid"
        with pytest.raises(ProblemError) as refusal:
            management.submit(network.sign("assets.transfer", pay).raw, wait=20)
    assert refusal.value.problem.code == "endorsement-refused"
    assert "already-spent" in str(refusal.value.problem.devices)


@pytest.mark.slow
@pytest.mark.requirement("E-5", "E-12")
def test_too_few_endorsements_name_the_device_that_was_tried(network: RunningNetwork) -> None:
    """With one device stopped, a policy that needs all nodes is answered with who was tried and what it said."""
    network.supervisor.stop("device-c")
    try:
        issue = network.sign("assets.issue", {"symbol": "USD", "outputs": [{"owner": "alice", "amount": 5}]})
        with network.management() as management, pytest.raises(ProblemError) as refusal:
            management.submit(issue.raw, wait=30)
        assert refusal.value.problem.status == 503
        assert refusal.value.problem.code == "endorsement-unavailable"
        assert "device-c" in str(refusal.value.problem.devices)
        assert network.ended(_submit(network, "two-of-three-go-on")).code == "valid"
    finally:
        network.supervisor.start("device-c")
        network.supervisor.wait_ready(60)


@pytest.mark.parametrize("service", ["management", "device-a", "peer-1"])
def test_every_service_shows_health_and_figures(network: RunningNetwork, service: str) -> None:
    """Alive, ready with its checks named, and Prometheus figures of its own."""
    with connect_blocking(network.layout.socket(service), timeout=10) as http:
        assert http.get("/health/live").json() == {"alive": True}
        ready = http.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["checks"]
        assert "hsm_endorser_" in http.get("/metrics").text


def test_a_readiness_probe_signs_on_the_token(network: RunningNetwork) -> None:
    """Asking a device whether it is ready makes a real signature."""

    def signatures() -> float:
        with connect_blocking(network.layout.socket("device-b"), timeout=10) as http:
            text = http.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(SIGNATURES))

    before = signatures()
    time.sleep(2.5)  # an answer is kept for a moment
    with connect_blocking(network.layout.socket("device-b"), timeout=10) as http:
        assert http.get("/health/ready").status_code == 200
    assert signatures() > before


def _submit(network: RunningNetwork, subject: str) -> str:
    wish = network.evidence(subject)
    with network.management() as management:
        assert management.submit(wish.raw).transaction == wish.id
    return wish.id


def _node(entry: dict[str, object]) -> Node:
    decoded = decode_entry(f"node/{entry['name']}", canonical.encode(entry))
    assert isinstance(decoded, Node)
    return decoded
