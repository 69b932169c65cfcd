"""The announcement of a new key, signed by the old key and by the new one (requirement K-12)."""

from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical
from protocol.canonical import Digest, Height, Milliseconds, Name
from protocol.envelope import PREFIX, Envelope, pae, pae_digest
from protocol.errors import BadSignatureError
from protocol.keys import PublicKey
from protocol.registry import Spki

PAYLOAD_TYPE: Final = PREFIX + "rotation.v1+json"
MOST_OVERLAP: Final = 100_000


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which key takes the place of which, from which height on, and up to how many blocks later the old one counts."""

    network: Name
    holder: Annotated[
        str, msgspec.Meta(pattern=r"\A(node|center|registrar|client|administrator)/[A-Za-z0-9._-]{1,64}\Z")
    ]
    """The registry entry that holds the key."""
    old: Digest
    """The id of the key that is replaced."""
    new: Spki
    device: Annotated[str, msgspec.Meta(max_length=64)]
    """On whose token the new key was generated; empty for keys of clients and administrators."""
    since: Height
    """From which height on the new key counts; the old one counts up to height `since + overlap`."""
    overlap: Annotated[int, msgspec.Meta(ge=0, le=MOST_OVERLAP)]
    not_before: Milliseconds
    until: Milliseconds
    """The new key's lifetime by block time, in milliseconds."""
    certificate: bytes = b""
    """DER: the new certificate of a registrar or a client; empty for the others."""
    version: Literal[1] = 1


def decode(envelope: Envelope) -> Announcement:
    """The announcement in an envelope, not yet verified; raises `MalformedError`."""
    envelope.require_type(PAYLOAD_TYPE)
    return canonical.decode(envelope.payload, _decoder)


def verify(envelope: Envelope, old: PublicKey) -> Announcement:
    """The announcement, when the old key and the new one signed it, and nobody else.

    Raises `BadSignatureError`, `MalformedError` or `UnacceptableKeyError`.
    """
    announcement = decode(envelope)
    if announcement.old != old.id:
        raise BadSignatureError(f"the announcement replaces key {announcement.old[:16]}…, in force is {old.id[:16]}…")
    keys: dict[str, PublicKey] = {key.id: key for key in (old, PublicKey.load(announcement.new))}
    message = pae(PAYLOAD_TYPE, envelope.payload)
    if len(keys) != len(envelope.signatures) or keys.keys() != {each.keyid for each in envelope.signatures}:
        raise BadSignatureError("the announcement is not signed by the old key and the new one, each once")
    for signature in envelope.signatures:
        keys[signature.keyid].verify(signature.sig, message)
    return announcement


def digest_of(envelope: Envelope) -> str:
    """What names an announcement: SHA-256 over the PAE, hexadecimal."""
    return pae_digest(PAYLOAD_TYPE, envelope.payload)


_decoder = msgspec.json.Decoder(Announcement)
