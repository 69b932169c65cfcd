"""Software keys for tests: every kind that may be registered, the same key for the same name in every run.

The product itself signs with tokens alone; these stand for the other side of the wire.
"""

import functools
import hashlib

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from protocol.canonical import KeyId
from protocol.envelope import Envelope, Signature, pae
from protocol.keys import P256_ORDER, PublicKey, low_s

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class SoftwareKey:
    """A private key in memory, and how it signs. ECDSA signs deterministically (RFC 6979) with a low s."""

    def __init__(self, private: PrivateKey) -> None:
        self.private = private
        self.public = PublicKey.of(private.public_key())

    @property
    def spki(self) -> bytes:
        """The public half as a DER SubjectPublicKeyInfo."""
        return self.public.spki

    @property
    def id(self) -> KeyId:
        """The id of the public half."""
        return self.public.id

    def sign(self, message: bytes) -> bytes:
        """A signature in the form that nodes must use."""
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
            return low_s(self.private.sign(message, algorithm))
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return self.private.sign(message)

    def signature(self, payload_type: str, payload: bytes) -> Signature:
        """The DSSE signature over a payload."""
        return Signature(self.id, self.sign(pae(payload_type, payload)))

    def envelope(self, payload_type: str, payload: bytes) -> Envelope:
        """The envelope that this key alone signed."""
        return envelope(payload_type, payload, [self])

    def pem(self) -> bytes:
        """The private key as PKCS#8 PEM, for programs that read key files."""
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def envelope(payload_type: str, payload: bytes, signers: list[SoftwareKey]) -> Envelope:
    """The envelope that all of `signers` signed, in this order."""
    return Envelope(payload, payload_type, tuple(signer.signature(payload_type, payload) for signer in signers))


@functools.cache
def ecdsa(name: str) -> SoftwareKey:
    """The ECDSA P-256 key of that name."""
    secret = int.from_bytes(hashlib.sha512(f"ecdsa {name}".encode()).digest(), "big") % (P256_ORDER - 1) + 1
    return SoftwareKey(ec.derive_private_key(secret, ec.SECP256R1()))


@functools.cache
def ed25519_key(name: str) -> SoftwareKey:
    """The Ed25519 key of that name."""
    secret = hashlib.sha256(f"ed25519 {name}".encode()).digest()
    return SoftwareKey(ed25519.Ed25519PrivateKey.from_private_bytes(secret))


@functools.cache
def rsa_key(name: str) -> SoftwareKey:
    """An RSA-2048 key, the same for the same name within one run."""
    del name  # RSA keys cannot be derived from a name in reasonable code; the cache keeps them apart
    return SoftwareKey(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def high_s(signature: bytes) -> bytes:
    """The other form of an ECDSA P-256 signature: the one that nodes must not use."""
    r, s = utils.decode_dss_signature(low_s(signature))
    return utils.encode_dss_signature(r, P256_ORDER - s)
