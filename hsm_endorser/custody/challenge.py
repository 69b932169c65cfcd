"""Proof of a public key: the private key signs a fresh challenge, and the public key verifies it (requirement K-4).

This is all that a key of a node is asked to sign: a random number inside a statement of its own payload type, of which
`record` is told before.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from hsm_endorser.custody.audited import SIGNS_BY, Audited, kind_name, name_of
from hsm_endorser.custody.cryptoki import code
from hsm_endorser.custody.inventory import AnyPublicKey, BadPublicKeyError, Item, public_key
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_messages import Several, SignEach
from hsm_endorser.custody.verdicts import Rows, listed
from hsm_endorser.identity import challenge_message
from hsm_endorser.worker_messages import Failed
from protocol.canonical import KeyId

Record = Callable[[KeyId, bytes], Awaitable[None]]
"""Told of a challenge (key, what is signed) before it is signed."""
SHA256_DIGEST_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017, section 9.2, note 1


async def prove(rows: Rows, probe: Probe, key: Audited, record: Record | None) -> None:
    """Find out which public key is its; `key.public` is set when one is proven."""
    candidates, problems = _candidates(key)
    tried = "let it sign a fresh challenge, and verify that with its public key"
    mechanism = SIGNS_BY.get(key.kind or 0)
    if not candidates or mechanism is None:
        reason = listed(problems) if problems else "there is no public object with its id"
        rows.untested(
            "key.challenge", key.target, tried, reason if key.publics else f"{reason}: nothing to verify with"
        )
        return
    message = challenge_message(secrets.token_hex(32))
    if record:
        for _, public in candidates:
            await record(KeyId(name_of(public)), message)
    reply = expect(
        await probe.call(SignEach(mechanism, key.item.number, [to_sign(candidates[0][1], message)])), Several
    )
    if isinstance(reply, Failed):
        rows.untested("key.challenge", key.target, tried, f"{code(reply)}: it does not sign", code(reply))
        return
    for item, public in candidates:
        if verifies(public, reply.values[0], message):
            key.public, key.public_item = public, item
            rows.passed("key.challenge", key.target, tried, f"verified by {kind_name(public)} {name_of(public)[:16]}…")
            return
    rows.failed(
        "key.challenge", key.target, tried, f"{len(candidates)} public keys with its id, none verifies",
        "the public object with its id is not its public key: somebody swapped it, or made it look alike",
    )  # fmt: skip


def to_sign(public: AnyPublicKey, message: bytes) -> bytes:
    """What the token is given for a message."""
    if isinstance(public, ed25519.Ed25519PublicKey):
        return message
    digest = hashlib.sha256(message).digest()
    return SHA256_DIGEST_INFO + digest if isinstance(public, rsa.RSAPublicKey) else digest


def verifies(public: AnyPublicKey, signature: bytes, message: bytes) -> bool:
    """Whether a signature in the token's form is by this key."""
    try:
        match public:
            case ed25519.Ed25519PublicKey():
                public.verify(signature, message)
            case rsa.RSAPublicKey():
                public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            case ec.EllipticCurvePublicKey():
                half = len(signature) // 2
                r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
                public.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _candidates(key: Audited) -> tuple[list[tuple[Item, AnyPublicKey]], list[str]]:
    found, problems = [], []
    for item in key.publics:
        try:
            found.append((item, public_key(item)))
        except BadPublicKeyError as error:
            problems.append(str(error))
    return found, problems
