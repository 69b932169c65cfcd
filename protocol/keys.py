"""Public keys: what may be registered, and how each kind verifies.

The algorithm comes from the registered key, never from a message. There are no private keys here.
"""

import functools
import hashlib
import math
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from protocol.canonical import KeyId
from protocol.errors import BadSignatureError, UnacceptableKeyError

Scheme = Literal["ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519"]

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
RSA_BITS: Final = (2048, 8192)
RSA_LEAST_EXPONENT: Final = 65537
ED25519_PRIME: Final = 2**255 - 19
_ED25519_D: Final = -121665 * pow(121666, -1, ED25519_PRIME) % ED25519_PRIME
_ED25519_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
ED25519_LOW_ORDER_Y: Final = frozenset({0, 1, ED25519_PRIME - 1, _ED25519_ORDER_8, ED25519_PRIME - _ED25519_ORDER_8})
"""The y coordinates of the eight points whose order divides 8 (RFC 7748, section 6.1 names the risk)."""
_SMALL_PRIMES_PRODUCT: Final = functools.reduce(
    lambda product, n: product * n, (n for n in range(3, 1000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2)))
)

_ECDSA_DIGEST: Final = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
_SHA256_DIGEST: Final = utils.Prehashed(hashes.SHA256())
_PKCS1: Final = padding.PKCS1v15()


class PublicKey:
    """A public key that was found acceptable: its SubjectPublicKeyInfo (DER), id and signature scheme."""

    __slots__ = ("_key", "id", "scheme", "spki")

    spki: bytes
    id: KeyId
    scheme: Scheme

    def __init__(
        self,
        spki: bytes,
        scheme: Scheme,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey,
    ) -> None:
        self.spki = spki
        self.id = key_id(spki)
        self.scheme = scheme
        self._key = key

    @staticmethod
    def load(spki: bytes) -> "PublicKey":
        """The key in a DER SubjectPublicKeyInfo (RFC 5280, section 4.1).

        Raises `UnacceptableKeyError` for keys that are off their curve, of low order, too short, of another kind
        than ECDSA P-256, RSA (2048 bits and more) or Ed25519, or not in DER's one form (requirement E-18).
        """
        return _load(bytes(spki))

    @staticmethod
    def of(key: PublicKeyTypes) -> "PublicKey":
        """The same for a key that `cryptography` has read, from a certificate, a CSR or a token."""
        return _load(_spki(key))

    def verify(self, signature: bytes, message: bytes, *, low_s: bool = False) -> None:
        """Return when `signature` is this key's over `message`; raise `BadSignatureError` otherwise.

        Nodes, centers and devices sign in one form only: pass `low_s=True` to refuse the other ECDSA form.
        """
        if isinstance(self._key, ed25519.Ed25519PublicKey):
            try:
                self._key.verify(signature, message)
            except InvalidSignature:
                raise self._bad() from None
        else:
            self.verify_digest(signature, hashlib.sha256(message).digest(), low_s=low_s)

    def verify_digest(self, signature: bytes, digest: bytes, *, low_s: bool = False) -> None:
        """Like `verify`, for a message whose SHA-256 digest is known; not for Ed25519, which hashes itself."""
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, digest, _ECDSA_DIGEST)
                if low_s:
                    check_low_s(signature)
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, digest, _PKCS1, _SHA256_DIGEST)
            else:
                raise TypeError("Ed25519 signs messages, not digests")
        except InvalidSignature:
            raise self._bad() from None

    def _bad(self) -> BadSignatureError:
        return BadSignatureError(f"the signature is not by key {self.id[:16]}… ({self.scheme}) over these bytes")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.spki == self.spki

    def __hash__(self) -> int:
        return hash(self.spki)

    def __repr__(self) -> str:
        return f"<PublicKey {self.scheme} {self.id[:16]}>"


def key_id(spki: bytes) -> KeyId:
    """The id of a key: SHA-256 over its SubjectPublicKeyInfo."""
    return KeyId(hashlib.sha256(spki).hexdigest())


def check_low_s(signature: bytes) -> None:
    """Refuse an ECDSA P-256 signature that is not DER with s in the lower half of the order."""
    try:
        r, s = utils.decode_dss_signature(signature)
    except ValueError as error:
        raise BadSignatureError(f"not a DER ECDSA signature: {error}") from None
    if s > P256_ORDER // 2:
        raise BadSignatureError("the ECDSA signature has a high s; nodes sign with the low one")
    if utils.encode_dss_signature(r, s) != signature:
        raise BadSignatureError("the ECDSA signature is not in DER's one form")


def low_s(signature: bytes) -> bytes:
    """The DER form with the low s of an ECDSA P-256 signature that a token returned."""
    r, s = utils.decode_dss_signature(signature)
    return utils.encode_dss_signature(r, min(s, P256_ORDER - s))


def signing_input(scheme: Scheme, message: bytes) -> bytes:
    """What a signer of `scheme` is handed for `message`: its SHA-256 digest, or for Ed25519 the message itself."""
    return message if scheme == "ed25519" else hashlib.sha256(message).digest()


@functools.lru_cache(maxsize=65536)
def _load(spki: bytes) -> PublicKey:
    try:
        key = serialization.load_der_public_key(spki)
        again = _spki(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnacceptableKeyError(f"no usable SubjectPublicKeyInfo: {error}") from None
    if again != spki:
        raise UnacceptableKeyError("the SubjectPublicKeyInfo is not in DER's one form (points uncompressed)")
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise UnacceptableKeyError(f"curve {key.curve.name} where P-256 is expected")
        return PublicKey(spki, "ecdsa-p256-sha256", key)
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key)
        return PublicKey(spki, "rsa-pkcs1-sha256", key)
    if isinstance(key, ed25519.Ed25519PublicKey):
        _check_ed25519(key.public_bytes_raw())
        return PublicKey(spki, "ed25519", key)
    raise UnacceptableKeyError(f"{type(key).__name__} where ECDSA P-256, RSA or Ed25519 is expected")


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    least, most = RSA_BITS
    numbers = key.public_numbers()
    if not least <= key.key_size <= most:
        raise UnacceptableKeyError(f"RSA key of {key.key_size} bits where {least} to {most} are expected")
    if numbers.e < RSA_LEAST_EXPONENT or numbers.e % 2 == 0 or numbers.e.bit_length() > 64:  # noqa: PLR2004
        raise UnacceptableKeyError(f"RSA exponent {numbers.e} where an odd one from {RSA_LEAST_EXPONENT} is expected")
    if numbers.n % 2 == 0 or math.gcd(numbers.n, _SMALL_PRIMES_PRODUCT) != 1:
        raise UnacceptableKeyError("the RSA modulus has a small prime factor")


def _check_ed25519(raw: bytes) -> None:
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= ED25519_PRIME:
        raise UnacceptableKeyError("the Ed25519 key is not canonical: y is not reduced (RFC 8032, section 5.1.3)")
    if y in ED25519_LOW_ORDER_Y:
        raise UnacceptableKeyError("the Ed25519 key is a point of low order: its signatures fit any message")
    # x² = (y² - 1) / (d·y² + 1) must be a square (RFC 8032, section 5.1.3); Euler's criterion tells, and a
    # quotient is a square exactly when the product is.
    square = (y * y - 1) * (_ED25519_D * y * y + 1)
    if pow(square, (ED25519_PRIME - 1) // 2, ED25519_PRIME) != 1:
        raise UnacceptableKeyError("the Ed25519 key is no point of the curve")
