"""The golden vectors: the code reproduces them byte for byte, and they hold by themselves."""

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest

from ledger.receipt import verify_receipt
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import custody, registry, rotation
from protocol.block import Block
from protocol.envelope import Envelope
from protocol.keys import PublicKey
from protocol.transaction import Transaction
from tests.chain_builder import Network
from tests.vectors import generate

NAMES = ("keys", "canonical", "merkle", "transaction", "endorsement", "block", "registry", "life", "chain")


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What today's code makes of the same names."""
    return generate.vectors()


def _file(name: str) -> Any:
    return json.loads((generate.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_code_reproduces_every_vector(name: str, made: dict[str, Any]) -> None:
    """Another byte is another protocol: it needs another version, not another vector."""
    assert sorted(made) == sorted(NAMES)
    assert (generate.FOLDER / f"{name}.json").read_text(encoding="utf-8") == generate.write(name, made[name])


def test_signatures_of_every_scheme_verify() -> None:
    """ECDSA, Ed25519 and RSA, from their bytes alone."""
    for key in (*[_file("keys")[name] for name in ("ecdsa", "ed25519")], _file("rsa")):
        public = PublicKey.load(base64.b64decode(key["spki"]))
        assert (public.scheme, public.id) == (key["scheme"], key["id"])
        public.verify(bytes.fromhex(key["signature"]), key["message"].encode(), low_s=True)


@pytest.mark.requirement("E-3")
def test_a_transaction_is_its_envelope_and_its_id() -> None:
    """The id is SHA-256 over the PAE in the vector, whoever signs."""
    vector = _file("transaction")
    assert hashlib.sha256(vector["pae"].encode()).hexdigest() == vector["id"]
    for scheme, raw in vector["envelopes"].items():
        found = Transaction.decode(raw.encode())
        found.verify(PublicKey.load(base64.b64decode(_file("keys")[scheme]["spki"])))
        assert found.id == vector["id"]


@pytest.mark.requirement("K-6", "K-12")
def test_the_life_of_a_key_verifies() -> None:
    """The announcement by both keys, the custody statement by the device, and their entries, from their bytes alone."""
    vector = _file("life")
    announced = msgspec.json.decode(vector["announcement"]["envelope"], type=Envelope)
    statement = msgspec.json.decode(vector["statement"]["envelope"], type=Envelope)
    registered = {each["key"]: registry.decode_entry(each["key"], each["entry"].encode()) for each in vector["entries"]}
    identity = {each.id: each for each in (key.public for key in Network("vectors").devices.values())}
    node = registered["node/A"]
    assert isinstance(node, registry.Node)
    old, new = (PublicKey.load(each.key) for each in node.keys)
    assert rotation.verify(announced, old).new == new.spki
    assert rotation.digest_of(announced) == vector["announcement"]["digest"]
    found = custody.verify(statement, identity[vector["statement"]["identity"]])
    assert [custody.tier_of(found, key.id) for key in (old, new)] == ["probed", "read-back"]
    assert custody.digest_of(statement) == vector["statement"]["digest"]


@pytest.mark.requirement("E-14", "E-16", "E-17")
def test_a_replica_accepts_the_chain_of_the_vectors(tmp_path: Any) -> None:
    """Block for block, to the same state, and the receipt proves what became of a transaction."""
    vector = _file("chain")
    genesis, *rest = (each.encode() for each in vector["blocks"])
    replica = Replica.create(ChainStore.create(url_of(tmp_path / "chain.db")), genesis)
    for block in rest:
        replica.apply(block)
    assert replica.store.digest() == (len(rest), vector["state_digest"])
    assert replica.authentication == Block.decode(rest[-1]).authentication
    report = verify_receipt(vector["receipt"].encode(), genesis)
    assert (report.transaction, report.code) == (vector["transaction"], "already-spent")
    replica.store.close()
