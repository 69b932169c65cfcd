"""The attacks on a probe key (requirement K-3). Each tries one thing that must fail, and writes down what came of it.

A row says "pass" only where the module refused, and where a key to which the same is allowed shows that the refusal
was for the key's sake; or where the return code says so by itself.
"""

import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsm_endorser.custody import arithmetic, published_keys
from hsm_endorser.custody.cryptoki import (
    Attribute,
    KeyType,
    MechanismFlag,
    Mechanisms,
    ObjectClass,
    boolean,
    code,
    number,
    numbers_in,
)
from hsm_endorser.custody.inventory import SECRET_ATTRIBUTES, AnyPublicKey, BadPublicKeyError, find, items, public_key
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_key import Controls, ProbeKey, names
from hsm_endorser.custody.probe_messages import (
    BeginSign,
    Bytes,
    Copy,
    Create,
    Decrypt,
    Derive,
    Destroy,
    Done,
    FinishSign,
    Mechanism,
    MechanismInfo,
    Number,
    OpenSession,
    ProbeReply,
    Read,
    Several,
    SignEach,
    Template,
    Unwrap,
    Write,
)
from hsm_endorser.custody.verdicts import Rows, listed
from hsm_endorser.custody.wrapping import Wrapping
from hsm_endorser.worker_messages import Failed

A, M = Attribute, Mechanisms
LENGTHS: Final = (0, 20, 33, 64)
DIGEST_BYTES: Final = 32
SIGNATURES: Final = 1000
AT_ONCE: Final = 100
FLIPS: Final[Mapping[Attribute, bytes]] = {
    A.SENSITIVE: boolean(False),
    A.EXTRACTABLE: boolean(True),
    A.PRIVATE: boolean(False),
    A.MODIFIABLE: boolean(True),
    A.COPYABLE: boolean(True),
    A.DESTROYABLE: boolean(True),
    A.DECRYPT: boolean(True),
    A.UNWRAP: boolean(True),
    A.DERIVE: boolean(True),
    A.SIGN_RECOVER: boolean(True),
    A.LOCAL: boolean(False),
    A.ALWAYS_SENSITIVE: boolean(False),
    A.NEVER_EXTRACTABLE: boolean(False),
    A.ALLOWED_MECHANISMS: number(M.ECDSA) + number(M.RSA_PKCS) + number(M.ECDH1_DERIVE),
    A.ID: b"hsm-endorser-audit:flipped",
    A.LABEL: b"hsm-endorser audit flipped",
}
"""What each attribute is set to: what would help an attacker, or hide what was done."""
COPIES: Final[Sequence[tuple[str, Mapping[Attribute, bool]]]] = (
    ("without any change", {}),
    ("with EXTRACTABLE true", {A.EXTRACTABLE: True}),
    ("with SENSITIVE false", {A.SENSITIVE: False}),
    ("with EXTRACTABLE true and SENSITIVE false", {A.EXTRACTABLE: True, A.SENSITIVE: False}),
    ("with DERIVE true", {A.DERIVE: True}),
    ("with DECRYPT and UNWRAP true", {A.DECRYPT: True, A.UNWRAP: True}),
    ("with MODIFIABLE true", {A.MODIFIABLE: True}),
)
FORGED: Final = (A.LOCAL, A.NEVER_EXTRACTABLE, A.ALWAYS_SENSITIVE)
PSS: Final[Mapping[str, tuple[int, int, int]]] = {
    "SHA1": (0x220, 1, 20),
    "SHA224": (0x255, 5, 28),
    "SHA256": (0x250, 2, 32),
    "SHA384": (0x260, 3, 48),
    "SHA512": (0x270, 4, 64),
}
"""Hash, mask generation function and salt length of the PSS mechanisms."""
FAMILY: Final[Mapping[int, tuple[str, ...]]] = {
    KeyType.EC: ("ECDSA",),
    KeyType.RSA: ("RSA_",),
    KeyType.EC_EDWARDS: ("EDDSA",),
}
ELSE: Final[Mapping[int, Mechanism]] = {
    KeyType.EC: Mechanism(M.ECDSA_SHA256),
    KeyType.RSA: Mechanism(M.SHA256_RSA_PKCS),
    KeyType.EC_EDWARDS: Mechanism(M.ECDSA),
}
"""Tried where no other mechanism is offered: what cannot be, the module must refuse."""


class Attacker:
    """Attacks the probe keys of one audit, with what one worker has made for that."""

    def __init__(self, rows: Rows, probe: Probe, offered: Sequence[MechanismInfo]) -> None:
        self.rows = rows
        self.probe = probe
        self.controls = Controls(probe)
        self.wrapping = Wrapping(rows, probe, offered, self.controls)
        self.flipped: set[str] = set()
        """Targets of which an attribute could be changed."""
        self._offered = offered

    def plan(self, key_type: int) -> dict[str, Callable[[ProbeKey], Awaitable[None]]]:
        """The attacks that mean something for a kind of key, in their order; the last of them may end the key."""
        every: dict[str, Callable[[ProbeKey], Awaitable[None]]] = {
            "attack.read": self.read,
            "attack.wrap": self.wrapping.attack_probe,
            "attack.copy": self.copy,
            "attack.mechanism": self.mechanism,
            "attack.import": self.forge,
            "attack.look-alike": self.look_alike,
        }
        if key_type == KeyType.EC:
            every |= {
                "attack.derive": self.derive,
                "attack.sign-length": self.sign_length,
                "attack.nonces": self.nonces,
            }
        if key_type == KeyType.RSA:
            every |= {
                "attack.decrypt": self.decrypt,
                "attack.unwrap": self.unwrap,
                "attack.sign-length": self.sign_length,
            }
        return every | {"attack.flip": self.flip, "attack.destroy": self.destroy}

    async def read(self, key: ProbeKey, when: str = "") -> None:
        """Read the private value."""
        for attribute in SECRET_ATTRIBUTES[KeyType(key.kind.key_type)]:
            tried = f"read {attribute.name}{when}"
            reply = await self.probe.value(key.private.number, attribute)
            self._read_row(key.target, tried, reply, key)

    async def read_key(self, target: str, private: int, key_type: int | None) -> None:
        """The same on a key itself: a value that comes is forgotten in the worker."""
        attributes = SECRET_ATTRIBUTES.get(KeyType(key_type)) if key_type in set(KeyType) else None
        for attribute in attributes or (A.VALUE,):
            tried = f"read {attribute.name} of the key itself"
            reply = expect(await self.probe.call(Read(private, attribute, keep=False)), Number)
            self._read_row(target, tried, Bytes(b"?" * reply.number) if isinstance(reply, Number) else reply, None)

    async def flip(self, key: ProbeKey) -> None:
        """Change attributes; where that works, try once more to get the key out."""
        control = await self.controls.of(key.kind)
        writes = None
        if control:
            writes = isinstance(await self.probe.call(Write(control.private, A.LABEL, b"hsm-endorser audit x")), Done)
        for attribute, value in FLIPS.items():
            before = key.private.read(attribute)
            if before == value:
                continue  # it is that weak already, and its own check says so
            tried = f"set {attribute.name} to {_shown(attribute, value)}"
            if before is None and isinstance(key.private.answers[attribute], Failed):
                said = key.private.answers[attribute]
                reason = "the module does not have this attribute"
                self.rows.untested("attack.flip", key.target, tried, reason, code(said))  # type: ignore[arg-type]
                continue
            reply = expect(await self.probe.call(Write(key.private.number, attribute, value)), Done)
            if isinstance(reply, Done):
                now = await self.probe.value(key.private.number, attribute)
                if isinstance(now, Bytes) and now.value == before:
                    self.rows.passed("attack.flip", key.target, tried, "CKR_OK, and nothing changed")
                    continue
                self.flipped.add(key.target)
            harm = f"{attribute.name} was changed: what this token says of a key proves nothing"
            self.rows.attack("attack.flip", key.target, tried, reply, harm, control=writes)
        if key.target in self.flipped:
            when = ", after its attributes were changed"
            await self.read(key, when)
            await self.wrapping.attack_probe(key, when)

    async def copy(self, key: ProbeKey) -> None:
        """Copy the key, weaker."""
        control = await self.controls.of(key.kind)
        for how, changes in COPIES:
            # A copy takes over label and id, by which the next audit would know it.
            template: Template = {A.TOKEN: boolean(False)}
            template |= {each: boolean(value) for each, value in changes.items()}
            reply = expect(await self.probe.call(Copy(key.private.number, template)), Number)
            works = None
            if isinstance(reply, Failed) and control:
                works = isinstance(await self.probe.call(Copy(control.private, template)), Number)
            harm = "the key was copied"
            if isinstance(reply, Number):
                value = await self.probe.value(reply.number, A.VALUE)
                if isinstance(value, Bytes) and arithmetic.is_private_half(key.public_key, value.value):
                    harm = "the key was copied, and the private value read from the copy"
                await self.probe.call(Destroy(reply.number))
            self.rows.attack("attack.copy", key.target, f"copy the key {how}", reply, harm, control=works)

    async def derive(self, key: ProbeKey) -> None:
        """Derive a secret by ECDH."""
        offered = [each for each in self._offered if each.number in {M.ECDH1_DERIVE, M.ECDH1_COFACTOR_DERIVE}]
        control = await self.controls.of(key.kind)
        point = published_keys.P256_POINT
        if key.kind.parameters != published_keys.P256_PARAMETERS:
            point = b"\x04" + (key.public.read(A.EC_POINT) or b"")[3:]
        for mechanism, name in [(each.number, each.name) for each in offered] or [
            (int(M.ECDH1_DERIVE), "ECDH1_DERIVE")
        ]:
            by = Mechanism(mechanism, struct.pack("@LLPLP", 1, 0, 0, len(point), 0), {32: point})
            template: Template = {
                A.CLASS: number(ObjectClass.SECRET_KEY),
                A.KEY_TYPE: number(KeyType.GENERIC_SECRET),
                A.VALUE_LEN: number(32),
                A.TOKEN: boolean(False),
                A.SENSITIVE: boolean(False),
                A.EXTRACTABLE: boolean(True),
                **names(),
            }
            reply = expect(await self.probe.call(Derive(by, key.private.number, template)), Number)
            works: bool | None = True  # what is not offered cannot be used, and the call has shown it
            if offered:
                works = None
                if control:
                    works = isinstance(await self.probe.call(Derive(by, control.private, template)), Number)
            harm = "a secret was derived: the key can be used for more than signatures"
            self.rows.attack("attack.derive", key.target, f"derive a secret by {name}", reply, harm, control=works)

    async def decrypt(self, key: ProbeKey) -> None:
        """Decrypt with an RSA key."""
        for by, pad, name in self._rsa_paddings():
            reply = expect(await self._rsa_decrypt(key.private.number, key.public_key, by, pad), Bytes)
            works = None
            if isinstance(reply, Failed) and (control := await self._rsa_control(key)):
                works = isinstance(await self._rsa_decrypt(*control, by, pad), Bytes)
            harm = "the key decrypts: a signature can be had as a decryption"
            self.rows.attack("attack.decrypt", key.target, f"decrypt by {name}", reply, harm, control=works)

    async def unwrap(self, key: ProbeKey) -> None:
        """Unwrap an AES key with an RSA key."""
        for by, pad, name in self._rsa_paddings():
            reply = expect(await self._rsa_unwrap(key.private.number, key.public_key, by, pad), Number)
            works = None
            if isinstance(reply, Failed) and (control := await self._rsa_control(key)):
                works = isinstance(await self._rsa_unwrap(*control, by, pad), Number)
            harm = "the key unwraps: other keys come onto the token in its name"
            self.rows.attack("attack.unwrap", key.target, f"unwrap an AES key by {name}", reply, harm, control=works)

    async def mechanism(self, key: ProbeKey) -> None:
        """Sign by every mechanism of its family but its own."""
        family = FAMILY[key.kind.key_type]
        own = key.signs_by.number
        others = [
            (signing_mechanism(each), each.name)
            for each in self._offered
            if each.flags & MechanismFlag.SIGN and any(word in each.name for word in family) and each.number != own
        ]
        if not others:
            by = ELSE[key.kind.key_type]
            others = [(by, f"{Mechanisms(by.number).name} (not offered)")]
        for by, name in others:
            data = secrets.token_bytes(DIGEST_BYTES)
            if by.number == M.RSA_X_509:
                data = b"\0" + secrets.token_bytes(key.kind.bits // 8 - 1)
            reply = expect(await self.probe.call(SignEach(by, key.private.number, [data])), Several)
            works: bool | None = True if "not offered" in name else None
            if isinstance(reply, Failed) and works is None and (control := await self.controls.of(key.kind)):
                works = isinstance(await self.probe.call(SignEach(by, control.private, [data])), Several)
            harm = "mechanisms are not restricted: the key signs by this one, too"
            self.rows.attack("attack.mechanism", key.target, f"sign by {name}", reply, harm, control=works)

    async def forge(self, key: ProbeKey) -> None:
        """Import a published key as if it had been generated on the token."""
        kind = key.kind.key_type
        before = set(await find(self.probe))
        plain = await self._import(kind, None)
        for attribute in (None, *FORGED):
            reply = plain if attribute is None else await self._import(kind, attribute)
            ghosts = [each for each in await find(self.probe) if each not in before]
            claims = []
            if isinstance(reply, Number):
                claims = [each.name for each in FORGED if await self._is_true(reply.number, each)]
                ghosts = [each for each in ghosts if each != reply.number]
            tried = "import a key" if attribute is None else f"import a key that claims {attribute.name}"
            if ghosts:
                tried += f" ({len(ghosts)} ghost objects came of it, and were removed)"
            if isinstance(reply, Failed) and attribute is not None:
                self.rows.attack("attack.import", key.target, tried, reply, "", control=isinstance(plain, Number))
            elif isinstance(reply, Failed):
                self.rows.passed("attack.import", key.target, tried, f"{code(reply)}: keys cannot be imported")
            elif claims:
                reason = f"an imported key has {listed(claims)} true: these attributes prove nothing on this token"
                self.rows.failed("attack.import", key.target, tried, "CKR_OK", reason)
            else:
                answer = "CKR_OK, and it reads back as imported"
                self.rows.passed("attack.import", key.target, tried, answer)
            for each in (*ghosts, *([reply.number] if isinstance(reply, Number) else ())):
                await self.probe.call(Destroy(each))

    async def look_alike(self, key: ProbeKey) -> None:
        """Plant a published public key under the id and label of the probe key."""
        template: Template = {
            A.CLASS: number(ObjectClass.PUBLIC_KEY),
            A.KEY_TYPE: number(key.kind.key_type),
            A.TOKEN: boolean(False),
            A.VERIFY: boolean(True),
            A.LABEL: key.public.read(A.LABEL) or b"",
            A.ID: key.public.id,
            **published_keys.public_value(key.kind.key_type),
        }
        reply = expect(await self.probe.call(Create(template)), Number)
        harm = "the token has two public keys under one id and label now: who looks one up may get the wrong one"
        tried = "plant a second public key with its id and label"
        self.rows.attack("attack.look-alike", key.target, tried, reply, harm)
        if isinstance(reply, Number):
            await self.probe.call(Destroy(reply.number))

    async def sign_length(self, key: ProbeKey) -> None:
        """Sign inputs that are no SHA-256 digest."""
        for length in LENGTHS:
            data = secrets.token_bytes(length)
            reply = expect(await self.probe.call(SignEach(key.signs_by, key.private.number, [data])), Several)
            harm = f"it signs {length} bytes: whoever asks must insist on a digest's length himself"
            self.rows.attack("attack.sign-length", key.target, f"sign {length} bytes", reply, harm, control=True)

    async def nonces(self, key: ProbeKey) -> None:
        """A thousand signatures of one digest."""
        digest = secrets.token_bytes(DIGEST_BYTES)
        tried = f"{SIGNATURES} signatures of one digest"
        made = await self._sign_all(key, [digest] * SIGNATURES)
        if isinstance(made, Failed):
            self.rows.untested("attack.nonces", key.target, tried, f"it does not sign: {code(made)}", code(made))
            return
        different = len({each[: len(each) // 2] for each in made})
        if different == SIGNATURES:
            self.rows.passed("attack.nonces", key.target, tried, f"{different} different r")
            return
        if len(set(made)) == 1:  # RFC 6979: the same digest gives the same signature, another one another r
            more = await self._sign_all(key, [secrets.token_bytes(DIGEST_BYTES) for _ in range(SIGNATURES)])
            if not isinstance(more, Failed) and len({each[: len(each) // 2] for each in more}) == SIGNATURES:
                answer = f"one signature, and {SIGNATURES} different r for as many digests: deterministic (RFC 6979)"
                self.rows.passed("attack.nonces", key.target, tried, answer)
                return
        reason = "nonces repeat: the private key can be computed from two signatures"
        self.rows.failed("attack.nonces", key.target, tried, f"{different} different r", reason)

    async def destroy(self, key: ProbeKey) -> None:
        """Delete the key."""
        if key.on_token:
            reason = "the probe key is a token object here, which must be destroyable to be removed"
            self.rows.untested("attack.destroy", key.target, "delete the key", reason)
            return
        reply = expect(await self.probe.call(Destroy(key.private.number)), Done)
        control = await self.controls.of(key.kind)
        works = isinstance(await self.probe.call(Destroy(control.private)), Done) if control else None
        self.controls.forget(key.kind)
        harm = "whoever is logged in can delete it"
        self.rows.attack("attack.destroy", key.target, "delete the key", reply, harm, control=works)

    async def begin_signatures(self, keys: Sequence[ProbeKey]) -> dict[str, int]:
        """Begin a signature with each key in a session of its own, to be finished after logout: target → session."""
        begun = {}
        for key in keys:
            session = expect(await self.probe.call(OpenSession()), Number)
            if isinstance(session, Failed):
                continue
            reply = await self.probe.call(BeginSign(key.signs_by, key.private.number, session.number))
            if isinstance(reply, Done):
                begun[key.target] = session.number
        return begun

    async def sign_after_logout(self, key: ProbeKey, session: int | None) -> None:
        """Sign with a key that was found while somebody was logged in; everybody is logged out now."""
        check, data = "attack.sign-after-logout", secrets.token_bytes(DIGEST_BYTES)
        begun = "not begun before"
        if session is not None:
            end = expect(await self.probe.call(FinishSign(data, session)), Bytes)
            begun = "CKR_OK, which the standard leaves open" if isinstance(end, Bytes) else code(end)
        reply = expect(await self.probe.call(SignEach(key.signs_by, key.private.number, [data])), Several)
        tried = f"sign after logout (the end of a signature begun before: {begun})"
        self.rows.attack(check, key.target, tried, reply, "the key signs for whoever is not logged in", control=True)

    def _read_row(self, target: str, tried: str, reply: Bytes | Failed, key: ProbeKey | None) -> None:
        if isinstance(reply, Failed):
            if reply.ckr in {"AttributeTypeInvalid", "AttributeValueInvalid"}:
                self.rows.passed("attack.read", target, tried, code(reply))  # it was asked for, and did not come
            else:
                self.rows.attack("attack.read", target, tried, reply, "")
        elif not reply.value:
            self.rows.passed("attack.read", target, tried, "CKR_OK, and nothing in it")
        else:
            proof = key and arithmetic.is_private_half(key.public_key, reply.value)
            reason = "the private value came out" + (": it is that of the public key" if proof else "")
            self.rows.failed("attack.read", target, tried, f"{len(reply.value)} bytes", reason)

    async def _import(self, kind: int, forged: Attribute | None) -> Number | Failed:
        template: Template = {
            A.CLASS: number(ObjectClass.PRIVATE_KEY),
            A.KEY_TYPE: number(kind),
            A.TOKEN: boolean(False),
            A.PRIVATE: boolean(True),
            A.SENSITIVE: boolean(True),
            A.EXTRACTABLE: boolean(False),
            A.SIGN: boolean(True),
            **published_keys.private_value(kind),
            **names(),
        }
        if forged is not None:
            template[forged] = boolean(True)
        return expect(await self.probe.call(Create(template)), Number)

    async def _is_true(self, number_: int, attribute: Attribute) -> bool:
        reply = await self.probe.value(number_, attribute)
        return isinstance(reply, Bytes) and reply.value not in {b"", b"\0"}

    async def _sign_all(self, key: ProbeKey, inputs: list[bytes]) -> list[bytes] | Failed:
        made: list[bytes] = []
        for start in range(0, len(inputs), AT_ONCE):
            part = inputs[start : start + AT_ONCE]
            reply = expect(await self.probe.call(SignEach(key.signs_by, key.private.number, part)), Several)
            if isinstance(reply, Failed):
                return reply
            made += reply.values
        return made

    def _rsa_paddings(self) -> list[tuple[Mechanism, padding.AsymmetricPadding, str]]:
        sha1 = hashes.SHA1()  # noqa: S303  what every token with OAEP has
        oaep = Mechanism(M.RSA_PKCS_OAEP, struct.pack("@LLLPL", M.SHA_1, 1, 1, 0, 0))
        every: list[tuple[Mechanism, padding.AsymmetricPadding, str]] = [
            (Mechanism(M.RSA_PKCS), padding.PKCS1v15(), "RSA_PKCS"),
            (oaep, padding.OAEP(padding.MGF1(sha1), sha1, None), "RSA_PKCS_OAEP"),
        ]
        offered = {each.number for each in self._offered}
        return [each for each in every if each[0].number in offered] or every[:1]

    async def _rsa_control(self, key: ProbeKey) -> tuple[int, AnyPublicKey] | None:
        control = await self.controls.of(key.kind)
        if control is None:
            return None
        (public,) = await items(self.probe, [control.public])
        try:
            return control.private, public_key(public)
        except BadPublicKeyError:
            return None

    async def _rsa_decrypt(
        self, private: int, public: AnyPublicKey, by: Mechanism, pad: padding.AsymmetricPadding
    ) -> ProbeReply:
        assert isinstance(public, rsa.RSAPublicKey)  # noqa: S101  for the type checker
        return await self.probe.call(Decrypt(by, private, public.encrypt(secrets.token_bytes(16), pad)))

    async def _rsa_unwrap(
        self, private: int, public: AnyPublicKey, by: Mechanism, pad: padding.AsymmetricPadding
    ) -> ProbeReply:
        assert isinstance(public, rsa.RSAPublicKey)  # noqa: S101  for the type checker
        template: Template = {
            A.CLASS: number(ObjectClass.SECRET_KEY),
            A.KEY_TYPE: number(KeyType.AES),
            A.TOKEN: boolean(False),
            A.SENSITIVE: boolean(False),
            A.EXTRACTABLE: boolean(True),
            **names(),
        }
        return await self.probe.call(Unwrap(by, private, public.encrypt(secrets.token_bytes(32), pad), template))


def signing_mechanism(mechanism: MechanismInfo) -> Mechanism:
    """A mechanism that signs, with the parameters that it needs."""
    if not mechanism.name.endswith("_PSS"):
        return Mechanism(mechanism.number)
    hash_name = mechanism.name.partition("_")[0]
    return Mechanism(mechanism.number, struct.pack("@LLL", *PSS.get(hash_name, PSS["SHA256"])))


def _shown(attribute: Attribute, value: bytes) -> str:
    if attribute == A.ALLOWED_MECHANISMS:
        return f"{len(numbers_in(value))} mechanisms"
    return "another value" if attribute in {A.ID, A.LABEL} else str(value != b"\0").lower()
