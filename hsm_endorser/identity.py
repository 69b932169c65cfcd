"""What a device's identity key signs: challenges and statements (requirements E-20, K-9).

Each has a payload type of its own, so none can be taken for a vote or a header.
"""

from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical
from protocol.canonical import Name
from protocol.envelope import PREFIX, pae
from protocol.registry import Token

CHALLENGE_TYPE: Final = PREFIX + "challenge.v1+json"
STATEMENT_TYPE: Final = PREFIX + "identity.v1+json"

Nonce = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32,128}\Z")]
"""16 to 64 random bytes of whoever asks, hexadecimal."""


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A random number that a key answers by signing it."""

    nonce: Nonce
    version: Literal[1] = 1


class IdentityStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who answers here: the device, its network, its token, and the asker's nonce."""

    device: Name
    network: Name
    token: Token
    nonce: Nonce
    version: Literal[1] = 1


def challenge_message(nonce: str) -> bytes:
    """The bytes that a key signs to answer a challenge."""
    return pae(CHALLENGE_TYPE, canonical.encode(Challenge(nonce)))
