"""As much DER (X.690) as the typed doors need: walk over a sequence, put a signature under a TBS structure."""

from typing import Final

from hsm_endorser.errors import RefusedError
from protocol.keys import Scheme

SEQUENCE: Final = 0x30
BIT_STRING: Final = 0x03
INTEGER: Final = 0x02
VERSION_TAG: Final = 0xA0
ALGORITHMS: Final[dict[Scheme, bytes]] = {
    "ecdsa-p256-sha256": bytes.fromhex("300a06082a8648ce3d040302"),  # RFC 5758, section 3.2
    "rsa-pkcs1-sha256": bytes.fromhex("300d06092a864886f70d01010b0500"),  # RFC 4055, section 5
    "ed25519": bytes.fromhex("300506032b6570"),  # RFC 8410, section 3
}
"""The AlgorithmIdentifier of each scheme, DER."""


def wrap(tbs: bytes, scheme: Scheme, signature: bytes) -> bytes:
    """The signed structure: TBS, algorithm, signature (a certificate or a CRL, RFC 5280)."""
    return _element(SEQUENCE, tbs + ALGORITHMS[scheme] + _element(BIT_STRING, b"\0" + signature))


def inner_algorithm(tbs: bytes) -> bytes:
    """The AlgorithmIdentifier inside a TBSCertificate or TBSCertList; raises `RefusedError`."""
    tag, content, rest = _read(tbs)
    if tag != SEQUENCE or rest:
        raise RefusedError("malformed", "the bytes are not one DER sequence")
    while content:
        before = content
        tag, _value, content = _read(content)
        if tag == SEQUENCE:  # only a version and a serial number may stand before it
            return before[: len(before) - len(content)]
        if tag not in {INTEGER, VERSION_TAG}:
            break
    raise RefusedError("malformed", "the DER sequence names no signature algorithm")


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:  # noqa: PLR2004  the short form of X.690, section 8.1.3.4
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _read(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element's tag and content, and what follows it."""
    try:
        tag, first, start = data[0], data[1], 2
        size = first
        if first & 0x80:
            start = 2 + (first & 0x7F)
            size = int.from_bytes(data[2:start], "big")
    except IndexError:
        raise RefusedError("malformed", "the DER ends inside an element") from None
    if start + size > len(data) or first == 0x80:  # noqa: PLR2004  an indefinite length is BER
        raise RefusedError("malformed", "the DER ends inside an element")
    return tag, data[start : start + size], data[start + size :]
