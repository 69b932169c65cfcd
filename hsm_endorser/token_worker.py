"""The token worker: a process of its own that alone loads the PKCS#11 module, reads the PIN and holds the session.

    python -m hsm_endorser.token_worker DESCRIPTOR PARENT

It answers requests (`worker_messages`) on the inherited socket, one after the other, in one thread: the binding
crashes with two, modules crash by themselves, and calls can hang for ever. Whoever started it kills it then; a
new worker is the only recovery, since after re-initialisation stale handles can sign with another key.

The PIN goes from its file (or its message) into the login call and nowhere else. There is one login in the life of a
worker.
"""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.attributes import AttributeMapper
from pkcs11.exceptions import PKCS11Error

from hsm_endorser.errors import PinFileError
from hsm_endorser.failures import BY_NUMBER, UNKNOWN
from hsm_endorser.pin import read_pin
from hsm_endorser.worker_messages import (
    DIGEST_BYTES,
    FRAME_LENGTH,
    MAX_FRAME,
    Failed,
    FoundKey,
    Generate,
    Generated,
    Keys,
    ListKeys,
    NumberedReply,
    NumberedRequest,
    Open,
    Opened,
    Pin,
    PinSet,
    Reply,
    Request,
    Scheme,
    SetPin,
    Sign,
    Signatures,
    frame,
)

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
LOCK_POLL_SECONDS: Final = 0.01
P256_PARAMETERS: Final = bytes.fromhex("06082a8648ce3d030107")  # the OID prime256v1
ED25519_PARAMETERS: Final = b"\x13\x0cedwards25519"  # PrintableString (PKCS#11 v3.1, section 6.3.12)
ED25519_OID: Final = bytes.fromhex("06032b6570")
RSA_BITS: Final = 3072
RSA_EXPONENT: Final = (65537).to_bytes(3, "big")
SHA256_DIGEST_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017, section 9.2, note 1

BY_TEXT: Final = {
    "Buffer was too small": "BufferTooSmall",
    "Initialisation error (already": "CryptokiAlreadyInitialized",
    "Initialisation error (not": "CryptokiNotInitialized",
    "Parallel not supported": "SessionParallelNotSupported",
    "User type invalid": "UserTypeInvalid",
}
"""Return codes for which the binding has a text and no exception of their own."""
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


class RequestError(Exception):
    """A request that the worker does not pass on to the token, and why."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


class Worker:
    """One session on one token."""

    def __init__(self) -> None:
        self._mapper = _attribute_mapper()
        self._session: Any = None
        self._keys: dict[bytes, tuple[Scheme, Any]] = {}

    def handle(self, request: Request) -> Reply:
        """Do what is asked; every failure becomes a `Failed` without secrets."""
        try:
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
        except RequestError as error:
            return Failed(error.word, str(error))
        except PinFileError as error:
            return Failed("PinFile", str(error))
        except PKCS11Error as error:
            return Failed(_code(error), _clean(str(error)))
        except Exception as error:  # noqa: BLE001  whatever the module does must reach the parent as a reply
            # The text of an unforeseen error may hold anything: its type must do.
            return Failed("WorkerError", type(error).__name__)

    def _open(self, request: Open) -> Opened:
        if self._session is not None:
            raise RequestError("AlreadyOpen", "a worker logs in once")
        with _StartLock(request.module, request.lock_seconds):
            token = _find_token(pkcs11.lib(request.module), request)
            pin = _pin(request.pin, request.pin_file)
            self._session = token.open(rw=True, user_pin=pin, attribute_mapper=self._mapper)
            del pin
        return Opened(token.manufacturer_id, token.model, _serial(token), token.label, int(token.flags))

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
                problems.append(f"key {label!r} ({id_.hex() or 'no id'}): {_clean(str(error)) or type(error).__name__}")
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
        private: dict[Attribute, Any] = {
            **PRIVATE_TEMPLATE,
            Attribute.ALLOWED_MECHANISMS: [MECHANISMS[request.scheme]],
        }
        names = {"id": request.id, "label": request.label, "store": True}
        templates = {"public_template": public, "private_template": private}
        if request.scheme == "rsa-pkcs1-sha256":
            public[Attribute.PUBLIC_EXPONENT] = RSA_EXPONENT
            halves = session.generate_keypair(KeyType.RSA, RSA_BITS, **names, **templates)
        else:
            kind, parameters = (
                (KeyType.EC, P256_PARAMETERS)
                if request.scheme == "ecdsa-p256-sha256"
                else (KeyType.EC_EDWARDS, ED25519_PARAMETERS)
            )
            domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: parameters}, local=True)
            halves = domain.generate_keypair(**names, **templates)
        public_half, private_half = halves
        _check_template(private_half, private)
        key = _describe(request.id, request.label, public_half)
        self._keys[request.id] = (key.scheme, private_half)
        return Generated(key)

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
        self._require_session().set_pin(_pin(request.old, request.old_file), request.new.value)
        return PinSet()

    def _require_session(self) -> Any:
        if self._session is None:
            raise RequestError("NotOpen", "the token has not been opened")
        return self._session


def _pin(pin: Pin | None, file: str | None) -> str:
    """The PIN itself, given or read; raises `PinFileError`."""
    if pin is not None:
        return pin.value
    if file is None:
        raise RequestError("Locked", "nobody has entered the PIN since the start; run: hsm-endorser device unlock")
    return read_pin(Path(file))


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


def _check_template(private_half: Any, template: dict[Attribute, Any]) -> None:
    """Read back what was asked for: some modules accept a template and ignore it."""
    for attribute, wanted in template.items():
        if attribute is Attribute.ALLOWED_MECHANISMS:
            continue  # not readable on every module; the custody audit tries other mechanisms instead
        got = private_half[attribute]
        if got != wanted:
            raise RequestError(
                "TemplateIgnored", f"the new key has {attribute.name}={got} where {wanted} was asked for; do not use it"
            )


def _find_token(library: Any, wanted: Open) -> Any:
    tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    tokens = [token for token in tokens if token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED]
    found = [token for token in tokens if _matches(token, wanted)]
    if len(found) > 1:
        raise RequestError("AmbiguousToken", f"{len(found)} tokens match the URI; add serial= to it")
    if found:
        return found[0]
    same_name = [token for token in tokens if wanted.token is not None and token.label == wanted.token]
    if same_name:
        other = same_name[0]
        raise RequestError(
            "TokenSwapped",
            f"the token {wanted.token!r} here is {other.manufacturer_id} {other.model} serial {_serial(other)}, "
            "which is not the one that the URI names",
        )
    raise RequestError("NoSuchToken", f"none of the {len(tokens)} tokens that the module shows matches the URI")


def _matches(token: Any, wanted: Open) -> bool:
    return all(
        expected is None or expected == got
        for expected, got in (
            (wanted.token, token.label),
            (wanted.manufacturer, token.manufacturer_id),
            (wanted.model, token.model),
            (wanted.serial, _serial(token)),
            (wanted.slot_id, token.slot.slot_id),
        )
    )


def _serial(token: Any) -> str:
    return bytes(token.serial).decode("ascii", "replace").strip()


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


def _code(error: PKCS11Error) -> str:
    """The word for a return code, as `failures` spells it."""
    if type(error) is not PKCS11Error:
        return type(error).__name__
    text = str(error)
    if known := next((word for start, word in BY_TEXT.items() if text.startswith(start)), None):
        return known
    try:
        number = int(text.rpartition(" ")[2], 16)  # "Unmapped error code 0x68"
    except ValueError:
        return UNKNOWN
    return BY_NUMBER[number].word if number in BY_NUMBER else UNKNOWN


def _clean(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:300]


class _StartLock:
    """Workers that start at the same moment disturb each other inside the module: one after the other, then.

    The module's own file is the lock, so that all programs on the machine that know this habit share it. It is a
    courtesy: after `seconds` the worker goes on without, since a hung neighbour must not stop this token.
    """

    def __init__(self, module: str, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        try:
            self._file = os.open(module, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RequestError("NoModule", f"the PKCS#11 module {module} cannot be read: {error.strerror}") from None

    def __enter__(self) -> None:
        while time.monotonic() < self._deadline:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(LOCK_POLL_SECONDS)
            else:
                return

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def _isolate(parent: int) -> None:
    """No core dump, no debugger, and no life without the parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was asked for
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop


def _receive(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side closes."""
    decoder = msgspec.msgpack.Decoder(NumberedRequest)
    worker = Worker()
    while True:
        head = _receive(connection, FRAME_LENGTH.size)
        if head is None:
            return
        (length,) = FRAME_LENGTH.unpack(head)
        if length > MAX_FRAME:
            return
        body = _receive(connection, length)
        if body is None:
            return
        request = decoder.decode(body)
        connection.sendall(frame(NumberedReply(request.number, worker.handle(request.request))))


def main(descriptor: str, parent: str) -> None:
    """Serve the inherited socket."""
    _isolate(int(parent))
    with socket.socket(fileno=int(descriptor)) as connection:
        serve(connection)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    # Finalising a module can hang; the kernel gives everything back.
    os._exit(0)
