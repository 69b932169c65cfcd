"""Looks at a token and changes nothing: is it there, does it take the PIN, what can it do, what is on it.

The PIN is tried once, and not at all where the token says that a wrong one would lock it. No guard is needed: nothing
is signed here, not even a challenge.
"""

from typing import Final

import msgspec

from hsm_endorser import failures
from hsm_endorser.errors import PinRefusedError, TokenError, TokenLockedError, TokenStoppedError
from hsm_endorser.pin import PinSource
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.worker_messages import Count, Counted, Failed, Look, Open, Opened, Pin, Reply, Seen
from hsm_endorser.worker_process import WorkerProcess
from protocol import registry
from protocol.keys import Scheme

PIN_FINAL_TRY: Final = 0x20000
PIN_LOCKED: Final = 0x40000
"""CKF_USER_PIN_FINAL_TRY and CKF_USER_PIN_LOCKED (PKCS#11 v3.1, section 3.2)."""
NEEDED: Final[dict[Scheme, tuple[str, str]]] = {
    "ecdsa-p256-sha256": ("EC_KEY_PAIR_GEN", "ECDSA"),
    "rsa-pkcs1-sha256": ("RSA_PKCS_KEY_PAIR_GEN", "RSA_PKCS"),
    "ed25519": ("EC_EDWARDS_KEY_PAIR_GEN", "EDDSA"),
}
"""The mechanisms that generate a key of a scheme and sign with it."""


class Sight(msgspec.Struct, frozen=True):
    """What was seen of a token: `objects` it holds, and the labels of its private keys."""

    token: registry.Token
    label: str
    mechanisms: frozenset[str]
    objects: int
    labels: tuple[str, ...]

    def lacks(self, scheme: Scheme) -> tuple[str, ...]:
        """The mechanisms that a key of this scheme needs and that the token does not offer."""
        return tuple(name for name in NEEDED[scheme] if name not in self.mechanisms)


async def look(config: TokenConfig, pin: Pin | None = None) -> Sight:
    """One look at a token, by a worker of its own; one login, with `pin` where the URI names no PIN file.

    Raises `PinFileError`, `PinRefusedError` (the PIN was tried once), or another `TokenError`.
    """
    pins = PinSource(config.uri.pin_file)
    if pins.is_locked:
        if pin is None:
            raise TokenLockedError("the token's URI names no pin-source, and no PIN was entered")
        pins.enter(pin)
    pins.check()
    given, file = pins.given
    uri, seconds = config.uri, config.start_seconds
    wanted = Open(
        module=str(uri.module), pin=given, pin_file=str(file) if file else None, token=uri.token,
        manufacturer=uri.manufacturer, model=uri.model, serial=uri.serial, slot_id=uri.slot_id,
        lock_seconds=seconds / 2,
    )  # fmt: skip
    worker = await WorkerProcess.start(config.environment, lambda _worker: None)
    try:
        seen = await worker.call(Look(msgspec.structs.replace(wanted, pin=None, pin_file=None)), seconds)
        if not isinstance(seen, Seen):
            raise _refused(seen)
        if seen.flags & (PIN_FINAL_TRY | PIN_LOCKED):
            raise TokenStoppedError(
                f"the token {seen.label!r} says that its PIN is locked, or that one more wrong PIN locks it; "
                "the PIN was not tried: log in with the vendor's tool first"
            )
        opened = await worker.call(wanted, seconds)
        if not isinstance(opened, Opened):
            raise _refused(opened)
        counted = await worker.call(Count(), seconds)
        if not isinstance(counted, Counted):
            raise _refused(counted)
    finally:
        await worker.kill()
    token = registry.Token(seen.manufacturer, seen.model, seen.serial)
    return Sight(token, seen.label, frozenset(seen.mechanisms), counted.objects, tuple(counted.labels))


def _refused(reply: Reply) -> TokenError:
    if not isinstance(reply, Failed):
        return TokenStoppedError("the token worker answered something else than what it was asked")
    text = f"{reply.ckr}: {reply.text}" if reply.text else reply.ckr
    if reply.ckr in failures.PIN_WORDS:
        return PinRefusedError(f"the token refused the PIN ({text}); it was tried once, which cost a try")
    return TokenStoppedError(f"{text} ({failures.why(reply.ckr)})")
