"""What the device's process and its token worker say to each other: MessagePack in frames with a length before them.

Every request has a number, and its reply carries the same: a reply that was waited for too long is never taken
for the next one's.
"""

import struct
from typing import Final, Literal

import msgspec

Scheme = Literal["ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519"]

MAX_FRAME: Final = 32 << 20
FRAME_LENGTH: Final = struct.Struct(">I")
DIGEST_BYTES: Final = 32


class Pin(msgspec.Struct, frozen=True):
    """A PIN on its way to the worker; it never shows itself."""

    value: str

    def __repr__(self) -> str:
        return "Pin(…)"


class Open(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Load the module, find the token, log in once. What is None matches any token."""

    module: str
    pin_file: str | None
    """Where the PIN stands; None when `pin` carries it."""
    pin: Pin | None = None
    token: str | None
    manufacturer: str | None
    model: str | None
    serial: str | None
    slot_id: int | None
    lock_seconds: float
    """How long to wait for other workers that start with the same module."""


class ListKeys(msgspec.Struct, frozen=True, tag=True):
    """List all private keys that can sign."""


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Generate a key pair by the strict template (requirement K-1)."""

    label: str
    scheme: Scheme
    id: bytes


class Sign(msgspec.Struct, frozen=True, tag=True):
    """Sign each input with the key of that CKA_ID: 32-byte digests, or whole messages for Ed25519."""

    id: bytes
    inputs: list[bytes]


class SetPin(msgspec.Struct, frozen=True, tag=True):
    """Change the user PIN (C_SetPIN). Each is given as itself, or as the file that it stands in."""

    old: Pin | None
    old_file: str | None
    new: Pin


Request = Open | ListKeys | Generate | Sign | SetPin


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The token that was found and logged in to."""

    manufacturer: str
    model: str
    serial: str
    label: str
    flags: int


class FoundKey(msgspec.Struct, frozen=True):
    """A private key and what its public object says: an EC or Edwards point, or an RSA modulus and exponent."""

    id: bytes
    label: str
    scheme: Scheme
    point: bytes = b""
    modulus: bytes = b""
    exponent: bytes = b""


class Keys(msgspec.Struct, frozen=True, tag=True):
    """The usable keys, and in words those that are not."""

    keys: list[FoundKey]
    problems: list[str]


class Generated(msgspec.Struct, frozen=True, tag=True):
    """The key that was generated."""

    key: FoundKey


class Signatures(msgspec.Struct, frozen=True, tag=True):
    """Signatures in the order of the inputs, as the token made them: r‖s for ECDSA."""

    signatures: list[bytes]


class PinSet(msgspec.Struct, frozen=True, tag=True):
    """The token has the new PIN."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """What went wrong: the PKCS#11 return code (or a word of the worker's own), and text without secrets."""

    ckr: str
    text: str


Reply = Opened | Keys | Generated | Signatures | PinSet | Failed


class NumberedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request and its number."""

    number: int
    request: Request


class NumberedReply(msgspec.Struct, frozen=True, array_like=True):
    """A reply and the number of its request."""

    number: int
    reply: Reply


def frame(message: NumberedRequest | NumberedReply) -> bytes:
    """The bytes of one frame."""
    body = msgspec.msgpack.encode(message)
    return FRAME_LENGTH.pack(len(body)) + body
