"""What a compliance run makes on a token: key pairs whose label and id tell the next run that they are left over.

Pairs are token objects, as a device's are, by as much of the device's template as the module takes, and destroyable.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from hsm_endorser import key_template
from hsm_endorser.custody.audited import SIGNS_BY
from hsm_endorser.custody.challenge import to_sign
from hsm_endorser.custody.cryptoki import Attribute, KeyType, Mechanisms, ObjectClass, boolean, code, number
from hsm_endorser.custody.inventory import AnyPublicKey, Item, find, items
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_key import GENERATE_SECONDS, GENERATION, NOTHING, Kind
from hsm_endorser.custody.probe_messages import Destroy, Done, GeneratePair, Mechanism, Numbers, Template
from hsm_endorser.key_template import Part
from hsm_endorser.worker_messages import Failed

A = Attribute
LABEL_PREFIX: Final = "hsm-endorser compliance "
ID_PREFIX: Final = b"hsm-endorser-compliance:"
ID_CHANCE_BYTES: Final = 8
LADDER_SECONDS: Final = 10.0
"""How long templates may be tried for one algorithm."""
BOOLEANS: Final = (
    (A.PRIVATE, True),
    (A.SENSITIVE, True),
    (A.SIGN, True),
    (A.EXTRACTABLE, False),
    (A.MODIFIABLE, False),
    (A.COPYABLE, False),
    (A.DESTROYABLE, True),
    (A.DECRYPT, False),
    (A.UNWRAP, False),
    (A.DERIVE, False),
)
"""The device's template (requirement K-1), but that the run can remove the key again."""


class Algorithm(msgspec.Struct, frozen=True):
    """An algorithm that the network accepts: its name, how a key of it is made, and by what it signs besides."""

    name: str
    key_type: KeyType
    parameters: tuple[bytes, ...]
    """EC_PARAMS in the spellings that modules know."""
    bits: int = 0
    variants: Mapping[str, Mechanism] = {}

    @property
    def generated_by(self) -> Mechanism:
        """The mechanism that makes its keys."""
        return GENERATION[self.key_type]

    @property
    def signs_by(self) -> Mechanism:
        """The mechanism by which a device signs with it."""
        return SIGNS_BY[self.key_type]


SHA256: Final = 0x250
MGF1_SHA256: Final = 2
PSS: Final = number(SHA256) + number(MGF1_SHA256) + number(32)
"""CK_RSA_PKCS_PSS_PARAMS."""
ALGORITHMS: Final = (
    Algorithm(
        "ecdsa-p256", KeyType.EC, (bytes.fromhex("06082a8648ce3d030107"),),
        variants={"ECDSA_SHA256": Mechanism(Mechanisms.ECDSA_SHA256)},
    ),
    Algorithm(
        "rsa-2048", KeyType.RSA, (b"",), 2048,
        variants={
            "SHA256_RSA_PKCS": Mechanism(Mechanisms.SHA256_RSA_PKCS),
            "RSA_PKCS_PSS": Mechanism(0x0D, PSS),
            "SHA256_RSA_PKCS_PSS": Mechanism(0x43, PSS),
        },
    ),
    Algorithm("ed25519", KeyType.EC_EDWARDS, (b"\x13\x0cedwards25519", bytes.fromhex("06032b6570"))),
)  # fmt: skip


class Key(msgspec.Struct, frozen=True):
    """A pair of the run's: found by its id in any process."""

    algorithm: Algorithm
    label: bytes
    id: bytes
    public: AnyPublicKey

    def input(self, message: bytes) -> bytes:
        """What the token is given for a message."""
        return to_sign(self.public, message)


class Recipe(msgspec.Struct, frozen=True):
    """The template that a module took for an algorithm."""

    parameters: bytes
    without: frozenset[Part]

    @property
    def left_out(self) -> list[str]:
        """What the module does not take, of the private half."""
        return sorted(name for half, name in self.without if half == "private")


class Maker:
    """Makes key pairs, and remembers which template the module takes."""

    def __init__(self) -> None:
        self.recipes: dict[str, Recipe] = {}

    async def pair(
        self,
        probe: Probe,
        algorithm: Algorithm,
        *,
        label: bytes | None = None,
        id_: bytes | None = None,
        restricted: bool = True,
    ) -> Numbers | Failed:
        """A pair on the token: the public number first. `restricted` allows it the device's mechanism alone."""
        named: Template = {
            int(A.TOKEN): boolean(True),
            int(A.LABEL): fresh_label() if label is None else label,
            int(A.ID): id_ or fresh_id(),
        }
        known = self.recipes.get(algorithm.name)
        if known:
            return await _generate(probe, algorithm, known, named, restricted=restricted)
        deadline = time.monotonic() + LADDER_SECONDS
        refused = Failed("FunctionNotSupported", "")
        for without in key_template.steps():
            for parameters in algorithm.parameters:
                recipe = Recipe(parameters, without)
                made = await _generate(probe, algorithm, recipe, named, restricted=restricted)
                if isinstance(made, Numbers):
                    self.recipes[algorithm.name] = recipe
                    return made
                refused = made
            of_the_template = refused.ckr in key_template.REFUSALS | key_template.VAGUE_REFUSALS
            if not of_the_template or time.monotonic() > deadline:
                break
        return refused


async def _generate(
    probe: Probe, algorithm: Algorithm, recipe: Recipe, named: Template, *, restricted: bool
) -> Numbers | Failed:
    allowed = number(algorithm.signs_by.number) if restricted else None
    booleans = tuple((int(each), value) for each, value in BOOLEANS)
    kind = Kind(algorithm.key_type, recipe.parameters, algorithm.bits, booleans, allowed)
    without = recipe.without or NOTHING
    request = GeneratePair(
        algorithm.generated_by, {**kind.public(without), **named}, {**kind.private(without), **named}
    )
    return expect(await probe.call(request, GENERATE_SECONDS), Numbers)


def fresh_id() -> bytes:
    """An id that no other object has."""
    return ID_PREFIX + secrets.token_bytes(ID_CHANCE_BYTES)


def fresh_label(odd: str = "") -> bytes:
    """A label of the run's."""
    return (LABEL_PREFIX + (odd or secrets.token_hex(8))).encode()


def is_leftover(item: Item) -> bool:
    """Whether a compliance run made this object: its id says so, and its label, unless it was made without one."""
    label = item.read(A.LABEL) or b""
    return len(item.id) == len(ID_PREFIX) + ID_CHANCE_BYTES and (
        item.id.startswith(ID_PREFIX) and (not label or label.startswith(LABEL_PREFIX.encode()))
    )


async def leftovers(probe: Probe) -> list[Item]:
    """Objects of a compliance run."""
    found = await items(probe, await find(probe), (A.CLASS, A.LABEL, A.ID))
    return [item for item in found if is_leftover(item)]


async def destroy(probe: Probe, found: list[Item]) -> list[str]:
    """Remove objects of a compliance run; what could not be removed, and why."""
    stuck = []
    for item in found:
        reply = expect(await probe.call(Destroy(item.number)), Done)
        if isinstance(reply, Failed):
            stuck.append(f"{item.name}: {code(reply)}")
    return stuck


def half(kind: ObjectClass, id_: bytes) -> Template:
    """What finds one half of a pair."""
    return {int(A.CLASS): number(kind), int(A.ID): id_}
