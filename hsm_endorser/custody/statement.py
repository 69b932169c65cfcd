"""The audit of a device's token as a signed statement: who audits, with which guard, signed by which key (K-6).

The audit has a worker of its own beside the one of the device, so a running device goes on endorsing. What the keys
sign for it stands in the device's journal before: each challenge, and in the end the statement itself.
"""

import asyncio
from typing import Final

import msgspec

from hsm_endorser.config import Config
from hsm_endorser.custody.audit import audit
from hsm_endorser.custody.catalogue import CATALOGUE
from hsm_endorser.custody.errors import CustodyError
from hsm_endorser.custody.profile import Profile, parse
from hsm_endorser.errors import BusyError, RefusedError, TokenUnavailableError, UnknownKeyError
from hsm_endorser.guard import Guard
from hsm_endorser.signing import GuardedToken
from hsm_endorser.token import Pinned
from hsm_endorser.worker_messages import Pin
from protocol import custody
from protocol.canonical import KeyId
from protocol.custody import Predicate
from protocol.envelope import Envelope, pae

AUDIT_SECONDS: Final = 600.0
"""How long an audit may take: a thousand signatures and some hundred attacks on each kind of key, on a slow token."""


class AuditOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `/v1/audit`: the whole profile, so that the device needs no file of its asker's."""

    profile: str
    """The text of the TOML file."""
    where: str = "the profile"
    """How messages name it."""
    read_only: bool = False

    def read(self) -> Profile:
        """The profile; raises `ProfileError`."""
        return parse(self.profile.encode(), self.where, CATALOGUE)


class Auditor:
    """Audits the token of one device, one audit at a time."""

    def __init__(self, device: str, network: str, signer: GuardedToken) -> None:
        self._device = device
        self._network = network
        self._signer = signer
        self._running = False

    async def audit(self, profile: Profile, *, read_only: bool = False, seconds: float = AUDIT_SECONDS) -> Envelope:
        """The signed statement.

        Raises `BusyError` while another audit runs, `TokenError` when the token cannot be audited or does not sign,
        `GuardError` when nothing may be signed, `RefusedError` when the statement is too large for anybody.
        """
        if self._running:
            raise BusyError(f"an audit of {self._device} runs already; wait for its end")
        self._running = True
        try:
            identity = self._identity()
            payload = encode(await self._judged(profile, read_only, seconds))
            signature = await self._signer.sign("statement", identity, pae(custody.PAYLOAD_TYPE, payload))
            return Envelope(payload, custody.PAYLOAD_TYPE, (signature,))
        finally:
            self._running = False

    async def _judged(self, profile: Profile, read_only: bool, seconds: float) -> Predicate:
        token = self._signer.token
        try:
            async with asyncio.timeout(seconds):
                return await audit(
                    token.config,
                    profile=profile,
                    device=self._device,
                    network=self._network,
                    read_only=read_only,
                    record=self._signer.record_challenge,
                    pin=token.pins.given[0],
                )
        except TimeoutError:
            raise TokenUnavailableError(f"the audit of {self._device} did not end within {seconds:g} s") from None
        except CustodyError as error:
            raise TokenUnavailableError(f"the audit of {self._device} could not run: {error}") from None

    def _identity(self) -> KeyId:
        self._signer.token.require_usable()
        if self._signer.token.identity is None:
            raise UnknownKeyError("the token holds no identity key, so nobody can sign the statement")
        return self._signer.token.identity.public_key.id


async def audit_device(
    config: Config,
    guard: Guard,
    network: str,
    profile: Profile,
    *,
    pinned: Pinned | None = None,
    pin: Pin | None = None,
    read_only: bool = False,
) -> Envelope:
    """The signed statement on the token of a device that stands still, behind its open guard, which is closed then.

    `pin` is for a token whose URI names no PIN file. Raises as `Auditor.audit`.
    """
    signer = await GuardedToken.start(guard, config.token_config, pinned=pinned, patient=pin is not None)
    try:
        if pin:
            await signer.token.unlock(pin)
        return await Auditor(config.name, network, signer).audit(profile, read_only=read_only)
    finally:
        await signer.close()


def encode(predicate: Predicate) -> bytes:
    """The payload of a statement; raises `RefusedError` when it has more bytes than anybody accepts."""
    payload = custody.encode(predicate)
    if len(payload) > custody.MAX_STATEMENT_BYTES:
        raise RefusedError(
            "statement-too-large",
            f"the audit of {len(predicate.keys)} keys takes {len(payload)} bytes where a statement has at most "
            f"{custody.MAX_STATEMENT_BYTES}; spread the keys over more tokens",
        )
    return payload
