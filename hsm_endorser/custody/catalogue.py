"""Every check of the custody audit by its stable id, in one line each; profiles and pages speak of checks by these ids.

`token.` checks are made once. `key.` checks are made on each private key and are called reading back. `attack.` checks
try to do harm: on a probe key of the same template (target `probe-1`, `probe-2`, …), and where nothing can change, on
the key itself. One check may give several rows: one for each attribute, mechanism or length that was tried.
"""

from typing import Final

CATALOGUE: Final[dict[str, str]] = {
    "token.identity": "manufacturer, model and serial number are there, so that the token can be told from another",
    "token.firmware": "hardware and firmware versions, and those of the PKCS#11 module, can be read",
    "token.hardware": "the token is a device known as hardware; what is unknown counts as software",
    "token.flags": "flags: login is needed, PIN set, not write-protected, random numbers, no error condition",
    "token.pin-state": "no PIN is locked, on its last try, to be changed, or was lately mistyped",
    "token.private-visible": "no private or secret object shows itself before login",
    "token.security-officer": "what the security officer may do to keys that he does not own",
    "token.mechanisms-wrap": "mechanisms that wrap keys, by name",
    "token.mechanisms-unwrap": "mechanisms that unwrap keys, by name",
    "token.mechanisms-derive": "mechanisms that derive keys, by name",
    "token.mechanisms-decrypt": "mechanisms that decrypt, by name",
    "token.mechanisms-weak": "no weak mechanism is offered (DES, RC2, RC4, MD5, SHA-1 signatures, ECB, raw RSA, …)",
    "token.wrapping-keys": "no object on the token can wrap, unwrap or decrypt keys beside those that are audited",
    "token.strange-objects": "no ghosts: each key object has its kind, id and label, each public key a private half",
    "token.leftovers": "nothing of an earlier audit that was interrupted is left",
    "token.objects": "there are as many objects after the audit as before it",
    "key.token": "TOKEN is true: the key is kept on the token",
    "key.private": "PRIVATE is true: the key shows itself only after login",
    "key.sensitive": "SENSITIVE is true: its value is not to be read",
    "key.extractable": "EXTRACTABLE is false: it is not to be wrapped",
    "key.always-sensitive": "ALWAYS_SENSITIVE is true: it never was otherwise",
    "key.never-extractable": "NEVER_EXTRACTABLE is true: it never was otherwise",
    "key.local": "LOCAL is true: it was generated on the token, not imported",
    "key.generated": "KEY_GEN_MECHANISM names the generation of a key pair of its kind",
    "key.sign": "SIGN is true",
    "key.sign-recover": "SIGN_RECOVER is false",
    "key.decrypt": "DECRYPT is false",
    "key.unwrap": "UNWRAP is false",
    "key.derive": "DERIVE is false",
    "key.modifiable": "MODIFIABLE is false: no attribute can be changed later",
    "key.copyable": "COPYABLE is false: no copy with other attributes can be made",
    "key.destroyable": "DESTROYABLE is false: it cannot be deleted by who uses it",
    "key.allowed-mechanisms": "ALLOWED_MECHANISMS holds one mechanism, the one by which it signs",
    "key.other-attributes": "every further attribute of the object, read back; none is a private value",
    "key.pair": "exactly one private and one public object have its id, and the same for its label",
    "key.public-object": "the public object cannot be changed, and cannot wrap or encrypt",
    "key.challenge": "the public key is proven: it verifies a fresh challenge that the private key signed",
    "key.acceptable": "the public key is of a kind that the network accepts, in its one form",
    "key.curve": "the curve is a named one, and the point is on it",
    "key.rsa-size": "an RSA modulus of at least 2048 bits",
    "key.rsa-exponent": "an odd RSA exponent of at least 65537",
    "key.rsa-roca": "the RSA modulus does not have the ROCA fingerprint (CVE-2017-15361)",
    "key.rsa-shared-primes": "the RSA modulus shares no prime with that of another key",
    "key.unique": "no other object on the token, and no other token, has the same public key",
    "key.attestation": "the vendor of the token signed that the key was made in it and cannot leave",
    "attack.probe": "a probe key of the same template can be made, for attacks that would harm the key itself",
    "attack.read": "read the private value",
    "attack.flip": "change an attribute",
    "attack.copy": "copy the key with a weaker attribute",
    "attack.wrap": "wrap the key by every mechanism offered, decrypt, and compare with the public key",
    "attack.derive": "derive a secret with the key",
    "attack.decrypt": "decrypt with the key",
    "attack.unwrap": "unwrap another key with the key",
    "attack.mechanism": "sign by another mechanism than the one that is allowed",
    "attack.destroy": "delete the key",
    "attack.import": "import a key that claims to have been generated on the token",
    "attack.look-alike": "plant a second public key with the id and label of the key",
    "attack.sign-length": "let the key sign what is no digest of its length",
    "attack.sign-after-logout": "sign after logout",
    "attack.nonces": "1,000 signatures of one digest have 1,000 different r (ECDSA)",
}
"""Check id → what holds when the check passes (`token.`, `key.`), or what is tried and must fail (`attack.`)."""

ATTACKS: Final = tuple(check for check in CATALOGUE if check.startswith("attack."))
READ_BACK: Final = tuple(check for check in CATALOGUE if check.startswith("key."))
TOKEN: Final = tuple(check for check in CATALOGUE if check.startswith("token."))
