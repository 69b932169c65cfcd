"""How much is known of where a private key is: the tiers of assurance (requirement K-5)."""

from typing import Final, Literal

Tier = Literal["claimed", "read-back", "probed", "attested"]
"""Somebody says so; the token's attributes do; attacks on a key of the same template failed; the vendor signed it."""

ORDER: Final[tuple[Tier, ...]] = ("claimed", "read-back", "probed", "attested")


def reaches(tier: Tier, least: Tier) -> bool:
    """Whether a key of this tier may be used where `least` is demanded."""
    return ORDER.index(tier) >= ORDER.index(least)
