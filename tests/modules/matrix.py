"""What each module of the matrix is known to do: the expectations of the tests, in one place."""

from typing import Final

import msgspec
import pytest

from protocol.custody import Verdict
from protocol.keys import Scheme
from protocol.tier import Tier
from tests.modules.tokens import ED25519, P256, RSA, TOKENS

UNKNOWN_TO_OLDER: Final = (
    "private ALLOWED_MECHANISMS (reads AttributeTypeInvalid)",
    "private COPYABLE (reads AttributeTypeInvalid)",
    "private DESTROYABLE (reads AttributeTypeInvalid)",
    "public COPYABLE (reads AttributeTypeInvalid)",
    "public DESTROYABLE (reads AttributeTypeInvalid)",
)
"""Attributes that older modules do not know."""


class Known(msgspec.Struct, frozen=True):
    """One module."""

    model: str
    schemes: tuple[Scheme, ...]
    rsa_bits: int = 0
    """The size of its RSA keys, by its settings; 0 for none."""
    left_out: tuple[str, ...] = ()
    verdict: Verdict = "fail"
    tier: Tier = "claimed"


KNOWN: Final = {
    "SoftHSM2": Known("SoftHSM v2", (P256, RSA, ED25519), 3072, verdict="pass", tier="probed"),
    "NSS softokn": Known("NSS 3", (P256, RSA), 3072, UNKNOWN_TO_OLDER),
    "tpm2-pkcs11 on swtpm": Known(
        "SW   TPM", (P256,), left_out=("public ENCRYPT (reads True)", "public VERIFY (reads False)")
    ),
    "opencryptoki soft token": Known("IBM SoftTok", (RSA,), 2048, UNKNOWN_TO_OLDER),
    "p11-kit remote client": Known("SoftHSM v2", (P256, RSA), 3072, verdict="not-tested", tier="read-back"),
}


def only(*names: str) -> pytest.MarkDecorator:
    """Once for each of these modules."""
    return pytest.mark.parametrize("name", [pytest.param(name, id=name.split()[0]) for name in names])


EACH: Final = only(*TOKENS)
"""Once for each module."""
