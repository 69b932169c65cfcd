"""An administrator's own key as something that signs: in a file, or on a PKCS#11 token that never gives it away.

    /media/anna/anna.key                        a software key (`cli.keys`)
    pkcs11:token=anna?module-path=…             a token; its PIN comes from the URI's pin-source, or is asked for

Where a key is held stands in `administrators/NAME.held` of a network folder, when it is not in the folder itself.
"""

import asyncio
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from cli import secret
from cli.errors import UsageError
from cli.keys import SoftwareKey
from cli.plan import write_settings
from protocol.envelope import Signature
from protocol.keys import PublicKey, low_s

URI: Final = "pkcs11:"
HELD: Final = ".held"
AskPin = Callable[[str], Awaitable[str]]
"""Asks for the PIN of what is named."""


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a private key is: the path of its file or a pkcs11: URI, and what the token's module needs."""

    where: str
    public_key: str
    """Which key it must be: its SubjectPublicKeyInfo, hexadecimal."""
    environment: dict[str, str] = {}


class Signer(Protocol):
    """What signs for one person."""

    public: PublicKey

    async def sign(self, payload: bytes, payload_type: str) -> Signature:
        """The signature over the pre-authentication encoding, ECDSA with a low s."""

    async def close(self) -> None:
        """Let go of the key."""


class FileSigner:
    """A software key of a client or an administrator."""

    def __init__(self, key: SoftwareKey) -> None:
        self._key = key
        self.public = key.public

    async def sign(self, payload: bytes, payload_type: str) -> Signature:
        """See `Signer`."""
        signature = self._key.sign(payload, payload_type)
        return Signature(signature.keyid, low_s(signature.sig))

    async def close(self) -> None:
        """See `Signer`."""


async def open_signer(
    who: str, where: str, public: PublicKey, *, environment: Mapping[str, str], base: Path, ask_pin: AskPin
) -> Signer:
    """The key of `who`, which must be `public`; relative paths are relative to the folder `base`.

    Raises `UsageError` for another key, `CommandError` when a token does not give access to it.
    """
    if where.startswith(URI):
        from cli import token_signer  # noqa: PLC0415  PKCS#11 is needed from here on

        return await token_signer.open_signer(who, where, public, environment=environment, base=base, ask_pin=ask_pin)
    signer = FileSigner(SoftwareKey.load(base / where))
    if signer.public != public:
        raise UsageError(
            f"{base / where} is not the key of {who}: its id is {signer.public.id[:16]}…, "
            f"the declared one has {public.id[:16]}…"
        )
    return signer


def read_held(path: Path) -> Held:
    """What `administrators/NAME.held` says; raises `UsageError`."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Held)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}") from None


def reachable(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The administrators of a network folder, those first whose keys it holds or knows the place of."""
    known = [name for name in names if is_reachable(folder, name)]
    return (*known, *(name for name in names if name not in known))


def is_reachable(folder: Path, name: str) -> bool:
    """Whether a network folder holds an administrator's key, or knows the place of it."""
    place = folder / "administrators"
    return (place / f"{name}.key").exists() or (place / f"{name}{HELD}").exists()


def held_elsewhere(folder: Path, name: str) -> Held | None:
    """Where an administrator's key is; None when it is in the network folder itself. Raises `UsageError`."""
    place = folder / "administrators"
    path = place / f"{name}{HELD}"
    return None if (place / f"{name}.key").exists() or not path.exists() else read_held(path)


def write_held(folder: Path, name: str, held: Held) -> None:
    """Write down where an administrator's key is from now on: the file is there whole, or as it was."""
    path = folder / "administrators" / f"{name}{HELD}"
    fresh = path.with_name(f".{path.name}")
    write_settings(fresh, msgspec.to_builtins(held))
    fresh.replace(path)


def next_key(folder: Path, name: str, held: Held) -> PublicKey:
    """The key that follows an administrator's on the token that holds it; raises `UsageError`, `CommandError`."""
    from cli import token_signer  # noqa: PLC0415  PKCS#11 is needed from here on

    old, base = PublicKey.load(bytes.fromhex(held.public_key)), folder / "administrators"
    made = token_signer.next_key(name, held.where, old, environment=held.environment, base=base, ask_pin=_ask_pin)
    return asyncio.run(made)


def sign_as(folder: Path, name: str, held: Held, payload: bytes, payload_type: str) -> Signature:
    """The signature of an administrator by a key that is held elsewhere; raises `UsageError`, `CommandError`."""
    return asyncio.run(_sign_once(_open(folder / "administrators", name, held), payload, payload_type))


def sign(folder: Path, names: Sequence[str], payload: bytes, payload_type: str) -> tuple[Signature, ...]:
    """The signatures of administrators of a network folder, in order, each by the key where it is held.

    Raises `UsageError` when a key is not where it should be, `CommandError` when a token does not sign.
    """
    return asyncio.run(_sign(folder / "administrators", names, payload, payload_type))


async def _sign(place: Path, names: Sequence[str], payload: bytes, payload_type: str) -> tuple[Signature, ...]:
    return tuple([await _sign_once(_signer(place, name), payload, payload_type) for name in names])


async def _sign_once(opening: Awaitable[Signer], payload: bytes, payload_type: str) -> Signature:
    signer = await opening
    try:
        return await signer.sign(payload, payload_type)
    finally:
        await signer.close()


async def _signer(place: Path, name: str) -> Signer:
    held = held_elsewhere(place.parent, name)
    if held is None:
        return FileSigner(SoftwareKey.load(place / f"{name}.key"))
    return await _open(place, name, held)


async def _open(place: Path, name: str, held: Held) -> Signer:
    public = PublicKey.load(bytes.fromhex(held.public_key))
    return await open_signer(name, held.where, public, environment=held.environment, base=place, ask_pin=_ask_pin)


async def _ask_pin(what: str) -> str:
    return await asyncio.to_thread(secret.ask, f"PIN of {what}")
