"""PKCS#11 URIs (RFC 7512): everything that differs between tokens stands in one (requirement E-18).

    pkcs11:token=device-a;serial=5a1f?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/device-a/pin

A PIN never stands in a URI: `pin-value` is refused, and `pin-source` names a file (requirement S-6). Without a
`pin-source` the device starts locked, until an operator enters the PIN.
"""

import re
import urllib.parse
from pathlib import Path
from typing import Any, Final

import msgspec

from hsm_endorser.errors import UriError

SCHEME: Final = "pkcs11:"
MAX_LENGTH: Final = 4096
_NAMES: Final = {
    "token": "token",
    "manufacturer": "manufacturer",
    "model": "model",
    "serial": "serial",
    "object": "object",
    "id": "id",
    "type": "type",
    "slot-id": "slot_id",
}
_WIDTHS: Final = {"token": 32, "manufacturer": 32, "model": 16, "serial": 16}
"""Bytes that CK_TOKEN_INFO has for each (PKCS#11 v3.1, section 3.2)."""
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_SAFE: Final = ":[]@!$'()*+,=&-._~"
_QUERY_SAFE: Final = _PATH_SAFE.replace("&", "") + "/?|"


class TokenUri(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed URI. What is None was not named and matches any token."""

    module: Path
    pin_file: Path | None = None
    """Where the PIN stands. None: the device starts locked, and an operator enters the PIN."""
    token: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    slot_id: int | None = None
    object: str | None = None
    id: bytes | None = None
    type: str | None = None

    @staticmethod
    def parse(text: str, *, base: Path | None = None) -> "TokenUri":
        """The URI in `text`; relative file names are relative to `base`. Raises `UriError`."""
        if len(text) > MAX_LENGTH:
            raise UriError(f"the PKCS#11 URI has {len(text)} characters where at most {MAX_LENGTH} are allowed")
        if not text.startswith(SCHEME):
            # Not shown: whoever confuses the fields may have put a secret here.
            raise UriError("the token's uri must start with 'pkcs11:' (RFC 7512)")
        path, _, query = text.removeprefix(SCHEME).partition("?")
        query_attributes = _attributes(query, "&")
        if "pin-value" in query_attributes or "pin-value" in _attributes(path, ";"):
            raise UriError(
                "pin-value puts the PIN into configuration files, where everybody reads it: "
                "write the PIN into a file of mode 0600 and name it with pin-source=file:/path/to/pin"
            )
        named = _path_values(_attributes(path, ";"))
        if not named.keys() & {"token", "serial", "slot_id"}:
            raise UriError("the URI names no token; write token=LABEL, serial=SERIAL or both after 'pkcs11:'")
        unknown = sorted(query_attributes.keys() - {"module-path", "pin-source"})
        if unknown:
            raise UriError(f"query attribute {unknown[0]!r} is not known; known are module-path and pin-source")
        return TokenUri(
            module=_file(query_attributes, "module-path", "/usr/lib/…/module.so", base),
            pin_file=_pin_file(query_attributes, base),
            **named,
        )

    def format(self) -> str:
        """The URI as text; `parse` gives an equal value back."""
        values = {name: getattr(self, field) for name, field in _NAMES.items()}
        path = ";".join(f"{name}={_quote(value)}" for name, value in values.items() if value is not None)
        module = urllib.parse.quote(str(self.module), safe=_QUERY_SAFE)
        text = f"{SCHEME}{path}?module-path={module}"
        if self.pin_file is None:
            return text
        return f"{text}&pin-source=file:{urllib.parse.quote(str(self.pin_file), safe=_QUERY_SAFE)}"


def _attributes(part: str, separator: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for attribute in filter(None, part.split(separator)):
        name, equals, value = attribute.partition("=")
        if not equals:
            raise UriError(f"attribute {name!r} of the PKCS#11 URI has no value")
        if name in found:
            raise UriError(f"attribute {name!r} stands twice in the PKCS#11 URI")
        found[name] = value
    return found


def _path_values(attributes: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, escaped in attributes.items():
        field = _NAMES.get(name)
        if field is None:
            raise UriError(f"path attribute {name!r} is not known; known are {', '.join(_NAMES)}")
        if name == "id":
            _check_escapes(escaped)
            values[field] = urllib.parse.unquote_to_bytes(escaped)
        elif name == "slot-id":
            if not re.fullmatch(r"[0-9]{1,19}", escaped):
                raise UriError(f"slot-id={escaped!r} is no decimal number")
            values[field] = int(escaped)
        else:
            values[field] = _text(name, escaped)
    return values


def _text(name: str, escaped: str) -> str:
    _check_escapes(escaped)
    try:
        value = urllib.parse.unquote(escaped, errors="strict")
    except UnicodeDecodeError:
        raise UriError(f"attribute {name!r} is not UTF-8") from None
    if len(value.encode()) > _WIDTHS.get(name, MAX_LENGTH):
        raise UriError(f"attribute {name!r} is longer than the {_WIDTHS[name]} bytes that tokens have for it")
    if "\0" in value:
        raise UriError(f"attribute {name!r} contains a zero byte")
    return value


def _check_escapes(escaped: str) -> None:
    if _ESCAPE.search(escaped):
        raise UriError(f"{escaped!r} contains a '%' that starts no escape")


def _file(attributes: dict[str, str], name: str, example: str, base: Path | None) -> Path:
    if not attributes.get(name):
        raise UriError(f"the URI lacks {name}; write ?{name}={example}")
    path = Path(_text(name, attributes[name]))
    if path.is_absolute():
        return path
    if base is None:
        raise UriError(f"{name}={path} is relative; write the absolute path")
    return base / path


def _pin_file(attributes: dict[str, str], base: Path | None) -> Path | None:
    if "pin-source" not in attributes:
        return None
    source = _text("pin-source", attributes.get("pin-source", ""))
    if not source.startswith("file:"):
        raise UriError("the PIN comes from a file only; write pin-source=file:/path/to/pin (mode 0600)")
    plain = {"pin-source": urllib.parse.quote(source.removeprefix("file:").removeprefix("//"))}
    return _file(plain, "pin-source", "file:/path/to/pin", base)


def _quote(value: str | bytes | int) -> str:
    if isinstance(value, bytes):
        return "".join(f"%{byte:02x}" for byte in value)
    return urllib.parse.quote(str(value), safe=_PATH_SAFE)
