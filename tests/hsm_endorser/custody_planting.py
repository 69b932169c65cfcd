"""Good keys and bad ones: the good by the product's own template, the bad planted through a probe worker."""

import secrets
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from hsm_endorser.custody import published_keys
from hsm_endorser.custody.cryptoki import Attribute, KeyType, Mechanisms, ObjectClass, boolean, number
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_messages import (
    Create,
    Destroy,
    Done,
    GenerateKey,
    GeneratePair,
    Mechanism,
    Number,
    Numbers,
    ProbeRequest,
    Template,
    Write,
)
from hsm_endorser.token import Token, TokenConfig
from hsm_endorser.worker_messages import Failed
from protocol.custody import AuditedKey, Predicate, Row
from protocol.keys import Scheme

Reply = TypeVar("Reply", bound=msgspec.Struct)
A, M = Attribute, Mechanisms
P384 = bytes.fromhex("06052b81040022")
STRICT: Template = {
    A.TOKEN: boolean(True),
    A.PRIVATE: boolean(True),
    A.SENSITIVE: boolean(True),
    A.SIGN: boolean(True),
    A.EXTRACTABLE: boolean(False),
    A.MODIFIABLE: boolean(False),
    A.COPYABLE: boolean(False),
    A.DESTROYABLE: boolean(False),
    A.DECRYPT: boolean(False),
    A.UNWRAP: boolean(False),
    A.DERIVE: boolean(False),
    A.ALLOWED_MECHANISMS: number(M.ECDSA),
}
"""The product's template, in the standard's bytes."""
PUBLIC: Template = {
    A.TOKEN: boolean(True),
    A.PRIVATE: boolean(False),
    A.VERIFY: boolean(True),
    A.MODIFIABLE: boolean(False),
    A.WRAP: boolean(False),
    A.ENCRYPT: boolean(False),
}


class Planter:
    """Plants keys on one token, over a session that is logged in."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    async def ec(
        self,
        label: str,
        *,
        private: Mapping[Attribute, bool] | None = None,
        public: Mapping[Attribute, bool] | None = None,
        curve: bytes = published_keys.P256_PARAMETERS,
        id_: bytes = b"",
        unrestricted: bool = False,
    ) -> tuple[int, int]:
        """An EC key pair that is strict but for what is said: the numbers of its public and its private object."""
        named: Template = {A.LABEL: label.encode(), A.ID: id_ or secrets.token_bytes(16)}
        template = {**STRICT, **named, **_packed(private)}
        if unrestricted:
            del template[A.ALLOWED_MECHANISMS]
        request = GeneratePair(
            Mechanism(M.EC_KEY_PAIR_GEN), {**PUBLIC, **named, A.EC_PARAMS: curve, **_packed(public)}, template
        )
        made = (await self._ask(request, Numbers)).numbers
        return made[0], made[1]

    async def rsa(self, label: str, *, bits: int, exponent: int = 65537) -> None:
        """An RSA key pair that is strict but for its numbers."""
        named: Template = {A.LABEL: label.encode(), A.ID: secrets.token_bytes(16)}
        numbers: Template = {A.MODULUS_BITS: number(bits), A.PUBLIC_EXPONENT: exponent.to_bytes(3, "big").lstrip(b"\0")}
        template = {**STRICT, **named, A.ALLOWED_MECHANISMS: number(M.RSA_PKCS)}
        request = GeneratePair(Mechanism(M.RSA_PKCS_KEY_PAIR_GEN), {**PUBLIC, **named, **numbers}, template)
        await self._ask(request, Numbers)

    async def imported(self, label: str) -> None:
        """A published key pair, imported, and strict as far as that goes."""
        named: Template = {A.LABEL: label.encode(), A.ID: secrets.token_bytes(16), A.KEY_TYPE: number(KeyType.EC)}
        private = {**STRICT, **named, A.CLASS: number(ObjectClass.PRIVATE_KEY)}
        await self._ask(Create({**private, **published_keys.private_value(KeyType.EC)}), Number)
        await self.public(label, named[A.ID])

    async def public(self, label: str, id_: bytes, point: bytes = published_keys.P256_POINT) -> None:
        """A public object with any point."""
        template: Template = {
            **PUBLIC,
            A.CLASS: number(ObjectClass.PUBLIC_KEY),
            A.KEY_TYPE: number(KeyType.EC),
            A.LABEL: label.encode(),
            A.ID: id_,
            A.EC_PARAMS: published_keys.P256_PARAMETERS,
            A.EC_POINT: bytes((4, len(point))) + point,
        }
        await self._ask(Create(template), Number)

    async def secret(self, label: str) -> None:
        """An AES key that wraps."""
        yes = boolean(True)
        template: Template = {A.TOKEN: yes, A.PRIVATE: yes, A.LABEL: label.encode(), A.ID: secrets.token_bytes(16)}
        template |= {A.VALUE_LEN: number(32), A.WRAP: yes, A.UNWRAP: yes, A.DECRYPT: yes}
        await self._ask(GenerateKey(Mechanism(M.AES_KEY_GEN), template), Number)

    async def ghost(self, label: str) -> None:
        """What SoftHSM keeps of an import that it refused."""
        template: Template = {**STRICT, A.CLASS: number(ObjectClass.PRIVATE_KEY), A.KEY_TYPE: number(KeyType.EC)}
        template |= {A.LABEL: label.encode(), A.ID: secrets.token_bytes(16), A.LOCAL: boolean(True)}
        refused = await self._probe.call(Create({**template, **published_keys.private_value(KeyType.EC)}))
        assert isinstance(refused, Failed)

    async def write(self, number_: int, attribute: Attribute, value: bool) -> None:
        """Change an attribute."""
        await self._ask(Write(number_, attribute, boolean(value)), Done)

    async def destroy(self, number_: int) -> None:
        """Delete an object."""
        await self._ask(Destroy(number_), Done)

    async def _ask(self, request: ProbeRequest, kind: type[Reply]) -> Reply:
        reply = expect(await self._probe.call(request), kind)
        assert not isinstance(reply, Failed), (request, reply)
        return reply


def _packed(values: Mapping[Attribute, bool] | None) -> Template:
    return {int(attribute): boolean(value) for attribute, value in (values or {}).items()}


async def good_keys(config: TokenConfig, labels: Iterable[tuple[str, Scheme]]) -> None:
    """Keys as the product makes them."""
    token = await Token.start(config)
    try:
        for label, scheme in labels:
            await token.generate(label, scheme)
    finally:
        await token.close()


def key_named(predicate: Predicate, label: str) -> AuditedKey:
    """The one audited key with a label."""
    (found,) = [key for key in predicate.keys if key.label == label]
    return found


def rows_about(predicate: Predicate, key: AuditedKey) -> list[Row]:
    """The rows of a key, and those of the probe key that stands for it."""
    own = [row for row in predicate.rows if row.target == key.key or row.target.startswith(f"id:{key.id}#")]
    probes = {row.answer.partition(",")[0] for row in own if row.check == "attack.probe"}
    return own + [row for row in predicate.rows if row.target in probes]
