"""The token worker: a process of its own that alone loads the PKCS#11 module, reads the PIN and holds the session.

    python -m hsm_endorser.token_worker DESCRIPTOR PARENT

It answers requests (`worker_messages`) on the inherited socket, one after the other, in one thread: the binding
crashes with two, modules crash by themselves, and calls can hang for ever. Whoever started it kills it then; a
new worker is the only recovery, since after re-initialisation stale handles can sign with another key.

The PIN goes from its file (or its message) into the login call and nowhere else. There is one login in the life of a
worker.
"""

import ctypes
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pkcs11
from pkcs11 import DEFAULT, Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.attributes import AttributeMapper
from pkcs11.exceptions import PKCS11Error

from hsm_endorser import key_template
from hsm_endorser.errors import PinFileError
from hsm_endorser.key_template import Half, Part
from hsm_endorser.worker_messages import (
    DIGEST_BYTES,
    Count,
    Counted,
    Failed,
    FoundKey,
    Generate,
    Generated,
    Keys,
    LeftOut,
    ListKeys,
    Look,
    NumberedReply,
    NumberedRequest,
    Open,
    Opened,
    PinSet,
    Reply,
    Request,
    Scheme,
    Seen,
    SetPin,
    Sign,
    Signatures,
)
from hsm_endorser.worker_program import RequestError, StartLock, clean, find_token, pin_of, serial, serve, word

P256_PARAMETERS: Final = bytes.fromhex("06082a8648ce3d030107")  # the OID prime256v1
ED25519_PARAMETERS: Final = b"\x13\x0cedwards25519"  # PrintableString (PKCS#11 v3.1, section 6.3.12)
ED25519_OID: Final = bytes.fromhex("06032b6570")
LADDER_SECONDS: Final = 40.0
"""How long templates may be tried: some modules make the whole key before they refuse it."""
RSA_EXPONENT: Final = (65537).to_bytes(3, "big")
SHA256_DIGEST_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017, section 9.2, note 1

MECHANISMS: Final[dict[Scheme, Mechanism]] = {
    "ecdsa-p256-sha256": Mechanism.ECDSA,
    "rsa-pkcs1-sha256": Mechanism.RSA_PKCS,
    "ed25519": Mechanism.EDDSA,
}
PRIVATE_TEMPLATE: Final = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.SIGN: True,
    Attribute.EXTRACTABLE: False,
    Attribute.MODIFIABLE: False,
    Attribute.COPYABLE: False,
    Attribute.DESTROYABLE: False,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
"""What every private key gets (requirement K-1); ALLOWED_MECHANISMS is added for its scheme.

MODIFIABLE and COPYABLE must be false too: a key that is merely sensitive can be given DERIVE later.
"""
PUBLIC_TEMPLATE: Final = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: False,
    Attribute.VERIFY: True,
    Attribute.MODIFIABLE: False,
    Attribute.COPYABLE: False,
    Attribute.DESTROYABLE: False,
    Attribute.ENCRYPT: False,
    Attribute.WRAP: False,
}


class Worker:
    """One session on one token."""

    def __init__(self) -> None:
        self._mapper = _attribute_mapper()
        self._session: Any = None
        self._keys: dict[bytes, tuple[Scheme, Any]] = {}
        self._without: dict[Scheme, frozenset[Part]] = {}
        """What of the template this token did not take, by scheme."""

    def answer(self, numbered: NumberedRequest) -> NumberedReply:
        """The reply under the number of its request."""
        return NumberedReply(numbered.number, self.handle(numbered.request))

    def handle(self, request: Request) -> Reply:
        """Do what is asked; every failure becomes a `Failed` without secrets."""
        try:
            return self._answer(request)
        except RequestError as error:
            return Failed(error.word, str(error))
        except PinFileError as error:
            return Failed("PinFile", str(error))
        except PKCS11Error as error:
            return Failed(word(error), clean(str(error)))
        except Exception as error:  # noqa: BLE001  whatever the module does must reach the parent as a reply
            # The text of an unforeseen error may hold anything: its type must do.
            return Failed("WorkerError", type(error).__name__)

    def _answer(self, request: Request) -> Reply:
        match request:
            case Open():
                return self._open(request)
            case ListKeys():
                return self._list_keys()
            case Generate():
                return self._generate(request)
            case Sign():
                return self._sign(request)
            case SetPin():
                return self._set_pin(request)
            case Look():
                return self._look(request)
            case Count():
                return self._count()

    def _open(self, request: Open) -> Opened:
        if self._session is not None:
            raise RequestError("AlreadyOpen", "a worker logs in once")
        with StartLock(request.module, request.lock_seconds):
            token = find_token(pkcs11.lib(request.module), request)
            pin = pin_of(request.pin, request.pin_file)
            self._session = token.open(rw=True, user_pin=pin, attribute_mapper=self._mapper)
            del pin
        return Opened(token.manufacturer_id, token.model, serial(token), token.label, int(token.flags))

    def _list_keys(self) -> Keys:
        session = self._require_session()
        # An open search blocks other calls: both lists are taken whole.
        private = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.SIGN: True}))
        public = list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY}))
        publics: dict[bytes, list[Any]] = {}
        for each in public:
            publics.setdefault(bytes(each[Attribute.ID]), []).append(each)
        counted = Counter(bytes(each[Attribute.ID]) for each in private)
        self._keys.clear()
        found: list[FoundKey] = []
        problems: list[str] = []
        for each in private:
            id_, label = bytes(each[Attribute.ID]), str(each[Attribute.LABEL])
            try:
                key = _describe(id_, label, _only_half(counted[id_], publics.get(id_, [])))
            except (RequestError, PKCS11Error) as error:
                problems.append(f"key {label!r} ({id_.hex() or 'no id'}): {clean(str(error)) or type(error).__name__}")
                continue
            self._keys[id_] = (key.scheme, each)
            found.append(key)
        return Keys(found, problems)

    def _generate(self, request: Generate) -> Generated:
        session = self._require_session()
        if request.id in self._keys:
            raise RequestError("DuplicateKey", f"there is a key with id {request.id.hex()} already")
        if not request.label.isprintable() or not request.label:
            raise RequestError("BadLabel", "a key's label must be printable text")
        public: dict[Attribute, Any] = {**PUBLIC_TEMPLATE}
        private = {**PRIVATE_TEMPLATE, Attribute.ALLOWED_MECHANISMS: [MECHANISMS[request.scheme]]}
        (public_half, private_half), without = self._strictest_pair(session, request, public, private)
        _require_custody(private_half)
        key = _describe(request.id, request.label, public_half)
        self._keys[request.id] = (key.scheme, private_half)
        left_out = [*_left_out("private", private_half, private, without)]
        left_out += _left_out("public", public_half, public, without)
        return Generated(key, left_out)

    def _strictest_pair(
        self, session: Any, request: Generate, public: dict[Attribute, Any], private: dict[Attribute, Any]
    ) -> tuple[tuple[Any, Any], frozenset[Part]]:
        """A new pair by the strictest template that the token takes, and what had to be left out of it."""
        known = self._without.get(request.scheme)
        steps = itertools.chain([known] if known else [], key_template.steps())
        first: PKCS11Error | None = None
        deadline = time.monotonic() + LADDER_SECONDS
        for without in steps:
            templates = (_less(public, "public", without), _less(private, "private", without))
            try:
                try:
                    pair = _new_pair(session, request, *templates)
                except PKCS11Error as error:
                    if first or word(error) not in key_template.VAGUE_REFUSALS:
                        raise
                    # It may have meant something else, and that may be over: nothing is given up for a chance.
                    pair = _new_pair(session, request, *templates)
            except PKCS11Error as error:
                first = first or error
                of_the_template = word(error) in key_template.REFUSALS | key_template.VAGUE_REFUSALS
                if not of_the_template or time.monotonic() > deadline:
                    raise first from None
                continue
            self._without[request.scheme] = without
            return pair, without
        raise first or RequestError("WorkerError", "no template was tried")

    def _sign(self, request: Sign) -> Signatures:
        self._require_session()
        if request.id not in self._keys:
            raise RequestError("NoSuchKey", f"there is no key with id {request.id.hex()} in this session")
        scheme, key = self._keys[request.id]
        mechanism = MECHANISMS[scheme]
        if scheme == "ed25519":
            return Signatures([bytes(key.sign(message, mechanism=mechanism)) for message in request.inputs])
        for digest in request.inputs:
            if len(digest) != DIGEST_BYTES:  # CKM_ECDSA would sign any length, and truncate
                raise RequestError("InputLength", f"{len(digest)} bytes where a digest of {DIGEST_BYTES} is expected")
        prefix = SHA256_DIGEST_INFO if scheme == "rsa-pkcs1-sha256" else b""
        return Signatures([bytes(key.sign(prefix + digest, mechanism=mechanism)) for digest in request.inputs])

    def _set_pin(self, request: SetPin) -> PinSet:
        self._require_session().set_pin(pin_of(request.old, request.old_file), request.new.value)
        return PinSet()

    def _look(self, request: Look) -> Seen:
        with StartLock(request.wanted.module, request.wanted.lock_seconds):
            token = find_token(pkcs11.lib(request.wanted.module), request.wanted)
            mechanisms = sorted(_mechanism_name(each) for each in token.slot.get_mechanisms())
        label, flags = token.label, int(token.flags)
        return Seen(token.manufacturer_id, token.model, serial(token), label, flags, mechanisms)

    def _count(self) -> Counted:
        objects = list(self._require_session().get_objects({}))
        labels = [str(each[Attribute.LABEL]) for each in objects if each[Attribute.CLASS] == ObjectClass.PRIVATE_KEY]
        return Counted(len(objects), sorted(labels))

    def _require_session(self) -> Any:
        if self._session is None:
            raise RequestError("NotOpen", "the token has not been opened")
        return self._session


def _mechanism_name(mechanism: Any) -> str:
    """Its name in the standard without CKM_; the number of one that the binding does not know."""
    return str(getattr(mechanism, "name", hex(int(mechanism))))


def _attribute_mapper() -> AttributeMapper:
    """The binding's mapper, taught to write a list of mechanisms."""

    def pack(mechanisms: Iterable[int]) -> bytes:
        size = ctypes.sizeof(ctypes.c_ulong)
        return b"".join(int(mechanism).to_bytes(size, sys.byteorder) for mechanism in mechanisms)

    def unpack(data: bytes) -> list[int]:
        size = ctypes.sizeof(ctypes.c_ulong)
        return [int.from_bytes(data[i : i + size], sys.byteorder) for i in range(0, len(data), size)]

    mapper = AttributeMapper()
    mapper.register_handler(Attribute.ALLOWED_MECHANISMS, pack, unpack)
    return mapper


def _less(template: dict[Attribute, Any], half: Half, without: frozenset[Part]) -> dict[Attribute, Any]:
    """A template with nothing said of some attributes: not even the binding's own defaults."""
    return {each: DEFAULT if (half, each.name) in without else value for each, value in template.items()}


def _new_pair(
    session: Any, request: Generate, public: dict[Attribute, Any], private: dict[Attribute, Any]
) -> tuple[Any, Any]:
    """The halves of a new key pair, by these templates."""
    names = {"id": request.id, "label": request.label, "store": True}
    if request.scheme == "rsa-pkcs1-sha256":
        templates = {
            "public_template": {**public, Attribute.PUBLIC_EXPONENT: RSA_EXPONENT},
            "private_template": private,
        }
        halves = session.generate_keypair(KeyType.RSA, request.rsa_bits, **names, **templates)
    else:
        kind, parameters = (
            (KeyType.EC, P256_PARAMETERS)
            if request.scheme == "ecdsa-p256-sha256"
            else (KeyType.EC_EDWARDS, ED25519_PARAMETERS)
        )
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: parameters}, local=True)
        halves = domain.generate_keypair(**names, public_template=public, private_template=private)
    public_half, private_half = halves
    return public_half, private_half


def _require_custody(private_half: Any) -> None:
    """Read back what no key may be without: some modules accept a template and ignore it."""
    for attribute, wanted in PRIVATE_TEMPLATE.items():
        if attribute.name in key_template.KEPT and (got := _reading(private_half, attribute)) != wanted:
            raise RequestError(
                "TemplateIgnored", f"the new key has {attribute.name}={got} where {wanted} was asked for; do not use it"
            )


def _left_out(half: Half, key: Any, template: dict[Attribute, Any], without: frozenset[Part]) -> Iterator[LeftOut]:
    """What the token did not take: it refused it, or took it and reads otherwise."""
    for attribute, wanted in sorted(template.items(), key=lambda each: each[0].name):
        reads = _reading(key, attribute)
        if (half, attribute.name) in without or reads != wanted:
            yield LeftOut(half, attribute.name, clean(str(reads)))


def _reading(half: Any, attribute: Attribute) -> Any:
    """What an attribute reads, or the return code of reading it."""
    try:
        return half[attribute]
    except PKCS11Error as error:
        return word(error)


def _only_half(privates: int, publics: list[Any]) -> Any:
    """The one public object of a key; a second one may be a look-alike that somebody planted."""
    if privates > 1 or len(publics) != 1:
        raise RequestError(
            "AmbiguousKey",
            f"{privates} private and {len(publics)} public objects share its id where one each is expected",
        )
    return publics[0]


def _describe(id_: bytes, label: str, public: Any) -> FoundKey:
    """What the public object says of a key; the parent builds the SubjectPublicKeyInfo and checks it."""
    kind = public[Attribute.KEY_TYPE]
    if kind == KeyType.RSA:
        modulus, exponent = bytes(public[Attribute.MODULUS]), bytes(public[Attribute.PUBLIC_EXPONENT])
        return FoundKey(id_, label, "rsa-pkcs1-sha256", modulus=modulus, exponent=exponent)
    parameters = bytes(public[Attribute.EC_PARAMS])
    point = _unwrapped(bytes(public[Attribute.EC_POINT]))
    if kind == KeyType.EC and parameters == P256_PARAMETERS:
        return FoundKey(id_, label, "ecdsa-p256-sha256", point=point)
    if kind == KeyType.EC_EDWARDS and parameters in {ED25519_PARAMETERS, ED25519_OID}:
        return FoundKey(id_, label, "ed25519", point=point)
    raise RequestError("UnknownScheme", f"neither ECDSA P-256 nor RSA nor Ed25519 (parameters {parameters.hex()})")


def _unwrapped(point: bytes) -> bytes:
    """The point inside the DER OCTET STRING in which tokens keep it; some give it bare."""
    if len(point) > 2 and point[0] == 0x04 and point[1] == len(point) - 2:  # noqa: PLR2004  tag, length, value
        return point[2:]
    return point


def main(descriptor: str, parent: str) -> None:
    """Serve the inherited socket."""
    serve(int(descriptor), int(parent), NumberedRequest, Worker().answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    # Finalising a module can hang; the kernel gives everything back.
    os._exit(0)
