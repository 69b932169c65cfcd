"""X.509 without a private key: the bytes that a CA's token is to sign, and the structure around its signature.

`cryptography` builds and signs in one step. So where it wants a private key it gets a stand-in that has none: the
bytes to be signed are taken out of what it builds, and the finished structure is put together around them.

A serial number follows from the two keys: whoever knows which key is revoked knows which certificate that is, with
no record of what was issued (RFC 5280, section 4.1.2.2: unique for each CA, because a CA certifies a key once).
"""

import hashlib
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from protocol.canonical import KeyId
from protocol.keys import PublicKey, Scheme

ALGORITHMS: Final[dict[Scheme, bytes]] = {
    "ecdsa-p256-sha256": bytes.fromhex("300a06082a8648ce3d040302"),  # RFC 5758, section 3.2
    "rsa-pkcs1-sha256": bytes.fromhex("300d06092a864886f70d01010b0500"),  # RFC 4055, section 5
    "ed25519": bytes.fromhex("300506032b6570"),  # RFC 8410, section 3
}
"""The AlgorithmIdentifier of each scheme, DER."""
SERIAL_DOMAIN: Final = b"hsm-endorser certificate serial v1\0"
SERIAL_BYTES: Final = 20
SEQUENCE: Final = 0x30
BIT_STRING: Final = 0x03
SHORT_FORM: Final = 0x80
"""Lengths below this one are written in one byte (X.690, section 8.1.3.4)."""


def tbs_certificate(builder: x509.CertificateBuilder, issuer: PublicKey) -> bytes:
    """The TBSCertificate (DER) that the issuer's key is to sign; raises `ValueError` where a part is missing."""
    return builder.sign(_stand_in(issuer), _algorithm(issuer)).tbs_certificate_bytes


def tbs_crl(builder: x509.CertificateRevocationListBuilder, issuer: PublicKey) -> bytes:
    """The TBSCertList (DER) that the issuer's key is to sign; raises `ValueError` where a part is missing."""
    return builder.sign(_stand_in(issuer), _algorithm(issuer)).tbs_certlist_bytes


def wrap(tbs: bytes, scheme: Scheme, signature: bytes) -> bytes:
    """The signed structure: TBS, algorithm, signature (a certificate or a CRL, RFC 5280); nothing is verified."""
    return element(SEQUENCE, tbs + ALGORITHMS[scheme] + element(BIT_STRING, b"\0" + signature))


def sealed(tbs: bytes, issuer: PublicKey, signature: bytes) -> bytes:
    """The signed structure, when the issuer's key signed exactly these bytes; raises `BadSignatureError`."""
    issuer.verify(signature, tbs, low_s=True)
    return wrap(tbs, issuer.scheme, signature)


def serial_number(issuer: KeyId | str, key: KeyId | str) -> int:
    """The serial number of the certificate of `key` by `issuer`: positive, at most 20 octets."""
    digest = hashlib.sha256(SERIAL_DOMAIN + bytes.fromhex(issuer) + bytes.fromhex(key)).digest()
    # The highest bit is clear, so that the number is positive; the next one is set, so that it is never zero.
    return int.from_bytes(bytes(((digest[0] & 0x3F) | 0x40,)) + digest[1:SERIAL_BYTES], "big")


def element(tag: int, content: bytes) -> bytes:
    """One DER element with a definite length."""
    size = len(content)
    if size < SHORT_FORM:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, SHORT_FORM | len(length))) + length + content


def _algorithm(issuer: PublicKey) -> hashes.SHA256 | None:
    return None if issuer.scheme == "ed25519" else hashes.SHA256()


def _stand_in(issuer: PublicKey) -> "_StandInEc | _StandInRsa | _StandInEd25519":
    return _STAND_INS[issuer.scheme](serialization.load_der_public_key(issuer.spki))


class _StandIn:
    """What a private key would do, and this one cannot: it has no private part, and signs nothing."""

    def __init__(self, public: Any) -> None:
        self._public = public

    def public_key(self) -> Any:
        return self._public

    def sign(self, *_: Any) -> bytes:
        return b"\0"

    @property
    def curve(self) -> Any:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return int(self._public.key_size)

    def _absent(self, *_: Any, **__: Any) -> Any:
        raise TypeError("the private key lives on a token")

    decrypt = exchange = private_numbers = private_bytes = private_bytes_raw = _absent

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _memo: Any) -> Any:
        return self


class _StandInEc(_StandIn, ec.EllipticCurvePrivateKey):
    pass


class _StandInRsa(_StandIn, rsa.RSAPrivateKey):
    pass


class _StandInEd25519(_StandIn, ed25519.Ed25519PrivateKey):
    pass


_STAND_INS: Final[dict[Scheme, type[_StandInEc | _StandInRsa | _StandInEd25519]]] = {
    "ecdsa-p256-sha256": _StandInEc,
    "rsa-pkcs1-sha256": _StandInRsa,
    "ed25519": _StandInEd25519,
}
