"""Transactions: what is accepted as one, and whose it is."""

import hashlib
from typing import Any

import msgspec
import pytest

from protocol import canonical
from protocol.envelope import Envelope, Signature, pae
from protocol.errors import BadSignatureError, LimitExceededError, MalformedError
from protocol.transaction import PAYLOAD_TYPE, Transaction
from tests import software_keys
from tests.protocol.samples import CLIENT, PAYLOAD, transaction

pytestmark = pytest.mark.requirement("E-3")


def _sealed(payload: bytes) -> bytes:
    return canonical.encode(CLIENT.envelope(PAYLOAD_TYPE, payload))


def test_the_pae_is_that_of_dsse() -> None:
    """The example of DSSE's specification, and lengths in bytes rather than characters."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"\xff\0") == b"DSSEv1 2 \xc3\xa9 2 \xff\0"


def test_the_id_names_what_was_signed() -> None:
    """It is SHA-256 over the PAE; other signatures over the same payload leave it as it is."""
    first = transaction(CLIENT)
    second = transaction(software_keys.ecdsa("somebody else"))
    assert first.raw != second.raw
    assert first.id == second.id == hashlib.sha256(pae(PAYLOAD_TYPE, first.envelope.payload)).hexdigest()
    assert first.id != transaction(nonce=1).id
    assert first.kind == "evidence.record"


@pytest.mark.parametrize("make", [software_keys.ecdsa, software_keys.rsa_key, software_keys.ed25519_key])
def test_the_reference_signature_is_the_registered_keys(make: Any) -> None:
    """A client of any kind of key signs; any other key refuses, even when the envelope names it."""
    key, other = make("c1"), make("c2")
    made = transaction(key)
    made.verify(key.public)
    with pytest.raises(BadSignatureError, match=f"signed by key {key.id[:16]}"):
        made.verify(other.public)
    claimed = msgspec.structs.replace(made.envelope.signatures[0], keyid=other.id)
    forged = msgspec.structs.replace(made.envelope, signatures=(claimed,))
    with pytest.raises(BadSignatureError, match=f"not by key {other.id[:16]}"):
        Transaction.decode(canonical.encode(forged)).verify(other.public)


def test_a_client_signs_alone() -> None:
    """A second signature would change the bytes of a block without changing what was asked for."""
    payload = canonical.encode(PAYLOAD)
    both = software_keys.envelope(PAYLOAD_TYPE, payload, [CLIENT, software_keys.ecdsa("c2")])
    made = Transaction.decode(canonical.encode(both))
    with pytest.raises(BadSignatureError, match="2 signatures where the client's alone"):
        made.verify(CLIENT.public)
    made.verify_by(CLIENT.public)
    made.verify_by(software_keys.ecdsa("c2").public)
    assert made.signers == (CLIENT.id, software_keys.ecdsa("c2").id)


def test_a_signature_for_another_payload_type_is_refused() -> None:
    """What was signed as a header cannot be passed off as a transaction."""
    payload = canonical.encode(PAYLOAD)
    signature = CLIENT.signature("application/vnd.hsm-endorser.header.v1+json", payload)
    made = Transaction.decode(canonical.encode(Envelope(payload, PAYLOAD_TYPE, (signature,))))
    with pytest.raises(BadSignatureError):
        made.verify(CLIENT.public)


def _with(**changed: Any) -> bytes:
    fields = {**msgspec.to_builtins(PAYLOAD), **changed}
    return canonical.encode({name: value for name, value in fields.items() if value is not ...})


MALFORMED = {
    "another version": (_with(version=2), "invalid enum value|not what"),
    "no version": (_with(version=...), "missing required field"),
    "an unknown field": (_with(more=1), "unknown field"),
    "a nonce that is too short": (_with(nonce="00"), "regex"),
    "an upper-case nonce": (_with(nonce="AB" * 16), "regex"),
    "a negative height": (_with(valid_from=-1), ">= 0"),
    "a time beyond 2^53": (_with(valid_until=2**53), "<="),
    "a time as a text": (_with(valid_until="1"), "Expected `int`"),
    "a float in the arguments": (_with(arguments={"a": 1.5}), "float"),
    "a large integer in the arguments": (_with(arguments={"a": 2**53}), "beyond"),
    "a key that is not ASCII": (_with(arguments={"ä": 1}), "not ASCII"),
    "arguments that are a list": (_with(arguments=[]), "Expected `object`"),
    "an operation with a space": (_with(operation="a b"), "regex"),
    "white space": (canonical.encode(PAYLOAD) + b" ", "not canonical"),
    "nothing": (b"", "not what was expected"),
}


@pytest.mark.requirement("E-4")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_payload_is_refused_though_it_is_signed(name: str) -> None:
    """The client's signature makes no bytes good."""
    payload, reason = MALFORMED[name]
    with pytest.raises(MalformedError, match=reason):
        Transaction.decode(_sealed(payload))


@pytest.mark.requirement("E-4")
def test_a_malformed_envelope_is_refused() -> None:
    """An envelope of another type, without a signature, with too many, or with an empty one."""
    payload = canonical.encode(PAYLOAD)
    signature = CLIENT.signature(PAYLOAD_TYPE, payload)
    with pytest.raises(MalformedError, match="carries no reference signature"):
        Transaction.decode(canonical.encode(Envelope(payload, PAYLOAD_TYPE, ())))
    with pytest.raises(MalformedError, match="payload type 'text/plain' where"):
        Transaction.decode(canonical.encode(Envelope(payload, "text/plain", (signature,))))
    with pytest.raises(MalformedError, match="length <= 32"):
        Transaction.decode(canonical.encode(Envelope(payload, PAYLOAD_TYPE, (signature,) * 33)))
    with pytest.raises(MalformedError, match="length >= 1"):
        Transaction.decode(canonical.encode(Envelope(payload, PAYLOAD_TYPE, (Signature(CLIENT.id, b""),))))
    with pytest.raises(LimitExceededError, match="at most 1048576"):
        Transaction.decode(_sealed(_with(arguments={"a": "x" * (1 << 20)})))


@pytest.mark.requirement("E-4")
def test_depth_is_limited_in_arguments() -> None:
    """Arguments of more than sixteen levels are refused."""
    nested: Any = 1
    for _ in range(17):
        nested = [nested]
    with pytest.raises(LimitExceededError, match="deeper than 16"):
        Transaction.decode(_sealed(_with(arguments={"a": nested})))
