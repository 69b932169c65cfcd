"""The signature memory: it remembers what held, exactly that, and not for ever."""

import threading

import msgspec
import pytest

from ledger.memory import SignatureMemory
from protocol import canonical
from protocol.endorsement import approval, decode_head
from protocol.envelope import Envelope, Signature
from protocol.errors import BadSignatureError
from protocol.keys import PublicKey
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network


class Counting:
    """Counts how often a key really verifies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        original = PublicKey.verify_digest

        def counted(key: PublicKey, signature: bytes, digest: bytes, *, low_s: bool = False) -> None:
            self.calls += 1
            original(key, signature, digest, low_s=low_s)

        monkeypatch.setattr(PublicKey, "verify_digest", counted)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """How often signatures are verified."""
    return Counting(monkeypatch)


def with_signatures(transaction: Transaction, *signatures: Signature) -> Transaction:
    """The same payload under other signatures."""
    return Transaction.decode(canonical.encode(msgspec.structs.replace(transaction.envelope, signatures=signatures)))


def test_once_only(network: Network, counting: Counting) -> None:
    """A signature that held is not verified again; by another memory it is."""
    wish, key, memory = network.evidence("x"), network.clients["c1"].public, SignatureMemory()
    for _ in range(3):
        memory.verify_transaction(wish, key)
    assert counting.calls == 1
    SignatureMemory().verify_transaction(wish, key)
    assert counting.calls == 2


def test_failures_are_not_remembered(network: Network, counting: Counting) -> None:
    """A signature that does not hold is refused every time, and does not spoil the one that does."""
    wish, other, memory = network.evidence("x"), network.evidence("y"), SignatureMemory()
    key = network.clients["c1"].public
    bad = with_signatures(wish, *other.envelope.signatures)
    assert wish.id == bad.id
    for _ in range(2):
        with pytest.raises(BadSignatureError):
            memory.verify_transaction(bad, key)
    assert counting.calls == 2
    memory.verify_transaction(wish, key)
    with pytest.raises(BadSignatureError):
        memory.verify_transaction(bad, key)


@pytest.mark.requirement("E-3")
def test_only_exactly_what_held(network: Network) -> None:
    """Other bytes, another named key, a second signature or another registered key are judged as if never seen."""
    wish, memory, key = network.evidence("x"), SignatureMemory(), network.clients["c1"].public
    memory.verify_transaction(wish, key)
    (signature,) = wish.envelope.signatures
    for forged, registered in (
        (with_signatures(wish, msgspec.structs.replace(signature, sig=signature.sig[:-1] + b"\x00")), key),
        (with_signatures(wish, msgspec.structs.replace(signature, keyid="ab" * 32)), key),
        (with_signatures(wish, signature, signature), key),
        (wish, network.clients["c2"].public),
    ):
        for judge in (memory, SignatureMemory()):
            with pytest.raises(BadSignatureError):
                judge.verify_transaction(forged, registered)


@pytest.mark.requirement("E-12")
def test_heads(network: Network, counting: Counting) -> None:
    """Heads are remembered alike, and only exactly as they were."""
    wish, memory = network.evidence("x"), SignatureMemory()
    tree = network.tree("device-a", [approval(network.name, wish.id, "A")])
    sealed, key = tree.branches[0].head, network.node_keys["A", "device-a"].public
    head = decode_head(sealed)
    for _ in range(3):
        memory.verify_head(sealed, head, key)
    assert counting.calls == 1
    (signature,) = sealed.signatures
    changed = (
        (),
        (signature, signature),
        (msgspec.structs.replace(signature, keyid="ab" * 32),),
        (msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig)),),
    )
    for signatures in changed:
        envelope = Envelope(sealed.payload, sealed.payload_type, signatures)
        for judge in (memory, SignatureMemory()):
            with pytest.raises(BadSignatureError):
                judge.verify_head(envelope, head, key)
    with pytest.raises(BadSignatureError):
        memory.verify_head(sealed, head, network.node_keys["B", "device-b"].public)


def test_bounded(network: Network, counting: Counting) -> None:
    """It holds as many as it may, and forgets the oldest."""
    memory, key = SignatureMemory(capacity=3), network.clients["c1"].public
    wishes = [network.evidence(f"x-{n}") for n in range(10)]
    for wish in wishes:
        memory.verify_transaction(wish, key)
    assert len(memory._seen) == 3
    before = counting.calls
    memory.verify_transaction(wishes[-1], key)
    assert before == counting.calls
    memory.verify_transaction(wishes[0], key)
    assert before + 1 == counting.calls


def test_two_threads(network: Network) -> None:
    """Threads may use it together: good ones pass, bad ones never, and it stays bounded."""
    memory, key = SignatureMemory(capacity=5), network.clients["c1"].public
    wishes = [network.evidence(f"x-{n}") for n in range(20)]
    bad = [with_signatures(a, *b.envelope.signatures) for a, b in zip(wishes, wishes[1:] + wishes[:1], strict=True)]
    slips: list[str] = []

    def work() -> None:
        for _ in range(10):
            for good, forged in zip(wishes, bad, strict=True):
                memory.verify_transaction(good, key)
                try:
                    memory.verify_transaction(forged, key)
                except BadSignatureError:
                    continue
                slips.append(forged.id)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slips == []
    assert len(memory._seen) <= 5
