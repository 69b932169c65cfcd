"""The tier that an audit gives a key (requirement K-5).

    claimed      some required check of the key failed, or something that is read back could not be read
    read-back    every required attribute is as it must be and the public key is proven; some attack was not tested
    probed       besides, every required attack was tried, and withstood
    attested     the vendor of the token signed for the key; no audit gives that by itself

Checks of the token as a whole are no part of it: they count for the verdict of the audit.
"""

from collections.abc import Sequence

from hsm_endorser.custody.profile import Profile
from protocol.custody import Row
from protocol.tier import Tier

PROOF = "key.challenge"


def tier(profile: Profile, rows: Sequence[Row]) -> Tier:
    """The tier of a key by the rows of it and of the probe key that stands for it."""
    required = [row for row in rows if profile.check(row.check).required]
    read_back = [row for row in required if row.check.startswith("key.")]
    attacks = [row for row in required if row.check.startswith("attack.")]
    proven = any(row.check == PROOF and row.verdict == "pass" for row in rows)
    if any(row.verdict == "fail" for row in required) or not proven:
        return "claimed"
    if not read_back or any(row.verdict != "pass" for row in read_back):
        return "claimed"
    if not attacks or any(row.verdict != "pass" for row in attacks):
        return "read-back"
    return "probed"
