"""A custody audit written by hand, for tests of what is done with one. Other tests audit real tokens."""

import msgspec

from hsm_endorser.custody import profile
from protocol import custody
from protocol.custody import AuditedKey, AuditedToken, Predicate, Row
from protocol.envelope import Envelope
from tests import software_keys
from tests.software_keys import SoftwareKey

GOOD, BAD = software_keys.ecdsa("audited good"), software_keys.ecdsa("audited bad")
IDENTITY = software_keys.ecdsa("audited identity")


def predicate(**changes: object) -> Predicate:
    """Two keys of which one came out by a wrap, a probe, and a token that is software."""
    good, bad = GOOD.public.id, BAD.public.id
    rows = (
        Row("token.identity", "token", "read CK_TOKEN_INFO", "SoftHSM project, SoftHSM v2, 5a1f", "pass"),
        Row("token.hardware", "token", "look the make up", "SoftHSM v2", "fail", "SoftHSM is a software token"),
        Row(
            "token.mechanisms-weak", "token", "list the mechanisms", "CKM_DES_CBC, CKM_MD5", "fail", "2 weak mechanisms"
        ),
        Row("key.extractable", good, "read CKA_EXTRACTABLE", "false", "pass"),
        Row("key.challenge", good, "sign a fresh challenge", "CKR_OK, verified", "pass"),
        Row("attack.read", good, "read CKA_VALUE", "CKR_ATTRIBUTE_SENSITIVE", "pass"),
        Row("attack.nonces", good, "sign one digest 1,000 times", "", "not-tested", "done on probe-1"),
        Row("attack.probe", good, "make a probe key of the same template", "probe-1, a session object", "pass"),
        Row("key.extractable", bad, "read CKA_EXTRACTABLE", "true", "fail", "false is expected"),
        Row(
            "attack.wrap",
            bad,
            "wrap by CKM_AES_CBC_PAD, decrypt, compare with the public key",
            "CKR_OK, 128 bytes: the private key of the public key",
            "fail",
            "the private key left the token",
        ),
        Row("attack.copy", "probe-1", "copy with CKA_EXTRACTABLE true", "CKR_ACTION_PROHIBITED", "pass"),
        Row("attack.nonces", "probe-1", "sign one digest 1,000 times", "1,000 different r", "pass"),
    )
    made = Predicate(
        device="device-a",
        network="test",
        time=1_790_000_000_000,
        tool="hsm-endorser 0.1.0",
        profile=profile.load("strict").reference,
        token=AuditedToken("device-a", "SoftHSM project", "SoftHSM v2", "5a1f", "2.6", software=True),
        keys=(
            AuditedKey(good, "node/A", "0a", "probed", "pass"),
            AuditedKey(bad, "node/B <b>&", "0b", "claimed", "fail"),
        ),
        rows=rows,
        verdict="fail",
        read_only=False,
    )
    return msgspec.structs.replace(made, **changes)


def envelope(made: Predicate | None = None, *, by: SoftwareKey = IDENTITY) -> Envelope:
    """The audit as a statement, signed."""
    payload = custody.encode(made or predicate())
    return Envelope(payload, custody.PAYLOAD_TYPE, (by.signature(custody.PAYLOAD_TYPE, payload),))
