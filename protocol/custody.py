"""The custody statement: what an audit tried on a token and its keys, signed by the device's identity key (K-6).

An in-toto Statement (v1) in a DSSE envelope: the subjects are the keys, by the SHA-256 of their public key; the
predicate holds every row of the audit. The same bytes are the report for people and the proof for the registry.
"""

from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical
from protocol.canonical import Digest, Milliseconds
from protocol.envelope import Envelope, pae, pae_digest
from protocol.errors import BadSignatureError, MalformedError
from protocol.keys import PublicKey
from protocol.tier import Tier

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:hsm-endorser:custody-audit:v1"
MAX_STATEMENT_BYTES: Final = 512 << 10

Verdict = Literal["pass", "fail", "not-tested"]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Short = Annotated[str, msgspec.Meta(max_length=256)]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that was tried: the check's id, on what, what was tried, what the module answered, the verdict."""

    check: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]{1,64}\Z")]
    target: Short
    """A key id, `token`, or `probe` for a key of the same template that was made for the audit."""
    tried: Text
    answer: Text
    """The PKCS#11 return code, or what was read."""
    verdict: Verdict
    reason: Text = ""
    """Why it failed or could not be tested; empty when it passed."""


class AuditedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A private key on the token: `key` is the id of its public key, empty when it has none that is acceptable."""

    key: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    label: Short
    id: Short
    """CKA_ID, hexadecimal."""
    tier: Tier
    verdict: Verdict


class AuditedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the token says of itself; `software` tokens meet no standard for hardware, whatever they say."""

    label: Short
    manufacturer: Short
    model: Short
    serial: Short
    firmware: Short
    software: bool


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By which profile the audit judged: its name, and the SHA-256 of the file."""

    name: Short
    digest: Digest


class Predicate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The audit. `network` and `device` are empty where a token was audited that is no device's."""

    device: Annotated[str, msgspec.Meta(max_length=64)]
    network: Annotated[str, msgspec.Meta(max_length=64)]
    time: Milliseconds
    tool: Short
    profile: Profile
    token: AuditedToken
    keys: tuple[AuditedKey, ...]
    rows: tuple[Row, ...]
    verdict: Verdict
    read_only: bool
    version: Literal[1] = 1


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto ResourceDescriptor: a key by its label, and the SHA-256 of its SubjectPublicKeyInfo."""

    name: Short
    digest: dict[str, Digest]


class Statement(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"statement_type": "_type", "predicate_type": "predicateType"},
):
    """The in-toto Statement around the audit."""

    subject: tuple[Subject, ...]
    predicate: Predicate
    statement_type: Literal["https://in-toto.io/Statement/v1"] = STATEMENT_TYPE
    predicate_type: Literal["urn:hsm-endorser:custody-audit:v1"] = PREDICATE_TYPE


def encode(predicate: Predicate) -> bytes:
    """The canonical payload to be signed: every key with an acceptable public key is a subject."""
    subjects = tuple(Subject(key.label, {"sha256": key.key}) for key in predicate.keys if key.key)
    return canonical.encode(Statement(subjects, predicate))


def decode(envelope: Envelope) -> Statement:
    """The statement in an envelope, not yet verified; raises `MalformedError`."""
    envelope.require_type(PAYLOAD_TYPE)
    statement = canonical.decode(envelope.payload, _decoder, limit=MAX_STATEMENT_BYTES)
    if encode(statement.predicate) != envelope.payload:
        raise MalformedError("the subjects of the custody statement are not the keys that it judges")
    return statement


def verify(envelope: Envelope, identity: PublicKey) -> Statement:
    """The statement, when the device's identity key and nobody else signed it.

    Raises `BadSignatureError` or `MalformedError`.
    """
    statement = decode(envelope)
    if [signature.keyid for signature in envelope.signatures] != [identity.id]:
        raise BadSignatureError(f"the custody statement is not signed by identity key {identity.id[:16]}… alone")
    identity.verify(envelope.signatures[0].sig, pae(PAYLOAD_TYPE, envelope.payload))
    return statement


def digest_of(envelope: Envelope) -> str:
    """What names a statement: SHA-256 over the PAE, hexadecimal."""
    return pae_digest(PAYLOAD_TYPE, envelope.payload)


def tier_of(statement: Statement, key_id: str) -> Tier:
    """The tier that a statement gives a key; one that it does not name, or names twice, is only claimed."""
    found = [key.tier for key in statement.predicate.keys if key.key == key_id]
    return found[0] if len(found) == 1 else "claimed"


_decoder = msgspec.json.Decoder(Statement)
