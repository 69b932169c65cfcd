"""An administrator's own key on a PKCS#11 token: it signs there, and never leaves it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cli.errors import CommandError, UsageError
from cli.role_holder import AskPin
from hsm_endorser.config import PATH_VARIABLES
from hsm_endorser.errors import DeviceError
from hsm_endorser.token import Token
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.uri import TokenUri
from hsm_endorser.worker_messages import Pin
from protocol.envelope import Signature, pae
from protocol.keys import PublicKey, Scheme, signing_input

TOKEN_SECONDS: Final = 10.0
"""How long a person's token may take for a signature; some wait for a finger on them."""


class TokenSigner:
    """See `cli.role_holder.Signer`."""

    def __init__(self, who: str, token: Token, public: PublicKey) -> None:
        self._who = who
        self._token = token
        self.public = public

    async def sign(self, payload: bytes, payload_type: str) -> Signature:
        """See `Signer`; raises `CommandError`."""
        try:
            message = signing_input(self.public.scheme, pae(payload_type, payload))
            (signature,) = await self._token.sign(self.public.id, [message])
        except DeviceError as error:
            raise CommandError(f"the token of {self._who} does not sign: {error}", code="token") from None
        return Signature(self.public.id, signature)

    async def close(self) -> None:
        """See `Signer`."""
        await self._token.close()


async def open_signer(
    who: str, where: str, public: PublicKey, *, environment: Mapping[str, str], base: Path, ask_pin: AskPin
) -> TokenSigner:
    """The key `public` on the token of `who` at the URI `where`; one login. Raises `UsageError`, `CommandError`."""
    token = await _open(who, where, environment, base, ask_pin)
    if public.id not in token.keys:
        await token.close()
        raise UsageError(
            f"the token of {who} does not hold the declared key {public.id[:16]}…",
            advice="see that the right token is plugged in, and that the URI names it",
        )
    return TokenSigner(who, token, public)


async def generate(
    where: str, *, environment: Mapping[str, str], base: Path, label: str, scheme: Scheme, ask_pin: AskPin
) -> PublicKey:
    """A new key on a person's own token, by the strict template (requirement K-1). Raises `CommandError`."""
    token = await _open(label, where, environment, base, ask_pin)
    try:
        if any(key.label == label for key in token.keys.values()):
            raise UsageError(f"the token holds a key {label!r} already", advice="choose another --label")
        return (await token.generate(label, scheme)).public_key
    except DeviceError as error:
        raise CommandError(f"the token did not generate a key: {error}", code="token") from None
    finally:
        await token.close()


async def next_key(
    who: str, where: str, old: PublicKey, *, environment: Mapping[str, str], base: Path, ask_pin: AskPin
) -> PublicKey:
    """The key that follows `old` on the token of `who`, of the same scheme: made now, or by an interrupted attempt."""
    label = f"after/{old.id[:16]}"
    token = await _open(who, where, environment, base, ask_pin)
    try:
        if old.id not in token.keys:
            raise UsageError(f"the token of {who} does not hold the key {old.id[:16]}… that is to be rotated")
        made = [key.public_key for key in token.keys.values() if key.label == label]
        return made[0] if made else (await token.generate(label, old.scheme)).public_key
    except DeviceError as error:
        raise CommandError(f"the token did not generate a key: {error}", code="token") from None
    finally:
        await token.close()


async def _open(who: str, where: str, environment: Mapping[str, str], base: Path, ask_pin: AskPin) -> Token:
    resolved = {name: str(base / value) if name in PATH_VARIABLES else value for name, value in environment.items()}
    try:
        config = TokenConfig(uri=TokenUri.parse(where, base=base), environment=resolved, seconds=TOKEN_SECONDS)
        if config.uri.pin_file is not None:
            return await Token.start(config)
        pin = Pin(await ask_pin(f"the token of {who}"))
        token = await Token.start(config, patient=True)
        try:
            await token.unlock(pin)
        except BaseException:
            await token.close()
            raise
    except DeviceError as error:
        raise CommandError(f"the token of {who} cannot be used: {error}", code="token") from None
    return token
