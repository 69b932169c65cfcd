"""As much DER (X.690) as the typed doors need: walk over a TBS structure (`protocol.x509_tbs` makes them)."""

from typing import Final

from hsm_endorser.errors import RefusedError
from protocol.x509_tbs import ALGORITHMS, SEQUENCE, wrap

__all__ = ["ALGORITHMS", "inner_algorithm", "wrap"]

INTEGER: Final = 0x02
VERSION_TAG: Final = 0xA0


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
