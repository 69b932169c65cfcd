"""DSSE envelopes (Dead Simple Signing Envelope v1): the payload verbatim, its type, its signatures.

What is signed is the pre-authentication encoding (PAE), so a signature for one payload type can never be
taken for another.
"""

import hashlib
from typing import Annotated, Final

import msgspec

from protocol.canonical import Digest
from protocol.errors import MalformedError

MAX_SIGNATURES: Final = 32

PREFIX: Final = "application/vnd.hsm-endorser."


class Signature(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One signature over the PAE; `keyid` is the SHA-256 of the signer's SubjectPublicKeyInfo."""

    keyid: Digest
    sig: Annotated[bytes, msgspec.Meta(min_length=1, max_length=2048)]


class Envelope(
    msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"payload_type": "payloadType"}
):
    """A payload as it was signed, and who signed it."""

    payload: bytes
    payload_type: Annotated[str, msgspec.Meta(max_length=128)]
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]

    def require_type(self, expected: str) -> None:
        """Refuse a payload of another type; raises `MalformedError`."""
        if self.payload_type != expected:
            raise MalformedError(f"payload type {self.payload_type!r} where {expected!r} is expected")


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that a signature covers (DSSE v1, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def pae_digest(payload_type: str, payload: bytes) -> str:
    """SHA-256 over the PAE, hexadecimal."""
    return hashlib.sha256(pae(payload_type, payload)).hexdigest()
