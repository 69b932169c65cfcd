"""What the device's process and its token worker say to each other: MessagePack in frames with a length before them.

Every request has a number, and its reply carries the same: a reply that was waited for too long is never taken
for the next one's.
"""

import struct
from typing import Final, Literal

import msgspec

from hsm_endorser.key_template import Half

Scheme = Literal["ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519"]

MAX_FRAME: Final = 32 << 20
FRAME_LENGTH: Final = struct.Struct(">I")
DIGEST_BYTES: Final = 32
RSA_BITS: Final = 3072
"""The size of a new RSA key, unless the token's settings say otherwise."""


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
    """Generate a key pair by the strictest template that the token takes (requirement K-1, `key_template`)."""

    label: str
    scheme: Scheme
    id: bytes
    rsa_bits: int = RSA_BITS


class Sign(msgspec.Struct, frozen=True, tag=True):
    """Sign each input with the key of that CKA_ID: 32-byte digests, or whole messages for Ed25519."""

    id: bytes
    inputs: list[bytes]


class SetPin(msgspec.Struct, frozen=True, tag=True):
    """Change the user PIN (C_SetPIN). Each is given as itself, or as the file that it stands in."""

    old: Pin | None
    old_file: str | None
    new: Pin


class Look(msgspec.Struct, frozen=True, tag=True):
    """Load the module and find the token as `Open` would, without a login: no PIN is tried."""

    wanted: Open


class Count(msgspec.Struct, frozen=True, tag=True):
    """Count what is on the token, as the session sees it. Changes nothing."""


Request = Open | ListKeys | Generate | Sign | SetPin | Look | Count


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


class LeftOut(msgspec.Struct, frozen=True):
    """A part of a new key's template that the token did not take, or took and ignored; what it reads there now."""

    half: Half
    attribute: str
    reads: str
    """The value, or the return code of reading it."""

    def __str__(self) -> str:
        return f"{self.half} {self.attribute} (reads {self.reads})"


class Generated(msgspec.Struct, frozen=True, tag=True):
    """The key that was generated, and what of the strict template the token did not take."""

    key: FoundKey
    left_out: list[LeftOut] = []


class Signatures(msgspec.Struct, frozen=True, tag=True):
    """Signatures in the order of the inputs, as the token made them: r‖s for ECDSA."""

    signatures: list[bytes]


class PinSet(msgspec.Struct, frozen=True, tag=True):
    """The token has the new PIN."""


class Seen(msgspec.Struct, frozen=True, tag=True):
    """The token that was found: what it says of itself, its flags (CK_TOKEN_INFO), its mechanisms by name."""

    manufacturer: str
    model: str
    serial: str
    label: str
    flags: int
    mechanisms: list[str]


class Counted(msgspec.Struct, frozen=True, tag=True):
    """How many objects the token holds, and the labels of its private keys, each as often as it occurs."""

    objects: int
    labels: list[str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """What went wrong: the PKCS#11 return code (or a word of the worker's own), and text without secrets."""

    ckr: str
    text: str


Reply = Opened | Keys | Generated | Signatures | PinSet | Seen | Counted | Failed


class NumberedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request and its number."""

    number: int
    request: Request


class NumberedReply(msgspec.Struct, frozen=True, array_like=True):
    """A reply and the number of its request."""

    number: int
    reply: Reply


def frame(message: msgspec.Struct) -> bytes:
    """The bytes of one frame."""
    body = msgspec.msgpack.encode(message)
    return FRAME_LENGTH.pack(len(body)) + body
