"""Canonical JSON (RFC 8785, restricted to the values on which all encoders agree).

Object keys are ASCII, integers lie within ±(2^53-1), there are no floats. For that set msgspec's sorted
encoding equals RFC 8785. Decoding refuses whatever does not encode back to the same bytes, so duplicate
keys, white space, escapes that need not be, padding games in base64 and big numbers all fail alike.
"""

from typing import Annotated, Any, Final, NewType, TypeVar

import msgspec

from protocol.errors import LimitExceededError, MalformedError

MAX_BYTES: Final = 1 << 20
"""Largest single message (a transaction, a vote, a head), in bytes."""
MAX_DEPTH: Final = 16
"""Deepest nesting of a free-form value, in levels."""
MAX_INTEGER: Final = (1 << 53) - 1
MAX_REASON: Final = 300
"""Most characters of a refused message that its refusal repeats."""

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
"""What people call a network, node, device, client or contract: ASCII, 1 to 64 characters."""
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A SHA-256 digest, lower-case hexadecimal."""
Height = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
"""A block number; the genesis block is 0."""
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
"""Milliseconds since the Unix epoch, or a duration in milliseconds where a name says so."""

TxId = NewType("TxId", str)
"""SHA-256 over the pre-authentication encoding of a transaction, hexadecimal."""
KeyId = NewType("KeyId", str)
"""SHA-256 over a key's SubjectPublicKeyInfo, hexadecimal."""

T = TypeVar("T")

_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: object) -> bytes:
    """The one canonical encoding of a wire value."""
    return _encoder.encode(value)


def decode(data: bytes, decoder: "msgspec.json.Decoder[T]", *, limit: int = MAX_BYTES) -> T:
    """The value that `data` is the canonical encoding of.

    Raises `LimitExceededError` beyond `limit` bytes or when nested too deeply, `MalformedError` for all else.
    Free-form members of the value are not walked here: see `check_free_form`.
    """
    if len(data) > limit:
        raise LimitExceededError(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        value = decoder.decode(data)
        again = _encoder.encode(value)
    except RecursionError:
        raise LimitExceededError("nested deeper than the decoder allows") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        # The reason can quote the message, which may be all of a megabyte.
        raise MalformedError(f"not what was expected: {str(error)[:MAX_REASON]}") from None
    if again != data:
        raise MalformedError(f"not canonical JSON (RFC 8785): {_first_difference(data, again)}")
    return value


def check_free_form(value: Any, *, depth: int = MAX_DEPTH) -> None:
    """Refuse what canonical JSON leaves no room for in a free-form value.

    Raises `MalformedError` for floats, integers beyond ±(2^53-1) and keys that are not ASCII,
    `LimitExceededError` beyond `depth` levels.
    """
    if value is None or isinstance(value, str | bool):
        return
    if depth == 0:
        raise LimitExceededError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise MalformedError(f"integer {value} is beyond ±(2^53-1)")
    elif isinstance(value, dict):
        for key, member in value.items():
            if not key.isascii():
                raise MalformedError(f"object key {key[:MAX_REASON]!r} is not ASCII")
            check_free_form(member, depth=depth - 1)
    elif isinstance(value, list):
        for member in value:
            check_free_form(member, depth=depth - 1)
    else:
        raise MalformedError(f"{type(value).__name__} {value!r} has no place in canonical JSON")


def _first_difference(data: bytes, canonical: bytes) -> str:
    # Halving, because a loop over the bytes of a block takes seconds.
    at, end = 0, min(len(data), len(canonical))
    while at < end:
        middle = (at + end + 1) // 2
        if data[at:middle] == canonical[at:middle]:
            at = middle
        else:
            end = middle - 1
    return f"at byte {at} expected {canonical[at : at + 20]!r}, got {data[at : at + 20]!r}"
