"""How `hsm-endorser custody audit` reaches a token: through a device that runs, in its place while it stands still, or
directly, for a token that is no device's.
"""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from cli.device_control import DeviceControl
from cli.errors import CommandError, UnreachableError
from cli.exit_codes import USAGE
from cli.secret import ask
from hsm_endorser import guard_chain
from hsm_endorser.config import Config, load
from hsm_endorser.custody.audit import audit
from hsm_endorser.custody.profile import Profile
from hsm_endorser.custody.statement import AuditOrder, audit_device, encode
from hsm_endorser.errors import DeviceError, TokenError, UnknownKeyError
from hsm_endorser.guard import Guard
from hsm_endorser.pin import checked
from hsm_endorser.service import open_replica
from hsm_endorser.token import IDENTITY_LABEL, Pinned, Token, TokenConfig
from hsm_endorser.uri import TokenUri
from hsm_endorser.worker_messages import Pin
from protocol import canonical, custody
from protocol.envelope import Envelope, Signature, pae
from protocol.keys import PublicKey, signing_input

START_SECONDS: Final = 30.0
"""How long an unknown module may take to load and to log in."""


class AuditNotRunError(CommandError):
    """The audit could not run: nothing was found, and nothing was shown to be right."""

    exit_code = USAGE
    code = "audit-not-run"


class Audited(msgspec.Struct, frozen=True):
    """A statement, and in words who signed it, or why nobody did."""

    envelope: Envelope
    signed: str


def of_device(path: Path, profile: Profile, *, read_only: bool) -> Audited:
    """The statement on the token of the device that a configuration describes. Raises `AuditNotRunError`."""
    try:
        config = load(path)
        if config.control is not None:
            with contextlib.suppress(UnreachableError):
                return Audited(_by_running(path, profile, read_only=read_only), _signed_by(config.name))
        return Audited(asyncio.run(_by_us(config, profile, read_only=read_only)), _signed_by(config.name))
    except DeviceError as error:
        raise AuditNotRunError(str(error), code=error.code) from None


def of_token(uri: str, profile: Profile, *, read_only: bool) -> Audited:
    """The audit of any token, signed by its identity key if it has exactly one. Raises `AuditNotRunError`."""
    try:
        return asyncio.run(_of_token(uri, profile, read_only=read_only))
    except DeviceError as error:
        raise AuditNotRunError(str(error), code=error.code) from None


def _by_running(path: Path, profile: Profile, *, read_only: bool) -> Envelope:
    order = AuditOrder(profile.text, f"{profile.name}.toml", read_only)
    with DeviceControl(path) as control:
        return canonical.decode(control.ask("/v1/audit", order), _envelope_decoder)


async def _by_us(config: Config, profile: Profile, *, read_only: bool) -> Envelope:
    replica = open_replica(config)
    with contextlib.closing(replica.store):
        entry = replica.registry.device(config.name)
        pinned = Pinned(entry.token, PublicKey.load(entry.identity).id) if entry else None
        guard = Guard.open(config.guard, network=replica.network, device=config.name)
        guard_chain.compare_all(guard, config.name, replica)
        pin = None if config.token.uri.pin_file else _pin()
        return await audit_device(config, guard, replica.network, profile, pinned=pinned, pin=pin, read_only=read_only)


async def _of_token(uri: str, profile: Profile, *, read_only: bool) -> Audited:
    config = TokenConfig(
        uri=TokenUri.parse(uri, base=Path.cwd()), environment=_environment(), start_seconds=START_SECONDS
    )
    pin = None if config.uri.pin_file else _pin()
    predicate = await audit(config, profile=profile, read_only=read_only, record=None, pin=pin)
    payload = encode(predicate)
    try:
        signature = await _sign(config, pin, payload)
    except TokenError as error:
        return Audited(Envelope(payload, custody.PAYLOAD_TYPE, ()), f"Not signed: {error}.")
    words = f"Signed by the key {signature.keyid[:16]}… on the token; it can be verified with that public key."
    return Audited(Envelope(payload, custody.PAYLOAD_TYPE, (signature,)), words)


async def _sign(config: TokenConfig, pin: Pin | None, payload: bytes) -> Signature:
    """The signature of the token's only identity key; raises `TokenError` that says why there is none."""
    token = await Token.start(config, patient=pin is not None)
    try:
        if pin:
            await token.unlock(pin)
        found = [key.public_key for key in token.keys.values() if key.label == IDENTITY_LABEL]
        if len(found) != 1:
            raise UnknownKeyError(
                f"the token holds {len(found) or 'no'} keys labelled {IDENTITY_LABEL!r} where one would sign the report"
            )
        message = pae(custody.PAYLOAD_TYPE, payload)
        (signature,) = await token.sign(found[0].id, [signing_input(found[0].scheme, message)])
        return Signature(found[0].id, signature)
    finally:
        await token.close()


def _signed_by(device: str) -> str:
    return f"Signed by the identity key of {device}; the signature stands in the device's journal."


def _pin() -> Pin:
    return Pin(checked(ask("PIN of the token").encode(), "the PIN that was entered"))


def _environment() -> dict[str, str]:
    """What modules may need to know of ours: stores, configuration files and servers are named in the environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


_envelope_decoder = msgspec.json.Decoder(Envelope)
