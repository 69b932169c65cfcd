"""What to do when a check of the custody audit fails, in one or two sentences each. Shown beside every finding."""

from typing import Final

RENEW: Final = (
    "generate a new key on the token (hsm-endorser key rotate), let it take the place of this one, "
    "and revoke this one: a key that may have left cannot be called back"
)
TEMPLATE: Final = (
    "generate a new key by the strict template (hsm-endorser key rotate); this attribute cannot be repaired"
)
MODULE: Final = (
    "where the attributes of the key allow this, generate a new one by the strict template; where they forbid it, the "
    "module does not keep its word: ask the vendor, or use another"
)
LEAVES: Final = (
    "revoke the key: it can leave. Where its attributes allow that, generate a new one by the strict template; where "
    "they forbid it, replace every key on this module by one on another"
)
SWITCH_OFF: Final = "switch these mechanisms off in the token's configuration where the vendor allows it"

ADVICE: Final[dict[str, str]] = {
    "token.identity": "set a label and check the serial number: without them a swapped token is not noticed",
    "token.firmware": "ask the vendor how the firmware version is read; note it in the key ceremony's papers",
    "token.hardware": "use a hardware token where the keys must not be copied with the disk",
    "token.flags": "finish the initialisation of the token: set PINs, require the login, and look at its error state",
    "token.pin-state": "find out who entered wrong PINs, then let the security officer reset the PIN before it locks",
    "token.private-visible": "look at who made these objects; where the module shows private ones, use another",
    "token.security-officer": "keep the security officer's PIN with two people who are not operators of the device",
    "token.mechanisms-wrap": SWITCH_OFF,
    "token.mechanisms-unwrap": SWITCH_OFF,
    "token.mechanisms-derive": SWITCH_OFF,
    "token.mechanisms-decrypt": SWITCH_OFF,
    "token.mechanisms-weak": "switch them off (SoftHSM2: slots.mechanisms), or restrict each key's mechanisms",
    "token.wrapping-keys": "delete these keys from this token: signing keys need no such neighbours",
    "token.strange-objects": "find out who made the object, then delete it; hsm-endorser leaves no such ones",
    "token.leftovers": "run the audit again: it removes what an interrupted one left",
    "token.objects": "run the audit again, and look at what else uses the token meanwhile",
    "key.token": TEMPLATE,
    "key.private": TEMPLATE,
    "key.sensitive": RENEW,
    "key.extractable": RENEW,
    "key.always-sensitive": RENEW,
    "key.never-extractable": RENEW,
    "key.local": f"the key was imported, so a copy exists elsewhere: {RENEW}",
    "key.generated": f"the key was not generated as a signing key pair: {RENEW}",
    "key.sign": "the key cannot do its work: generate one that signs (hsm-endorser key rotate)",
    "key.sign-recover": TEMPLATE,
    "key.decrypt": TEMPLATE,
    "key.unwrap": TEMPLATE,
    "key.derive": TEMPLATE,
    "key.modifiable": TEMPLATE,
    "key.copyable": TEMPLATE,
    "key.destroyable": TEMPLATE,
    "key.allowed-mechanisms": TEMPLATE,
    "key.other-attributes": "look at the attribute: it says more of the key than anybody needs",
    "key.pair": "delete the second object, after the challenge has shown which public key is the right one",
    "key.public-object": "delete the public object and create it again, not modifiable and for verification alone",
    "key.challenge": "do not enrol or trust this public key: it is not that of the private key beside it",
    "key.acceptable": "generate a key that the network accepts: ECDSA P-256, RSA from 2048 bits, or Ed25519",
    "key.curve": "generate a key on P-256; an unnamed curve or a point off it can give the private key away",
    "key.rsa-size": "generate an RSA key of at least 2048 bits, better 3072, or an ECDSA key",
    "key.rsa-exponent": "generate an RSA key with the exponent 65537",
    "key.rsa-roca": f"the private key can be computed from the public one (CVE-2017-15361): {RENEW}",
    "key.rsa-shared-primes": f"both private keys can be computed from the two public ones: {RENEW}",
    "key.unique": f"the same key is in two places, so it has been copied: {RENEW}",
    "key.attestation": "where the vendor can sign a statement on the key, keep it; until then the tier ends at probed",
    "attack.probe": "give the audit room and rights on the token to make one key, or live with fewer tests",
    "attack.read": RENEW,
    "attack.flip": MODULE,
    "attack.copy": LEAVES,
    "attack.wrap": LEAVES,
    "attack.derive": MODULE,
    "attack.decrypt": MODULE,
    "attack.unwrap": MODULE,
    "attack.mechanism": "restrict the key's mechanisms (ALLOWED_MECHANISMS) where the module can",
    "attack.destroy": "generate keys with DESTROYABLE false where the module can, and guard who can log in",
    "attack.import": "LOCAL proves nothing on this module: rely on keys that were generated in a ceremony, and say so",
    "attack.look-alike": "never take a public key from the token unproven: a challenge proves it",
    "attack.sign-length": "the module signs anything: who logs in must check lengths, as the device does",
    "attack.sign-after-logout": "end the process to log out: this module goes on signing after C_Logout",
    "attack.nonces": f"a repeated nonce gives the private key away to anybody who sees two signatures: {RENEW}",
}
"""Check id → what to do."""
