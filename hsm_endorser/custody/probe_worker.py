"""The probe worker: a process of its own that may do a token harm, for the custody audit (docs/adr/0006).

    python -m hsm_endorser.custody.probe_worker DESCRIPTOR PARENT

It answers thin requests (`probe_messages`) on the inherited socket, in one thread, and judges nothing: attributes are
numbers and bytes on their way in and out, and every answer is what the module returned. No service ever talks to it,
and it never has a service's session.

All work happens in session 0, which is opened without a PIN. The login has a session of its own, so that what was
found before is still at hand after a logout.
"""

import ctypes
import itertools
import os
import sys
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType
from pkcs11 import _pkcs11 as binding
from pkcs11.attributes import AttributeMapper
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import PKCS11Error

from hsm_endorser.custody import probe_messages as say
from hsm_endorser.errors import PinFileError
from hsm_endorser.failures import BY_NUMBER, UNKNOWN
from hsm_endorser.worker_messages import Failed, Open, Pin
from hsm_endorser.worker_program import RequestError, StartLock, clean, find_token, pin_of, serial, serve, word

GET_MECHANISM_INFO: Final = 8
SIGN_INIT: Final = 42
SIGN: Final = 43
"""Places in CK_FUNCTION_LIST of what is called past the binding."""
MOST_SIGNATURE_BYTES: Final = 4096
RAW_MECHANISM: Final = pkcs11.Mechanism.AES_ECB_ENCRYPT_DATA
"""The binding takes the data for its parameter, and makes the structure itself."""


class _Raw(AttributeMapper):
    """Values are bytes already, so that no packing can fail in the middle of a template (which aborts the process);
    and nothing is added to a template.
    """

    def pack_attribute(self, _key: Any, value: Any) -> bytes:
        return bytes(value)

    def unpack_attributes(self, key: Any, value: bytes) -> Any:
        return int.from_bytes(value, sys.byteorder) if key == Attribute.CLASS else bytes(value)

    def _nothing(self, *_arguments: Any, **_options: Any) -> dict[Attribute, Any]:
        return {}

    public_key_template = private_key_template = secret_key_template = generic_key_template = _nothing


class _WithSession:
    """Which session an object is used in, and no default mechanism for it."""

    key_type = None

    def __init__(self, wrapper: Any, session: Any) -> None:
        self.wrapper = wrapper
        self._session = session

    @property
    def session(self) -> Any:
        return self._session


_Object: Final[Any] = type(
    "_Object",
    (
        _WithSession,
        *(getattr(binding, name) for name in ("SecretKey", "EncryptMixin", "DecryptMixin", "SignMixin", "WrapMixin")),
        *(getattr(binding, name) for name in ("UnwrapMixin", "DeriveMixin", "Object")),
    ),
    {},
)
"""Any object, with every function: the binding hides those that the attributes deny, but the token must refuse."""


class _CkMechanism(ctypes.Structure):
    _fields_ = (("mechanism", ctypes.c_ulong), ("parameter", ctypes.c_void_p), ("length", ctypes.c_ulong))


class _CkMechanismInfo(ctypes.Structure):
    _fields_ = (("least", ctypes.c_ulong), ("most", ctypes.c_ulong), ("flags", ctypes.c_ulong))


class Worker:
    """One token, sessions on it, and the objects that were met."""

    def __init__(self) -> None:
        self._token: Any = None
        self._pin: tuple[Pin | None, str | None] = (None, None)
        self._logged_in: Any = None
        self._refused = False
        self._sessions: dict[int, Any] = {}
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._next = itertools.count(1)
        self._functions: Any = None
        self._kept: list[Any] = []

    def answer(self, numbered: say.NumberedProbe) -> say.NumberedFinding:
        """The reply under the number of its request."""
        return say.NumberedFinding(numbered.number, self.handle(numbered.request))

    def handle(self, request: say.ProbeRequest) -> say.ProbeReply:
        """Make the call; every failure becomes a `Failed` without secrets."""
        try:
            return self._handle(request)
        except RequestError as error:
            return Failed(error.word, str(error))
        except PinFileError as error:
            return Failed("PinFile", str(error))
        except PKCS11Error as error:
            return Failed(word(error), clean(str(error)))
        except Exception as error:  # noqa: BLE001  whatever the module does must reach the parent as a reply
            return Failed("WorkerError", type(error).__name__)
        finally:
            self._kept.clear()

    def _handle(self, request: say.ProbeRequest) -> say.ProbeReply:  # noqa: C901, PLR0912  one case a function
        match request:
            case Open():
                return self._open(request)
            case say.Login():
                return self._login()
            case say.Logout():
                return self._logout()
            case say.OpenSession():
                session = self._opened.open(rw=request.writable, attribute_mapper=_Raw())
                return say.Number(self._remember(session))
            case say.CloseSession():
                self._at(request.session).close()
                del self._sessions[request.session]
                return say.Done()
            case say.ListMechanisms():
                return self._mechanisms()
            case say.Find():
                found = list(self._at(request.session).get_objects(dict(request.template), batch_size=64))
                return say.Numbers([self._number(each) for each in found])
            case say.Read():
                value = self._value(request.object, request.attribute)
                return say.Bytes(value) if request.keep else say.Number(len(value))
            case say.ReadMany():
                return say.Attributes([self._read(request.object, each) for each in request.attributes])
            case say.Write():
                self._object(request.object)[request.attribute] = request.value
                return say.Done()
            case say.Destroy():
                self._destroy(request.object)
                return say.Done()
            case say.Random():
                return say.Bytes(self._at(0).generate_random(request.length * 8))
            case say.Copy() | say.Create() | say.GenerateKey() | say.GeneratePair() | say.Unwrap() | say.Derive():
                return self._make(request)
            case _:
                return self._use(request)

    def _open(self, request: Open) -> say.TokenInfo:
        if self._token is not None:
            raise RequestError("AlreadyOpen", "a worker opens one token")
        with StartLock(request.module, request.lock_seconds):
            library = pkcs11.lib(request.module)
            self._token = token = find_token(library, request)
            self._sessions[0] = token.open(rw=True, attribute_mapper=_Raw())
        self._pin = (request.pin, request.pin_file)
        self._functions = _functions(request.module)
        slot = token.slot
        return say.TokenInfo(
            manufacturer=token.manufacturer_id,
            model=token.model,
            serial=serial(token),
            label=token.label,
            flags=int(token.flags),
            hardware=token.hardware_version,
            firmware=token.firmware_version,
            slot=slot.slot_id,
            slot_description=slot.slot_description,
            slot_manufacturer=slot.manufacturer_id,
            slot_flags=int(slot.flags),
            library=library.library_description,
            library_manufacturer=library.manufacturer_id,
            library_version=library.library_version,
            cryptoki=library.cryptoki_version,
        )

    @property
    def _opened(self) -> Any:
        if self._token is None:
            raise RequestError("NotOpen", "the token has not been opened")
        return self._token

    def _login(self) -> say.Done:
        if self._refused:
            raise RequestError("PinRefused", "the token refused this PIN; it is not given again")
        pin = pin_of(*self._pin)
        self._refused = True
        self._logged_in = self._opened.open(rw=True, user_pin=pin, attribute_mapper=_Raw())
        self._refused = False
        return say.Done()

    def _logout(self) -> say.Done:
        if self._logged_in is None:
            raise RequestError("NotOpen", "nobody is logged in")
        self._logged_in.close()  # C_Logout, and C_CloseSession of the session that logged in
        self._logged_in = None
        return say.Done()

    def _mechanisms(self) -> say.Mechanisms:
        slot = self._opened.slot
        found = []
        for each in sorted(slot.get_mechanisms()):
            name = each.name.lstrip("_") if isinstance(each, pkcs11.Mechanism) else f"{each:#010x}"
            # Not by the binding: SoftHSM adds its flags to whatever stood in the memory that it is given.
            info = _CkMechanismInfo(0, 0, 0)
            failure = self._functions(GET_MECHANISM_INFO)(
                ctypes.c_ulong(slot.slot_id), ctypes.c_ulong(int(each)), ctypes.byref(info)
            )
            if failure:
                found.append(say.MechanismInfo(int(each), name, 0, 0, 0, _failed(failure).ckr))
            else:
                found.append(say.MechanismInfo(int(each), name, info.least, info.most, info.flags))
        return say.Mechanisms(found)

    def _value(self, number: int, attribute: int) -> bytes:
        value = self._object(number)[attribute]
        # The class alone is a number: the binding compares it with numbers of its own.
        return value.to_bytes(ctypes.sizeof(ctypes.c_ulong), sys.byteorder) if isinstance(value, int) else bytes(value)

    def _read(self, number: int, attribute: int) -> say.Bytes | Failed:
        try:
            return say.Bytes(self._value(number, attribute))
        except PKCS11Error as error:
            return Failed(word(error), clean(str(error)))

    def _destroy(self, number: int) -> None:
        each = self._object(number)
        each.destroy()
        del self._objects[number]  # the module may give the handle to another object now
        del self._numbers[each.handle]

    def _make(
        self,
        request: say.Copy | say.Create | say.GenerateKey | say.GeneratePair | say.Unwrap | say.Derive,
    ) -> say.Number | say.Numbers:
        session = self._at(0)
        match request:
            case say.Copy():
                made = self._object(request.object).copy(request.template)
            case say.Create():
                made = session.create_object(request.template)
            case say.GenerateKey():
                # DES2 is the binding's word for "do not add a length"; the mechanism says what is made.
                made = session.generate_key(
                    KeyType.DES2, capabilities=0, template=request.template, **self._by(request.mechanism)
                )
            case say.GeneratePair():
                public, private = session._generate_keypair(  # noqa: SLF001  the public one adds attributes for RSA
                    KeyType.EC,
                    capabilities=0,
                    public_template=request.public,
                    private_template=request.private,
                    **self._by(request.mechanism),
                )
                return say.Numbers([self._number(public), self._number(private)])
            case say.Unwrap():
                made = self._object(request.unwrapping).unwrap_key(
                    pkcs11.ObjectClass.SECRET_KEY,
                    KeyType.AES,
                    request.wrapped,
                    capabilities=0,
                    template=request.template,
                    **self._by(request.mechanism),
                )
            case say.Derive():
                added: dict[int, Any] = {Attribute.KEY_TYPE: DEFAULT, Attribute.VALUE_LEN: DEFAULT}
                made = self._object(request.key).derive_key(
                    KeyType.AES,
                    0,
                    capabilities=0,
                    template={**added, **request.template},
                    **self._by(request.mechanism),
                )
        return say.Number(self._number(made))

    def _use(
        self, request: say.Wrap | say.Encrypt | say.Decrypt | say.SignEach | say.BeginSign | say.FinishSign
    ) -> say.ProbeReply:
        match request:
            case say.Wrap():
                wrapping, key = self._object(request.wrapping), self._object(request.key)
                out = bytes(wrapping.wrap_key(key, **self._by(request.mechanism)))
                return say.Bytes(out) if request.keep else say.Number(len(out))
            case say.Encrypt():
                key = self._object(request.key)
                return say.Bytes(bytes(key._encrypt(request.data, **self._by(request.mechanism))))  # noqa: SLF001  one call, not chunks
            case say.Decrypt():
                key = self._object(request.key)
                return say.Bytes(bytes(key._decrypt(request.data, **self._by(request.mechanism))))  # noqa: SLF001  one call, not chunks
            case say.SignEach():
                key = _Object(self._object(request.key).wrapper, self._at(request.session))
                by = self._by(request.mechanism)
                return say.Several([bytes(key._sign(each, **by)) for each in request.inputs])  # noqa: SLF001  one call, not chunks
            case say.BeginSign():
                return self._begin_sign(request)
            case say.FinishSign():
                return self._finish_sign(request)

    def _begin_sign(self, request: say.BeginSign) -> say.Done | Failed:
        parameter = self._parameter(request.mechanism)
        mechanism = _CkMechanism(request.mechanism.number, None, 0)
        if parameter is not None:
            buffer = ctypes.create_string_buffer(parameter, len(parameter))
            mechanism.parameter, mechanism.length = ctypes.addressof(buffer), len(parameter)
        key = self._object(request.key)
        code = self._functions(SIGN_INIT)(
            ctypes.c_ulong(self._at(request.session).handle), ctypes.byref(mechanism), ctypes.c_ulong(key.handle)
        )
        return say.Done() if code == 0 else _failed(code)

    def _finish_sign(self, request: say.FinishSign) -> say.Bytes | Failed:
        out = ctypes.create_string_buffer(MOST_SIGNATURE_BYTES)
        length = ctypes.c_ulong(MOST_SIGNATURE_BYTES)
        code = self._functions(SIGN)(
            ctypes.c_ulong(self._at(request.session).handle),
            request.input,
            ctypes.c_ulong(len(request.input)),
            out,
            ctypes.byref(length),
        )
        return say.Bytes(out.raw[: length.value]) if code == 0 else _failed(code)

    def _by(self, mechanism: say.Mechanism) -> dict[str, Any]:
        """The mechanism as the binding takes it; a vendor's own number is as good as any."""
        try:
            named = pkcs11.Mechanism(mechanism.number)
        except ValueError:
            named = int.__new__(pkcs11.Mechanism, mechanism.number)
        if named == RAW_MECHANISM:
            return {"mechanism": named, "mechanism_param": next(iter(mechanism.pointed.values()), b"")}
        return {"mechanism": named, "mechanism_param": self._parameter(mechanism)}

    def _parameter(self, mechanism: say.Mechanism) -> bytes | None:
        """The parameter with the addresses in it; what they point to is kept until the call is over."""
        if mechanism.parameter is None:
            return None
        parameter = bytearray(mechanism.parameter)
        for offset, value in mechanism.pointed.items():
            buffer = ctypes.create_string_buffer(value, len(value))
            self._kept.append(buffer)
            size = ctypes.sizeof(ctypes.c_void_p)
            parameter[offset : offset + size] = ctypes.addressof(buffer).to_bytes(size, sys.byteorder)
        return bytes(parameter)

    def _at(self, session: int) -> Any:
        if session not in self._sessions:
            raise RequestError("NotOpen", f"there is no session {session}")
        return self._sessions[session]

    def _remember(self, session: Any) -> int:
        number = next(self._next)
        self._sessions[number] = session
        return number

    def _number(self, found: Any) -> int:
        number = self._numbers.get(found.handle) or next(self._next)
        self._numbers[found.handle] = number
        self._objects[number] = _Object(found.wrapper, self._at(0))
        return number

    def _object(self, number: int) -> Any:
        if number not in self._objects:
            raise RequestError("NoSuchObject", f"there is no object {number}")
        return self._objects[number]


def _failed(code: int) -> Failed:
    return Failed(BY_NUMBER[code].word if code in BY_NUMBER else UNKNOWN, f"{code:#x}")


def _functions(module: str) -> Any:
    """The functions of the module that is loaded already, by their place in CK_FUNCTION_LIST."""
    start = ctypes.c_void_p()
    if ctypes.CDLL(module).C_GetFunctionList(ctypes.byref(start)) or not start.value:
        raise RequestError("WorkerError", "the module shows no list of functions")
    size = ctypes.sizeof(ctypes.c_void_p)
    first = start.value + size  # after the version, which is padded to the size of a pointer

    def function(place: int) -> Any:
        return ctypes.CFUNCTYPE(ctypes.c_ulong)(ctypes.c_size_t.from_address(first + place * size).value)

    return function


def main(descriptor: str, parent: str) -> None:
    """Serve the inherited socket."""
    serve(int(descriptor), int(parent), say.NumberedProbe, Worker().answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    # Finalising a module can hang; the kernel gives everything back.
    os._exit(0)
