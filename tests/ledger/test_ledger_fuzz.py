"""Only ledger errors come out of the verifier, whatever goes in."""

import base64
import contextlib
import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.errors import LedgerError
from ledger.replica import Replica
from protocol import canonical
from protocol.block import Block
from protocol.endorsement import Tree
from protocol.envelope import Envelope
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network


def attempt(replica: Replica, data: bytes) -> bool:
    """Whether the block was accepted; anything but a ledger error fails the test. Nothing may be stored."""
    try:
        replica.apply(data)
    except LedgerError:
        assert replica.store.height() == replica.height
        return False
    return True


@pytest.fixture
def block(network: Network, replica: Replica) -> Block:
    """A block with all kinds of transactions, for height 1."""
    issue = network.issue("GOLD", {"c1": 10})
    return network.block(
        replica,
        [
            issue,
            network.transfer([f"{issue.id}:0"], {"c2": 10}),
            network.evidence("x"),
            network.put(*network.entries()),
        ],
    )


def test_mutated_bytes(replica: Replica, block: Block) -> None:
    """Changed, dropped, doubled and random bytes anywhere in a block are refused by a ledger error."""
    chance = random.Random(11)  # noqa: S311  a test's own dice
    good = block.encode()
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(chance.choice([1, 1, 1, 2, 10])):
            place = chance.randrange(len(bad))
            match chance.randrange(4):
                case 0:
                    bad[place] ^= 1 << chance.randrange(8)
                case 1:
                    del bad[place : place + chance.choice([1, 4, 100])]
                case 2:
                    bad[place:place] = bad[place : place + 30]
                case _:
                    bad[place] = chance.randrange(256)
        if bytes(bad) != good:
            assert not attempt(replica, bytes(bad))
    assert attempt(replica, good)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(max_size=8)
    | st.sampled_from(["ab" * 32, "c1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdef", max_size=5), inner, max_size=3),
    max_leaves=8,
)


def mutate(value: Any, chance: random.Random, other: Any) -> Any:
    """The value with one member, somewhere, replaced by another."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        return {**value, key: mutate(value[key], chance, other)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], mutate(value[place], chance, other), *value[place + 1 :]]
    return other


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), other=JSON)
def test_signed_nonsense(network: Network, replica: Replica, seed: int, other: Any) -> None:
    """A center that signs structurally mutated bodies, votes and arguments gets ledger errors, never crashes."""
    chance = random.Random(seed)  # noqa: S311  a test's own dice
    wishes = [network.evidence("x"), network.issue("GOLD", {"c1": 3})]
    payload = mutate(msgspec.json.decode(wishes[1].envelope.payload), chance, other)
    raw = canonical.encode(
        network.clients["c1"].envelope("application/vnd.hsm-endorser.transaction.v1+json", canonical.encode(payload))
    )
    trees = network.endorse(wishes)
    mutated = mutate(msgspec.json.decode(canonical.encode(trees)), chance, other)
    with contextlib.suppress(msgspec.ValidationError):
        trees = msgspec.convert(mutated, list[Tree])
    try:
        wishes.append(Transaction.decode(raw))
    except Exception as error:  # noqa: BLE001  what the protocol refuses never reaches the ledger
        assert type(error).__module__ == "protocol.errors"  # noqa: PT017  which family is the point
    good = network.block(replica, [])
    attempt(replica, network.rebuilt(good, transactions=wishes, trees=trees).encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.dictionaries(st.text("abcdef", max_size=5), JSON, max_size=3), seed=st.integers(0, 2**32))
def test_arguments_of_every_operation(network: Network, replica: Replica, arguments: dict[str, Any], seed: int) -> None:
    """Whatever arguments an operation gets, it comes to a code."""
    chance = random.Random(seed)  # noqa: S311  a test's own dice
    good = [
        ("assets", "issue", {"symbol": "G", "outputs": [{"owner": "c1", "amount": 1}]}),
        ("assets", "transfer", {"inputs": ["ab" * 32 + ":0"], "outputs": [{"owner": "c1", "amount": 1}]}),
        ("evidence", "record", {"subject": "x", "digest": "ab" * 32, "attributes": {"a": "b"}}),
        ("registry", "put", network.genesis_transaction().payload.arguments),
        ("registry", "remove", {"keys": ["client/c1", "node/A"]}),
        (
            "registry",
            "add_client",
            {"name": "c3", "key": base64.b64encode(b"x" * 91).decode(), "certificate": "ab" * 32},
        ),
    ]
    wishes = []
    for contract, operation, usual in good:
        tried = (arguments, mutate(usual, chance, next(iter(arguments.values()), None)))
        wishes += [network.transaction(contract, operation, each) for each in tried if isinstance(each, dict)]
    codes = replica.simulate(wishes)
    assert len(wishes) == len(codes)
    assert all(codes)


def test_keys_that_are_none(network: Network, replica: Replica) -> None:
    """Mutated public keys of every kind come to a code."""
    chance = random.Random(3)  # noqa: S311  a test's own dice
    kinds = [software_keys.ecdsa("k").spki, software_keys.ed25519_key("k").spki, software_keys.rsa_key("k").spki]
    wishes = []
    for number in range(300):
        spki = bytearray(kinds[number % 3])
        spki[chance.randrange(len(spki))] = chance.randrange(256)
        key = base64.b64encode(bytes(spki)).decode()
        arguments = {"name": f"k{number}", "key": key, "certificate": "ab" * 32}
        wishes.append(
            network.transaction("registry", "add_client", arguments, client="ca", signers=[network.registrar])
        )
    assert set(replica.simulate(wishes)) <= {"valid", "unacceptable-key", "bad-arguments"}


def test_signatures_that_are_none(network: Network, replica: Replica) -> None:
    """Garbage where a signature should be, of every kind of key, is a ledger error."""
    chance = random.Random(5)  # noqa: S311  a test's own dice
    keys = {"c1": software_keys.ecdsa("k1"), "c2": software_keys.ed25519_key("k2"), "c3": software_keys.rsa_key("k3")}
    put = network.put(
        *(msgspec.structs.replace(network.entries()[-3], name=name, key=key.spki) for name, key in keys.items())
    )
    replica.apply(network.block(replica, [put]).encode())
    for client, key in keys.items():
        wish = network.evidence(f"by {client}", client=client, signers=[key])
        good = wish.envelope.signatures[0].sig
        garbage = [b"\x00", b"\x30", good[:-1], good + b"\x00", b"\xff" * len(good), b"0" * 2048, chance.randbytes(64)]
        for sig in garbage:
            envelope = Envelope(
                wish.envelope.payload,
                wish.envelope.payload_type,
                (msgspec.structs.replace(wish.envelope.signatures[0], sig=sig),),
            )
            forged = Transaction.decode(canonical.encode(envelope))
            bad = network.rebuilt(network.block(replica, []), transactions=[forged], trees=network.endorse([forged]))
            assert not attempt(replica, bad.encode())
        assert attempt(replica, network.block(replica, [wish]).encode())
    header = network.block(replica, [])
    for sig in (b"\x00", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\xff" * 2048):
        (signature,) = header.envelope.signatures
        envelope = msgspec.structs.replace(header.envelope, signatures=(msgspec.structs.replace(signature, sig=sig),))
        assert not attempt(replica, header.signed(envelope).encode())
