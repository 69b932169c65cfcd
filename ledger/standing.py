"""Whether a registered key counts: what is certain of it in one registry, and what height and block time decide."""

import msgspec

from protocol.keys import PublicKey
from protocol.registry import Lifetime


class Standing(msgspec.Struct, frozen=True, eq=False):
    """A key with its lifetime and that of the device it lives on; `refused` says why it never counts here."""

    holder: str
    """The registry entry that holds it: `node/A`, `client/alice`, …"""
    key: PublicKey
    lifetime: Lifetime
    revoked: str = ""
    """Why it is refused for ever: it, or the identity key of its device, was revoked."""
    weak: str = ""
    """Why it is refused for as long as there is no better custody statement."""
    device: str = ""
    device_lifetime: Lifetime | None = None

    def lapse(self, height: int, time: int) -> str:
        """Why the key does not count at this height and block time; empty when it does."""
        if self.revoked:
            return self.revoked
        lapse = self.lifetime.lapse(height, time)
        if lapse:
            return f"key {self.key.id[:16]}… of {self.holder} {lapse}"
        if self.device_lifetime is not None:
            lapse = self.device_lifetime.lapse(height, time)
            if lapse:
                return f"device {self.device}, where key {self.key.id[:16]}… of {self.holder} lives, {lapse}"
        return self.weak


class Expiry(msgspec.Struct, frozen=True):
    """When a key ends: with height `last`, or at block time `until` (milliseconds since the epoch)."""

    holder: str
    """The registry entry that holds it."""
    key_id: str
    device: str
    """On which device it lives; empty for keys that are on none."""
    last: int
    until: int
