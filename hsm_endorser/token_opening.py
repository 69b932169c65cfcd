"""Opening a token: one login in a fresh worker, then the proof that it is the enrolled one (requirement K-9)."""

import secrets
from collections.abc import Awaitable, Callable

import msgspec

from hsm_endorser import failures
from hsm_endorser.errors import (
    GuardError,
    PinRefusedError,
    TokenError,
    TokenQuarantinedError,
    TokenStoppedError,
    TokenUnavailableError,
)
from hsm_endorser.failures import Reaction
from hsm_endorser.identity import challenge_message
from hsm_endorser.pin import PinSource
from hsm_endorser.token_config import IDENTITY_LABEL, Pinned, TokenConfig
from hsm_endorser.token_key import TokenKey, normalise, usable_keys
from hsm_endorser.worker_messages import Failed, Keys, ListKeys, Open, Opened, Reply, Request, Sign, Signatures
from protocol import registry
from protocol.canonical import KeyId
from protocol.errors import BadSignatureError
from protocol.keys import signing_input

Ask = Callable[[Request, float], Awaitable[Reply]]
"""One call to the worker, with its deadline in seconds; raises `TokenUnavailableError`."""
Journal = Callable[[KeyId, bytes], Awaitable[None]]
"""Told of a challenge (key, what is signed) before it is signed."""


class Proven(msgspec.Struct, frozen=True):
    """What an open token holds. `pinned` is what it is pinned to from now on, if it has an identity key."""

    info: registry.Token
    keys: dict[KeyId, TokenKey]
    problems: tuple[str, ...]
    pinned: Pinned | None


class Opening:
    """How one token is opened, each time in the same way."""

    def __init__(self, config: TokenConfig, pins: PinSource, journal: Journal | None) -> None:
        self._config = config
        self._pins = pins
        self._journal = journal

    async def open(self, ask: Ask, pinned: Pinned | None) -> Proven:
        """Log in, compare with the pin, list the keys, let the identity key answer a fresh challenge.

        Raises `TokenQuarantinedError`, `PinRefusedError`, `TokenStoppedError` or `TokenUnavailableError`.
        """
        info = await self._log_in(ask, pinned)
        if pinned and not _is_member(info, pinned.token):
            raise TokenQuarantinedError(
                f"this is token {info.manufacturer} {info.model} serial {info.serial}, enrolled is "
                f"{pinned.token.manufacturer} {pinned.token.model} serial {pinned.token.serial}"
            )
        listed = await ask(ListKeys(), self._config.start_seconds)
        if not isinstance(listed, Keys):
            raise self._not_opened(listed, pinned)
        keys, problems = usable_keys(listed)
        identity = pinned.identity if pinned else None
        if identity is None:
            identity = next((key.public_key.id for key in keys.values() if key.label == IDENTITY_LABEL), None)
        elif identity not in keys:
            raise TokenQuarantinedError(f"the token does not hold the enrolled identity key {identity[:16]}…")
        if identity:
            await self._answer_challenge(ask, keys[identity], pinned)
            pinned = pinned or Pinned(info, identity)
        return Proven(info, keys, problems, pinned)

    async def _log_in(self, ask: Ask, pinned: Pinned | None) -> registry.Token:
        uri, seconds = self._config.uri, self._config.start_seconds
        pin, file = self._pins.given
        request = Open(
            module=str(uri.module), pin=pin, pin_file=str(file) if file else None, token=uri.token,
            manufacturer=uri.manufacturer, model=uri.model, serial=uri.serial, slot_id=uri.slot_id,
            lock_seconds=seconds / 2,
        )  # fmt: skip
        opened = await ask(request, seconds)
        if not isinstance(opened, Opened):
            raise self._not_opened(opened, pinned)
        self._pins.settle()  # an interrupted change of the PIN: the token has the new one
        return registry.Token(opened.manufacturer, opened.model, opened.serial)

    async def _answer_challenge(self, ask: Ask, key: TokenKey, pinned: Pinned | None) -> None:
        message = challenge_message(secrets.token_hex(32))
        if self._journal:
            try:
                await self._journal(key.public_key.id, message)
            except GuardError as error:
                raise TokenUnavailableError(f"no challenge without a record of it: {error}") from None
        inputs = [signing_input(key.public_key.scheme, message)]
        reply = await ask(Sign(key.handle, inputs), self._config.seconds)
        if not isinstance(reply, Signatures):
            raise self._not_opened(reply, pinned)
        try:
            normalise(key.public_key, inputs, reply.signatures)
        except (BadSignatureError, ValueError) as error:
            raise TokenQuarantinedError(f"the identity key does not answer a challenge: {error}") from None

    def _not_opened(self, reply: Reply, pinned: Pinned | None) -> TokenError:
        if not isinstance(reply, Failed):
            return TokenUnavailableError("the token worker answered something else than what it was asked")
        text = f"{reply.ckr}: {reply.text}" if reply.text else reply.ckr
        if reply.ckr in failures.PIN_WORDS:
            return PinRefusedError(f"the token refused the PIN {self._where()} ({text}); it is not tried again")
        match failures.reaction(reply.ckr, "opening"):
            case Reaction.QUARANTINE if pinned or reply.ckr != "TokenSwapped":
                return TokenQuarantinedError(reply.text or f"{text}: {failures.why(reply.ckr)}")
            case Reaction.STOP:
                return TokenStoppedError(f"{text}: {failures.why(reply.ckr)}; it is not tried again")
        return TokenUnavailableError(text)

    def _where(self) -> str:
        _, file = self._pins.given
        if file is None:
            return "that was entered"
        if file == self._pins.pending:
            return f"in {file}, left there by a change that was interrupted before the token heard of it: remove {file}"
        return f"in {file}: correct the file, then restart the device"


def _is_member(found: registry.Token, enrolled: registry.Token) -> bool:
    """Whether this is the enrolled token, or a member of the group that is enrolled as one token."""
    same_make = (found.manufacturer, found.model) == (enrolled.manufacturer, enrolled.model)
    return same_make and found.serial in {enrolled.serial, *enrolled.group}
