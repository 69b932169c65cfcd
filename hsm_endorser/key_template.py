"""Which attributes of a new key a token may do without, and in which order they are given up (requirement K-1).

The whole template is asked for first. Few modules take all of it, and none says which attribute it does not take:
COPYABLE and DESTROYABLE are unknown before PKCS#11 v2.40, ALLOWED_MECHANISMS to many, and a TPM decides itself what
a public key may do. So the template is asked for again without one group, and another, and both, until the token
generates the key; what protects least is given up first. What is never given up stands in `KEPT`: a token that
refuses that gets no key.

No key is made to find out: every request but the last was refused. On some modules a destroyed key's handle goes on to
mean something.
"""

import itertools
from collections.abc import Iterator
from typing import Final, Literal

from hsm_endorser.failures import UNKNOWN

Half = Literal["public", "private"]
Part = tuple[Half, str]
"""An attribute in the template of one half: `("private", "COPYABLE")`."""

KEPT: Final = frozenset({"TOKEN", "PRIVATE", "SENSITIVE", "EXTRACTABLE", "SIGN"})
"""Never left out: without these a key is not in custody."""
GROUPS: Final[tuple[frozenset[Part], ...]] = (
    # That a public half may verify or encrypt protects nothing.
    frozenset({("public", "VERIFY"), ("public", "ENCRYPT")}),
    # The device asks for one mechanism anyway, and checks what it gets.
    frozenset({("private", "ALLOWED_MECHANISMS")}),
    # A destroyed key is missed at once.
    frozenset({("public", "DESTROYABLE"), ("private", "DESTROYABLE")}),
    # A copy stays on the token, and as unextractable as the key, unless the module is broken: the audit tries it.
    frozenset({("public", "COPYABLE"), ("private", "COPYABLE")}),
    frozenset({("public", "WRAP")}),
    # From here on a key could be given other uses later.
    frozenset({("public", "MODIFIABLE"), ("private", "MODIFIABLE")}),
    frozenset({("private", "DERIVE")}),
    frozenset({("private", "UNWRAP")}),
    frozenset({("private", "DECRYPT")}),
)
"""What is given up together, the least loss first."""

REFUSALS: Final = frozenset(
    {
        "AttributeReadOnly",
        "AttributeTypeInvalid",
        "AttributeValueInvalid",
        "KeyTypeInconsistent",
        "TemplateIncomplete",
        "TemplateInconsistent",
    }
)
"""Return codes that mean the template."""
VAGUE_REFUSALS: Final = frozenset({"GeneralError", "FunctionFailed", "ArgumentsBad", UNKNOWN})
"""Return codes that may mean the template (NSS and TPMs say GeneralError, others a code of their own): the same is
asked a second time first."""


def steps() -> Iterator[frozenset[Part]]:
    """What to leave out, from nothing to everything that may be.

    A step gives up a group only when all steps without it, and without the groups after it, were refused.
    """
    for chosen in itertools.product((False, True), repeat=len(GROUPS)):
        given_up = (group for group, out in zip(reversed(GROUPS), chosen, strict=True) if out)
        yield frozenset(itertools.chain.from_iterable(given_up))
