"""Wrapping a key by every mechanism offered, and what comes out: decrypted, and compared with the public key.

A token that wraps what should be unextractable gives the private key away, whatever its attributes say.
"""

import struct
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.hazmat.primitives import keywrap, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_endorser.custody import arithmetic
from hsm_endorser.custody.cryptoki import Attribute, MechanismFlag, Mechanisms, boolean, code, number
from hsm_endorser.custody.inventory import AnyPublicKey
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_key import RSA_EXPONENT, Controls, Kind, ProbeKey, names
from hsm_endorser.custody.probe_messages import (
    Bytes,
    Decrypt,
    GenerateKey,
    GeneratePair,
    Mechanism,
    MechanismInfo,
    Number,
    Numbers,
    Read,
    Template,
    Wrap,
)
from hsm_endorser.custody.verdicts import REFUSALS, Rows, listed
from hsm_endorser.worker_messages import Failed

A, M = Attribute, Mechanisms
EIGHT_BYTE_BLOCKS: Final = ("DES", "IDEA", "CAST", "RC2", "RC5", "SKIPJACK")
VALUE_BYTES: Final = (32, 16, 0)
"""Lengths of a wrapping key, tried in this order; 0 where the kind has one length."""
IV: Final = bytes(range(16))
GCM_TAG_BITS: Final = 128
AES_BYTES: Final = 32
RSA_BITS: Final = 2048
CKG_MGF1_SHA1: Final = 1
CKZ_DATA_SPECIFIED: Final = 1
WRAP_TOO: Final = frozenset({M.AES_CBC_PAD, M.AES_KEY_WRAP, M.AES_KEY_WRAP_PAD, M.AES_KEY_WRAP_KWP})
"""Tried when they are offered, even where the token does not say that they wrap."""
CHECK: Final = "attack.wrap"


class WrappingKey(msgspec.Struct, frozen=True):
    """A wrapping key on the token: what wraps, what decrypts, and its value where it can be read."""

    wraps: int
    decrypts: int
    value: bytes = b""


class Wrapping:
    """The wrapping keys of one audit, made when they are first needed, and what wraps by them."""

    def __init__(self, rows: Rows, probe: Probe, offered: Sequence[MechanismInfo], controls: Controls) -> None:
        self._rows = rows
        self._probe = probe
        self.controls = controls
        self.mechanisms = [each for each in offered if each.flags & MechanismFlag.WRAP or each.number in WRAP_TOO]
        self._keys: dict[str, WrappingKey | str] = {}
        self._control_replies: dict[tuple[Kind, int], Number | Failed] = {}
        self._generators = {each.name: each.number for each in offered if each.name.endswith("_KEY_GEN")}

    async def attack_probe(self, key: ProbeKey, when: str = "") -> None:
        """One row for each mechanism."""
        if not self.mechanisms:
            self._rows.untested(CHECK, key.target, f"wrap the key{when}", "the token offers no mechanism that wraps")
        for each in self.mechanisms:
            tried = f"wrap the key by {each.name}{when}"
            wrapping = await self._wrapping_key(each)
            if isinstance(wrapping, str):
                self._rows.untested(CHECK, key.target, tried, wrapping)
                continue
            by = parameters(each)
            reply = expect(await self._probe.call(Wrap(by, wrapping.wraps, key.private.number)), Bytes)
            if isinstance(reply, Bytes):
                harm = await self._what_came_out(wrapping, by, reply.value, key.public_key)
                self._rows.failed(CHECK, key.target, tried, "CKR_OK", harm)
            else:
                control = await self._control(key, each, wrapping)
                self._rows.attack(CHECK, key.target, tried, reply, "", control=control)

    async def attack_key(self, target: str, private: int, like: ProbeKey | None) -> None:
        """The same on a key itself, which it does not change; what comes out is forgotten in the worker.

        One row for each answer. `like` is the probe key that stands for it, for the control.
        """
        if not self.mechanisms:
            self._rows.untested(CHECK, target, "wrap the key itself", "the token offers no mechanism that wraps")
        said: dict[tuple[str, str], list[str]] = defaultdict(list)
        for each in self.mechanisms:
            wrapping = await self._wrapping_key(each)
            if isinstance(wrapping, str):
                said["not-tested", wrapping].append(each.name)
                continue
            reply = expect(await self._probe.call(Wrap(parameters(each), wrapping.wraps, private, keep=False)), Number)
            if isinstance(reply, Number):
                said["fail", "CKR_OK"].append(each.name)
            elif reply.ckr in REFUSALS or (like and await self._control(like, each, wrapping)):
                said["pass", code(reply)].append(each.name)
            else:
                why = f"{code(reply)}: it does not work with a key to which it is allowed, or there is none to compare"
                said["not-tested", why].append(each.name)
        for (verdict, answer), mechanisms in said.items():
            tried = f"wrap the key itself by {listed(mechanisms)}"
            if verdict == "fail":
                self._rows.failed(CHECK, target, tried, answer, "the private key left the token, wrapped")
            elif verdict == "pass":
                self._rows.passed(CHECK, target, tried, answer)
            else:
                self._rows.untested(CHECK, target, tried, answer, answer.partition(":")[0] if "CKR_" in answer else "")

    async def _what_came_out(self, wrapping: WrappingKey, by: Mechanism, wrapped: bytes, public: AnyPublicKey) -> str:
        clear = unwrap(by, wrapping.value, wrapped) if wrapping.value else None
        if clear is None:
            reply = expect(await self._probe.call(Decrypt(by, wrapping.decrypts, wrapped)), Bytes)
            clear = reply.value if isinstance(reply, Bytes) else None
        if clear is None:
            return f"{len(wrapped)} bytes came out, wrapped under a key of whoever is logged in"
        if arithmetic.is_private_half(public, clear):
            return "the private key came out: unwrapped, it is the private half of the public key"
        return f"{len(wrapped)} bytes came out; unwrapped, they were not understood ({len(clear)} bytes)"

    async def _control(self, key: ProbeKey, mechanism: MechanismInfo, wrapping: WrappingKey) -> bool | None:
        """Whether the mechanism shows what a refusal means: it wraps an extractable key of the same kind, or the token
        says that it wraps nothing by it. None when there is no such key.
        """
        control = await self.controls.of(key.kind)
        if control is None:
            return None
        at = (key.kind, mechanism.number)
        if at not in self._control_replies:
            wrap = Wrap(parameters(mechanism), wrapping.wraps, control.private, keep=False)
            self._control_replies[at] = expect(await self._probe.call(wrap), Number)
        reply = self._control_replies[at]
        return isinstance(reply, Number) or reply.ckr == "MechanismInvalid"

    async def _wrapping_key(self, mechanism: MechanismInfo) -> WrappingKey | str:
        family = mechanism.name.partition("_")[0]
        if family not in self._keys:
            self._keys[family] = await self._make(family)
        return self._keys[family]

    async def _make(self, family: str) -> WrappingKey | str:
        yes, no = boolean(True), boolean(False)
        common = {A.TOKEN: no, A.PRIVATE: yes, **names()}
        if family == "RSA":
            public = {**common, A.PRIVATE: no, A.WRAP: yes, A.ENCRYPT: yes, A.VERIFY: no}
            public |= {A.MODULUS_BITS: number(RSA_BITS), A.PUBLIC_EXPONENT: RSA_EXPONENT}
            private = {**common, A.UNWRAP: yes, A.DECRYPT: yes, A.SIGN: no, A.SENSITIVE: yes}
            request = GeneratePair(Mechanism(M.RSA_PKCS_KEY_PAIR_GEN), public, private)
            pair = expect(await self._probe.call(request), Numbers)
            if isinstance(pair, Failed):
                return f"no RSA key that wraps can be made: {code(pair)}"
            return WrappingKey(pair.numbers[0], pair.numbers[1])
        generator = self._generators.get(f"{family}_KEY_GEN")
        if generator is None:
            return "the token makes no keys for this mechanism"
        template: Template = {**common, A.WRAP: yes, A.UNWRAP: yes, A.ENCRYPT: yes, A.DECRYPT: yes}
        refused = ""
        for readable in (True, False):
            for length in VALUE_BYTES:
                more: Template = {A.SENSITIVE: boolean(not readable), A.EXTRACTABLE: boolean(readable)}
                more |= {A.VALUE_LEN: number(length)} if length else {}
                made = expect(await self._probe.call(GenerateKey(Mechanism(generator), {**template, **more})), Number)
                if isinstance(made, Number):
                    value = expect(await self._probe.call(Read(made.number, A.VALUE)), Bytes)
                    return WrappingKey(made.number, made.number, b"" if isinstance(value, Failed) else value.value)
                refused = code(made)
        return f"no {family} key that wraps can be made: {refused}"


def parameters(mechanism: MechanismInfo) -> Mechanism:
    """A mechanism with the parameters that it needs."""
    oaep = struct.pack("@LLLPL", M.SHA_1, CKG_MGF1_SHA1, CKZ_DATA_SPECIFIED, 0, 0)
    match mechanism.number:
        case M.RSA_PKCS_OAEP:
            return Mechanism(mechanism.number, oaep)
        case M.RSA_AES_KEY_WRAP:
            return Mechanism(mechanism.number, struct.pack("@LP", 8 * AES_BYTES, 0), {8: oaep})
        case M.AES_GCM:
            return Mechanism(mechanism.number, struct.pack("@PLLPLL", 0, 12, 96, 0, 0, GCM_TAG_BITS), {0: IV[:12]})
        case M.AES_CTR:
            return Mechanism(mechanism.number, struct.pack("@L16s", GCM_TAG_BITS, IV))
    if "_CBC" in mechanism.name:
        return Mechanism(mechanism.number, IV[:8] if mechanism.name.startswith(EIGHT_BYTE_BLOCKS) else IV)
    return Mechanism(mechanism.number)


def unwrap(by: Mechanism, key: bytes, wrapped: bytes) -> bytes | None:
    """What a wrapped key is in clear; None where it cannot be told."""
    try:
        match by.number:
            case M.AES_KEY_WRAP:
                return keywrap.aes_key_unwrap(key, wrapped)
            case M.AES_KEY_WRAP_PAD | M.AES_KEY_WRAP_KWP:
                return keywrap.aes_key_unwrap_with_padding(key, wrapped)
            case M.AES_CBC | M.AES_CBC_PAD:
                return _unpadded(_decrypt(key, modes.CBC(IV), wrapped))
            case M.AES_ECB:
                return _decrypt(key, modes.ECB(), wrapped)  # noqa: S305  it is what the token was told to use
            case M.AES_CTR:
                return _decrypt(key, modes.CTR(IV), wrapped)
            case M.AES_GCM:
                return AESGCM(key).decrypt(IV[:12], wrapped, None)
    except Exception:  # noqa: BLE001  whatever it is, it is not this
        return None
    return None


def _decrypt(key: bytes, mode: modes.CBC | modes.ECB | modes.CTR, data: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), mode).decryptor()
    return decryptor.update(data) + decryptor.finalize()


def _unpadded(data: bytes) -> bytes:
    unpadder = padding.PKCS7(128).unpadder()
    try:
        return unpadder.update(data) + unpadder.finalize()
    except ValueError:
        return data
