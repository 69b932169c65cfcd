"""What is on the token: every object with the attributes that the audit reads, and the keys among them."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hsm_endorser.custody.cryptoki import Attribute, KeyType, ObjectClass, number
from hsm_endorser.custody.errors import ProbeRefusedError
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_messages import Attributes, Bytes, Find, Numbers, ReadMany
from hsm_endorser.worker_messages import Failed

A = Attribute
SECRET_ATTRIBUTES: Final = {
    KeyType.RSA: (A.PRIVATE_EXPONENT, A.PRIME_1, A.PRIME_2, A.EXPONENT_1, A.EXPONENT_2, A.COEFFICIENT),
    KeyType.EC: (A.VALUE,),
    KeyType.EC_EDWARDS: (A.VALUE,),
}
"""What the private value of a key is kept in; never read with the others."""
READ: Final = tuple(each for each in Attribute if each not in {A.VALUE, *SECRET_ATTRIBUTES[KeyType.RSA]})
CURVES: Final[dict[bytes, ec.EllipticCurve]] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
    bytes.fromhex("06052b8104000a"): ec.SECP256K1(),
    bytes.fromhex("06092b2403030208010107"): ec.BrainpoolP256R1(),
    bytes.fromhex("06092b240303020801010b"): ec.BrainpoolP384R1(),
    bytes.fromhex("06092b240303020801010d"): ec.BrainpoolP512R1(),
}
"""EC_PARAMS (the OID) → the curve."""
ED25519: Final = frozenset({b"\x13\x0cedwards25519", bytes.fromhex("06032b6570"), b"\x13\x07ed25519"})
ED25519_BYTES: Final = 32

AnyPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class BadPublicKeyError(ValueError):
    """The public object holds no public key; the message says why."""


class Item(msgspec.Struct, frozen=True):
    """An object: its number at the worker, and an answer for each attribute of `READ`."""

    number: int
    answers: dict[int, Bytes | Failed]

    def read(self, attribute: Attribute) -> bytes | None:
        """The bytes of an attribute; None where the module gives none."""
        answer = self.answers.get(attribute)
        return answer.value if isinstance(answer, Bytes) else None

    def flag(self, attribute: Attribute) -> bool | None:
        """A boolean attribute; None where the module does not give it: that is not the same as false."""
        value = self.read(attribute)
        return value != b"\0" if value is not None and len(value) == 1 else None

    def number_in(self, attribute: Attribute) -> int | None:
        """A CK_ULONG attribute."""
        value = self.read(attribute)
        return int.from_bytes(value, "little") if value else None

    @property
    def kind(self) -> int | None:
        """CKA_CLASS."""
        return self.number_in(A.CLASS)

    @property
    def key_type(self) -> int | None:
        """CKA_KEY_TYPE; None for what is no key, and for ghosts."""
        value = self.read(A.KEY_TYPE)
        return int.from_bytes(value, "little") if value else None

    @property
    def id(self) -> bytes:
        """CKA_ID; empty when there is none."""
        return self.read(A.ID) or b""

    @property
    def label(self) -> str:
        """CKA_LABEL, fit to be shown."""
        text = (self.read(A.LABEL) or b"").decode(errors="replace")
        return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

    @property
    def name(self) -> str:
        """How people find it."""
        return f"{self.label!r} ({self.id.hex() or 'no id'})"[:200]


async def find(probe: Probe, template: dict[int, bytes] | None = None) -> list[int]:
    """The numbers of the objects that match; raises `ProbeRefusedError`."""
    reply = expect(await probe.call(Find(template or {})), Numbers)
    if isinstance(reply, Failed):
        raise ProbeRefusedError.of("the objects of the token cannot be listed", reply)
    return reply.numbers


async def items(probe: Probe, numbers: Iterable[int], attributes: Sequence[Attribute] = READ) -> list[Item]:
    """The objects with these numbers, read; one that is gone by then is left out."""
    found = []
    for each in numbers:
        reply = expect(await probe.call(ReadMany(each, [int(attribute) for attribute in attributes])), Attributes)
        if isinstance(reply, Attributes):
            found.append(Item(each, dict(zip((int(a) for a in attributes), reply.answers, strict=True))))
    return found


def of_class(found: Iterable[Item], kind: ObjectClass) -> list[Item]:
    """Those of one class."""
    return [item for item in found if item.kind == kind]


def public_key(item: Item) -> AnyPublicKey:
    """The public key in a public object; raises `BadPublicKeyError`."""
    kind = item.key_type
    if kind == KeyType.RSA:
        modulus, exponent = item.read(A.MODULUS), item.read(A.PUBLIC_EXPONENT)
        if not modulus or not exponent:
            raise BadPublicKeyError("it has no modulus or exponent")
        return _rsa(int.from_bytes(modulus, "big"), int.from_bytes(exponent, "big"))
    if kind not in {KeyType.EC, KeyType.EC_EDWARDS}:
        raise BadPublicKeyError("it has no key type" if kind is None else f"key type {kind:#x} is not known here")
    parameters, point = item.read(A.EC_PARAMS), item.read(A.EC_POINT)
    if not parameters or not point:
        raise BadPublicKeyError("it has no curve or point")
    if kind == KeyType.EC_EDWARDS:
        if parameters not in ED25519:
            raise BadPublicKeyError(f"curve parameters {parameters.hex()[:64]} are not those of Ed25519")
        return _ed25519(bare_point(point, ED25519_BYTES))
    if parameters not in CURVES:
        raise BadPublicKeyError(f"curve parameters {parameters.hex()[:64]} name no curve that is known here")
    return _ec(CURVES[parameters], point)


def _ed25519(point: bytes) -> ed25519.Ed25519PublicKey:
    try:
        return ed25519.Ed25519PublicKey.from_public_bytes(point)
    except ValueError as error:
        raise BadPublicKeyError(f"its point is none: {error}") from None


def _ec(curve: ec.EllipticCurve, point: bytes) -> ec.EllipticCurvePublicKey:
    length = 1 + 2 * ((curve.key_size + 7) // 8)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, bare_point(point, length))
    except ValueError as error:
        raise BadPublicKeyError(f"its point is not on the curve {curve.name}: {error}") from None


def _rsa(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise BadPublicKeyError(str(error)) from None


def bare_point(point: bytes, length: int) -> bytes:
    """The point of `length` bytes inside the DER OCTET STRING in which tokens keep it; some give it bare."""
    head = bytes((0x04, length)) if length < 0x80 else bytes((0x04, 0x81, length))  # noqa: PLR2004  DER's short form
    return point[len(head) :] if len(point) == len(head) + length and point.startswith(head) else point


def spki(key: AnyPublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


PRIVATE_KEYS: Final = {int(A.CLASS): number(ObjectClass.PRIVATE_KEY)}
