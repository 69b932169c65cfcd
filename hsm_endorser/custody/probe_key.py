"""Probe keys: keys of the same template as those of the network, made for the audit to attack, and gone with it.

They are session objects, which vanish with their session, whatever happens to the audit. Where a module makes keys on
the token alone, a probe key is a token object that can be destroyed; its label and id tell the next audit that it is
a leftover.
"""

import itertools
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from hsm_endorser import key_template
from hsm_endorser.custody.audited import SIGNS_BY, Audited
from hsm_endorser.custody.cryptoki import Attribute, KeyType, Mechanisms, boolean, code, number
from hsm_endorser.custody.inventory import AnyPublicKey, BadPublicKeyError, Item, find, items, public_key
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_messages import Destroy, Done, GeneratePair, Mechanism, Numbers, Template
from hsm_endorser.key_template import Half, Part
from hsm_endorser.worker_messages import Failed

A = Attribute
LABEL_PREFIX: Final = "hsm-endorser audit "
ID_PREFIX: Final = b"hsm-endorser-audit:"
TEMPLATE: Final = (
    A.PRIVATE,
    A.SENSITIVE,
    A.SIGN,
    A.EXTRACTABLE,
    A.MODIFIABLE,
    A.COPYABLE,
    A.DESTROYABLE,
    A.DECRYPT,
    A.UNWRAP,
    A.DERIVE,
)
"""What a key is made with, and can be told to have been made with by reading it."""
LOOSE: Final = tuple((int(each), True) for each in TEMPLATE)
"""The template of a control key."""
PLAIN: Final = tuple((int(each), True) for each in (A.PRIVATE, A.SENSITIVE, A.SIGN, A.EXTRACTABLE))
"""The same where a module refuses that many uses."""
NOTHING: Final[frozenset[Part]] = frozenset()
PUBLIC_USES: Final[frozenset[Part]] = frozenset({("public", "VERIFY"), ("public", "ENCRYPT"), ("public", "WRAP")})
GENERATE_SECONDS: Final = 60.0
LADDER_SECONDS: Final = 20.0
"""How long templates may be tried."""
GENERATION: Final[Mapping[int, Mechanism]] = {
    KeyType.EC: Mechanism(Mechanisms.EC_KEY_PAIR_GEN),
    KeyType.RSA: Mechanism(Mechanisms.RSA_PKCS_KEY_PAIR_GEN),
    KeyType.EC_EDWARDS: Mechanism(Mechanisms.EC_EDWARDS_KEY_PAIR_GEN),
}
RSA_EXPONENT: Final = (65537).to_bytes(3, "big")


class Kind(msgspec.Struct, frozen=True):
    """What is generated: the kind of key, its curve parameters or modulus length, its template."""

    key_type: int
    parameters: bytes
    bits: int
    booleans: tuple[tuple[int, bool], ...]
    allowed: bytes | None

    def private(self, without: frozenset[Part] = NOTHING) -> Template:
        """The private template, less what is left out of it."""
        template = {each: boolean(value) for each, value in self.booleans}
        if self.allowed:
            template[A.ALLOWED_MECHANISMS] = self.allowed
        return _less(template, "private", without)

    def public(self, without: frozenset[Part] = NOTHING) -> Template:
        """The public template, less what is left out of it."""
        template: Template = {
            A.PRIVATE: boolean(False),
            A.VERIFY: boolean(True),
            A.ENCRYPT: boolean(False),
            A.WRAP: boolean(False),
        }
        if self.key_type == KeyType.RSA:
            template |= {A.MODULUS_BITS: number(self.bits), A.PUBLIC_EXPONENT: RSA_EXPONENT}
        else:
            template |= {A.EC_PARAMS: self.parameters}
        return _less(template, "public", without)


class ProbeKey(msgspec.Struct):
    """A probe key on the token."""

    target: str
    kind: Kind
    private: Item
    public: Item
    public_key: AnyPublicKey
    on_token: bool
    differs: str
    """What is other than in the keys that it stands for; empty when nothing is."""

    @property
    def signs_by(self) -> Mechanism:
        """The mechanism by which its like sign for the network."""
        return SIGNS_BY[self.kind.key_type]


def kind_of(key: Audited) -> Kind | None:
    """The kind of an audited key; None when no probe key of it can be made."""
    item, public = key.item, key.public_item or next(iter(key.publics), None)
    if item.key_type not in GENERATION:
        return None
    source = item if item.read(A.EC_PARAMS) or item.read(A.MODULUS) or public is None else public
    modulus = source.read(A.MODULUS)
    parameters = source.read(A.EC_PARAMS) or b""
    if not modulus and not parameters:
        return None
    booleans = tuple((int(each), value) for each in TEMPLATE if (value := item.flag(each)) is not None)
    bits = int.from_bytes(modulus, "big").bit_length() if modulus else 0
    return Kind(item.key_type or 0, parameters, bits, booleans, item.read(A.ALLOWED_MECHANISMS) or None)


async def make(probe: Probe, target: str, kind: Kind, *, on_token: bool = False) -> ProbeKey | str:
    """A probe key by as much of the template as the module takes, or the return codes for which there is none."""
    refusals: dict[str, None] = {}
    for store in (True,) if on_token else (False, True):
        deadline = time.monotonic() + LADDER_SECONDS
        for without in key_template.steps():
            made = await generate(probe, kind, store=store, without=without)
            if isinstance(made, Numbers):
                return await _described(probe, target, kind, made, on_token=store)
            refusals[code(made)] = None
            of_the_template = made.ckr in key_template.REFUSALS | key_template.VAGUE_REFUSALS
            if not of_the_template or time.monotonic() > deadline:
                break
    return ", ".join(refusals)


async def _described(probe: Probe, target: str, kind: Kind, made: Numbers, *, on_token: bool) -> ProbeKey | str:
    public, private = await items(probe, made.numbers)
    try:
        key = public_key(public)
    except BadPublicKeyError as error:
        return f"the public half of a new key is none: {error}"
    return ProbeKey(target, kind, private, public, key, on_token, _difference(kind, private, on_token=on_token))


class Control(msgspec.Struct, frozen=True):
    """A key to which everything is allowed, by the numbers of its halves."""

    public: int
    private: int


class Controls:
    """For each kind a key to which everything is allowed: what fails with it, too, says nothing of a probe key."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._made: dict[Kind, Control | None] = {}

    async def of(self, kind: Kind) -> Control | None:
        """The control key of a kind; None where the module makes none."""
        loose = msgspec.structs.replace(kind, booleans=LOOSE, allowed=None)
        plain = msgspec.structs.replace(kind, booleans=PLAIN, allowed=None)
        if loose not in self._made:
            self._made[loose] = None
            for like, without in itertools.product((loose, plain), (NOTHING, PUBLIC_USES)):
                made = await generate(self._probe, like, without=without)
                if isinstance(made, Numbers):
                    self._made[loose] = Control(*made.numbers)
                    break
        return self._made[loose]

    def forget(self, kind: Kind) -> None:
        """The control key of this kind is gone."""
        self._made.pop(msgspec.structs.replace(kind, booleans=LOOSE, allowed=None), None)


async def generate(
    probe: Probe, kind: Kind, *, store: bool = False, without: frozenset[Part] = NOTHING
) -> Numbers | Failed:
    """A key pair that the next audit would know for a leftover: the public number first."""
    named = names() | {int(A.TOKEN): boolean(store)}
    private = kind.private(without)
    if store and A.DESTROYABLE in private:
        private[A.DESTROYABLE] = boolean(True)
    request = GeneratePair(GENERATION[kind.key_type], {**kind.public(without), **named}, {**private, **named})
    return expect(await probe.call(request, GENERATE_SECONDS), Numbers)


def names() -> Template:
    """Label and id of whatever an audit makes."""
    chance = secrets.token_hex(8)
    return {int(A.LABEL): (LABEL_PREFIX + chance).encode(), int(A.ID): ID_PREFIX + chance.encode()}


def is_leftover(item: Item) -> bool:
    """Whether an audit made this object. Both its label and its id say so, lest another's key be taken for one."""
    label = item.read(A.LABEL) or b""
    return label.startswith(LABEL_PREFIX.encode()) and item.id.startswith(ID_PREFIX)


async def leftovers(probe: Probe) -> list[Item]:
    """Objects that an audit made."""
    found = await items(probe, await find(probe), (A.CLASS, A.LABEL, A.ID, A.TOKEN))
    return [item for item in found if is_leftover(item)]


async def destroy(probe: Probe, found: Iterable[Item]) -> list[str]:
    """Remove objects that an audit made; what could not be removed, and why."""
    stuck = []
    for item in found:
        reply = expect(await probe.call(Destroy(item.number)), Done)
        if isinstance(reply, Failed):
            stuck.append(f"{item.name}: {code(reply)}")
    return stuck


def _less(template: Template, half: Half, without: frozenset[Part]) -> Template:
    return {each: value for each, value in template.items() if (half, Attribute(each).name) not in without}


def _difference(kind: Kind, private: Item, *, on_token: bool) -> str:
    skipped = {A.DESTROYABLE} if on_token else set()
    wrong = [
        f"{A(each).name} is {private.flag(A(each))} where the key has {value}"
        for each, value in kind.booleans
        if each not in skipped and private.flag(A(each)) != value
    ]
    if kind.allowed and private.read(A.ALLOWED_MECHANISMS) != kind.allowed:
        wrong.append("ALLOWED_MECHANISMS is another")
    return "; ".join(wrong)
