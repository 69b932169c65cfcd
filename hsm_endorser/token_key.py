"""Keys on a token: its public halves, checked like any other party's, and its signatures in their one form."""

from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils

from hsm_endorser.worker_messages import FoundKey, Keys
from protocol.canonical import KeyId
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import P256_ORDER, PublicKey, low_s

ECDSA_BYTES: Final = 64
"""What a token returns for P-256: r and s, 32 bytes each."""


class TokenKey(msgspec.Struct, frozen=True):
    """A key on the token. The label is for people; `handle` is its CKA_ID."""

    label: str
    public_key: PublicKey
    handle: bytes


def usable_keys(listed: Keys) -> tuple[dict[KeyId, TokenKey], tuple[str, ...]]:
    """The keys that may be used, by key id, and in words those that may not."""
    keys: dict[KeyId, TokenKey] = {}
    problems = list(listed.problems)
    for found in listed.keys:
        try:
            key = token_key(found)
        except UnacceptableKeyError as error:
            problems.append(str(error))
        else:
            keys[key.public_key.id] = key
    return keys, tuple(problems)


def token_key(found: FoundKey) -> TokenKey:
    """The key that a token describes; raises `UnacceptableKeyError` (off the curve, too short, …)."""
    return TokenKey(found.label, _public_key(found), found.id)


def normalise(key: PublicKey, inputs: Sequence[bytes], raw: Sequence[bytes]) -> list[bytes]:
    """The signatures that a token made over `inputs`, verified, ECDSA as DER with a low s.

    Raises `BadSignatureError`.
    """
    return [_normalise_one(key, each, signature) for each, signature in zip(inputs, raw, strict=True)]


def _normalise_one(key: PublicKey, signed: bytes, raw: bytes) -> bytes:
    if key.scheme == "ed25519":
        key.verify(raw, signed)
        return raw
    signature = raw
    if key.scheme == "ecdsa-p256-sha256":
        if len(raw) != ECDSA_BYTES:
            raise BadSignatureError(f"an ECDSA signature of {len(raw)} bytes where r‖s of {ECDSA_BYTES} is expected")
        r, s = (int.from_bytes(part, "big") for part in (raw[: ECDSA_BYTES // 2], raw[ECDSA_BYTES // 2 :]))
        if not (0 < r < P256_ORDER and 0 < s < P256_ORDER):
            raise BadSignatureError("an ECDSA signature whose r or s is no number below the order")
        signature = low_s(utils.encode_dss_signature(r, s))
    key.verify_digest(signature, signed, low_s=True)
    return signature


def _public_key(found: FoundKey) -> PublicKey:
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
    try:
        if found.scheme == "ecdsa-p256-sha256":
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), found.point)
        elif found.scheme == "rsa-pkcs1-sha256":
            modulus, exponent = int.from_bytes(found.modulus, "big"), int.from_bytes(found.exponent, "big")
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        else:
            key = ed25519.Ed25519PublicKey.from_public_bytes(found.point)
    except ValueError as error:
        raise UnacceptableKeyError(f"the token's public key {found.label!r} is none: {error}") from None
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return PublicKey.load(key.public_bytes(encoding, form))
