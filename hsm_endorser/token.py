"""The token as the rest of the device sees it: keys that sign, a deadline on every call, and one way to recover.

Recovery is always the same: kill the worker, start a new one, compare the token with the pin, let its identity
key answer a fresh challenge, go on. A token that fails that comparison, or that ever returns a wrong signature,
is quarantined: nothing is signed with it until an operator has looked (requirement K-9).
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from hsm_endorser.errors import (
    GuardError,
    PinRefusedError,
    TokenBusyError,
    TokenError,
    TokenQuarantinedError,
    TokenRefusedError,
    TokenUnavailableError,
    UnknownKeyError,
)
from hsm_endorser.identity import challenge_message
from hsm_endorser.metrics import Metrics
from hsm_endorser.pin import check_pin_file
from hsm_endorser.token_key import TokenKey, normalise, token_key, usable_keys
from hsm_endorser.uri import TokenUri
from hsm_endorser.worker_messages import (
    Failed,
    Generate,
    Generated,
    Keys,
    ListKeys,
    Open,
    Opened,
    Reply,
    Request,
    Sign,
    Signatures,
)
from hsm_endorser.worker_process import WorkerProcess
from protocol import registry
from protocol.canonical import KeyId
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import Scheme, signing_input

IDENTITY_LABEL: Final = "identity"
MAX_WAITING: Final = 64
"""Calls that may wait for the token at once."""
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 5.0
KEY_ID_BYTES: Final = 16

PIN_REFUSALS: Final = frozenset(
    {"PinIncorrect", "PinInvalid", "PinLenRange", "PinExpired", "PinLocked", "PinTooWeak", "UserPinNotInitialized"}
)
NOT_THE_SESSIONS_FAULT: Final = frozenset(
    {
        "ActionProhibited", "AmbiguousKey", "AttributeReadOnly", "AttributeTypeInvalid", "AttributeValueInvalid",
        "BadLabel", "CurveNotSupported", "DataInvalid", "DataLenRange", "DomainParamsInvalid", "DuplicateKey",
        "InputLength", "KeyFunctionNotPermitted", "KeySizeRange", "MechanismInvalid", "NoSuchKey",
        "TemplateIgnored", "TemplateIncomplete", "TemplateInconsistent", "UnknownScheme",
    }
)  # fmt: skip
"""Refusals of one call. After any other failure the worker is replaced: its state is not to be trusted."""

Journal = Callable[[KeyId, bytes], Awaitable[None]]
"""Told of a challenge (key, what is signed) before it is signed."""

log = structlog.get_logger()


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which token, and how long it may take. `environment` is given to the worker and to nobody else."""

    uri: TokenUri
    environment: Mapping[str, str] = {}
    seconds: float = 2.0
    """Deadline of one call."""
    start_seconds: float = 10.0
    """Deadline of loading the module, finding the token and logging in."""

    @staticmethod
    def parse(
        uri: str, environment: Mapping[str, str] | None = None, *, base: Path | None = None, seconds: float = 2.0
    ) -> "TokenConfig":
        """The configuration for a URI in text; raises `UriError`."""
        return TokenConfig(uri=TokenUri.parse(uri, base=base), environment=dict(environment or {}), seconds=seconds)


class Pinned(msgspec.Struct, frozen=True):
    """Which token it must be: what its information says, and the identity key that must answer (K-9)."""

    token: registry.Token
    identity: KeyId


class Token:
    """A token behind a worker process. Make one with `start`; every method belongs to one event loop."""

    def __init__(
        self, config: TokenConfig, *, pinned: Pinned | None, journal: Journal | None, metrics: Metrics | None
    ) -> None:
        self.config = config
        self.keys: dict[KeyId, TokenKey] = {}
        self.info: registry.Token | None = None
        self.problems: tuple[str, ...] = ()
        """Keys on the token that cannot be used, and why."""
        self.restarts = 0
        self.signatures = 0
        """Signatures that the token made for this process, challenges included."""
        self.journal = journal
        self._pinned = pinned
        self._metrics = metrics or Metrics()
        self._worker: WorkerProcess | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._final: TokenQuarantinedError | PinRefusedError | None = None
        self._down = "the token has not been opened"
        self._failures = 0
        self._retry_at = 0.0
        self._recovery: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Reply]] = set()
        self._closed = False

    @staticmethod
    async def start(
        config: TokenConfig,
        *,
        pinned: Pinned | None = None,
        journal: Journal | None = None,
        metrics: Metrics | None = None,
        patient: bool = False,
    ) -> "Token":
        """Open the token. Without a pin, it is pinned to what is found now.

        Raises `PinFileError`, `PinRefusedError`, `TokenQuarantinedError` or `TokenUnavailableError`; a `patient`
        caller gets a token that is down instead of the last, and that recovers by itself.
        """
        check_pin_file(config.uri.pin_file)
        token = Token(config, pinned=pinned, journal=journal, metrics=metrics)
        try:
            async with token._lock:
                await token._open()
        except TokenUnavailableError:
            if not patient:
                await token.close()
                raise
            token._recover_soon()
        except TokenError:
            if not patient:
                await token.close()
                raise
        return token

    @property
    def trouble(self) -> str:
        """Why the token cannot sign now; empty when it can."""
        if self._final:
            return str(self._final)
        return "" if self._worker else self._down

    @property
    def identity(self) -> TokenKey | None:
        """The identity key (requirement E-20): the pinned one, else the one that is labelled so."""
        if self._pinned:
            return self.keys.get(self._pinned.identity)
        return next((key for key in self.keys.values() if key.label == IDENTITY_LABEL), None)

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, while there is one."""
        return self._worker.pid if self._worker else None

    async def sign(self, key_id: KeyId, inputs: Sequence[bytes]) -> list[bytes]:
        """Sign every input (a SHA-256 digest, or the message for Ed25519) with one key.

        Each signature is checked against the public key before it is returned, and ECDSA ones are DER with a low s.
        Raises `UnknownKeyError`, `TokenRefusedError`, `TokenUnavailableError` or `TokenQuarantinedError`.
        """
        key = self._key(key_id)
        reply = await self._call(Sign(key.handle, list(inputs)))
        if not isinstance(reply, Signatures) or len(reply.signatures) != len(inputs):
            raise await self._quarantine(f"it answered a call for {len(inputs)} signatures with something else")
        return await self._checked(key, inputs, reply.signatures)

    async def challenge(self, key_id: KeyId) -> None:
        """Let a key sign a fresh random challenge, and check it; the journal is told before."""
        message = challenge_message(secrets.token_hex(32))
        key = self._key(key_id)
        if self.journal:
            await self.journal(key_id, message)
        await self.sign(key_id, [signing_input(key.public_key.scheme, message)])

    async def generate(self, label: str, scheme: Scheme) -> TokenKey:
        """Generate a key pair by the strict template (requirement K-1) and let it answer a challenge."""
        if label == IDENTITY_LABEL and self.identity is not None:
            raise TokenRefusedError("DuplicateKey", "the token has an identity key, which never changes")
        reply = await self._call(Generate(label, scheme, secrets.token_bytes(KEY_ID_BYTES)), slow=True)
        if not isinstance(reply, Generated):
            raise await self._quarantine("it answered the generation of a key with something else")
        try:
            key = token_key(reply.key)
        except UnacceptableKeyError as error:
            raise TokenRefusedError("BadPublicKey", str(error)) from None
        self.keys[key.public_key.id] = key
        await self.challenge(key.public_key.id)
        return key

    async def restart(self) -> None:
        """Replace the worker now; raises like `start`. An operator's second try after a refused PIN."""
        if isinstance(self._final, PinRefusedError):
            self._final = None
        async with self._lock:
            await self._drop("the token is being restarted")
            await self._open()

    async def close(self) -> None:
        """End the worker."""
        self._closed = True
        if self._recovery:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
        await self._drop("the token is closed")

    # --- one call at a time -------------------------------------------------------------------------------

    async def _call(self, request: Request, *, slow: bool = False) -> Reply:
        if self._waiting >= MAX_WAITING:
            raise TokenBusyError(f"{self._waiting} calls wait for the token already")
        self._waiting += 1
        # A caller that goes away must not take a half-finished exchange with it: the call runs to its end.
        call = asyncio.create_task(self._exchange(request, slow=slow))
        self._calls.add(call)
        call.add_done_callback(self._call_done)
        return await asyncio.shield(call)

    def _call_done(self, call: asyncio.Task[Reply]) -> None:
        self._waiting -= 1
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # its caller may be gone

    async def _exchange(self, request: Request, *, slow: bool) -> Reply:
        async with self._lock:
            self._require_in_service()
            if self._worker is None:
                if self._closed or time.monotonic() < self._retry_at:
                    raise TokenUnavailableError(self._down)
                await self._open()
            worker = self._worker
            if worker is None:
                raise TokenUnavailableError(self._down)
            try:
                reply = await self._timed(worker, request, self.config.start_seconds if slow else self.config.seconds)
            except TokenUnavailableError as error:
                await self._lose(str(error))
                raise
            if isinstance(reply, Failed):
                if reply.ckr in NOT_THE_SESSIONS_FAULT:
                    raise TokenRefusedError(reply.ckr, reply.text)
                await self._lose(f"{reply.ckr}: {reply.text}")
                raise TokenUnavailableError(f"{reply.ckr}: {reply.text}")
            return reply

    async def _timed(self, worker: WorkerProcess, request: Request, seconds: float) -> Reply:
        operation = type(request).__name__.lower()
        started = time.monotonic()
        result = "lost"
        try:
            reply = await worker.call(request, seconds)
            result = reply.ckr if isinstance(reply, Failed) else "ok"
        finally:
            self._metrics.token_seconds.labels(operation).observe(time.monotonic() - started)
            self._metrics.token_calls.labels(operation, result).inc()
        if isinstance(reply, Signatures):
            self.signatures += len(reply.signatures)
            self._metrics.signatures.inc(len(reply.signatures))
        return reply

    async def _checked(self, key: TokenKey, inputs: Sequence[bytes], raw: Sequence[bytes]) -> list[bytes]:
        try:
            return await asyncio.to_thread(normalise, key.public_key, inputs, raw)
        except BadSignatureError as error:
            raise await self._quarantine(f"it returned a wrong signature: {error}") from None

    # --- opening and recovering ---------------------------------------------------------------------------

    async def _open(self) -> None:
        """Start a worker and prove that it holds the pinned token; one login. The lock is held."""
        self._require_in_service()
        if self._failures or self.info:
            self.restarts += 1
            self._metrics.token_restarts.inc()
        worker = await WorkerProcess.start(self.config.environment, self._on_lost)
        try:
            await self._prove(worker)
        except TokenError as error:
            await worker.kill()
            self._failures += 1
            self._down = str(error)
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
            self._retry_at = time.monotonic() + pause
            if isinstance(error, TokenQuarantinedError | PinRefusedError):
                self._final = error
                log.error("token is out of service", code=error.code, reason=str(error))  # noqa: TRY400
            raise
        except BaseException:
            await worker.kill()
            raise
        self._worker = worker
        self._failures = 0

    async def _prove(self, worker: WorkerProcess) -> None:
        uri, seconds = self.config.uri, self.config.start_seconds
        request = Open(
            module=str(uri.module), pin_file=str(uri.pin_file), token=uri.token, manufacturer=uri.manufacturer,
            model=uri.model, serial=uri.serial, slot_id=uri.slot_id, lock_seconds=seconds / 2,
        )  # fmt: skip
        opened = await self._timed(worker, request, seconds)
        if not isinstance(opened, Opened):
            raise self._not_opened(opened)
        info = registry.Token(opened.manufacturer, opened.model, opened.serial)
        if self._pinned and not _is_member(info, self._pinned.token):
            raise TokenQuarantinedError(
                f"this is token {info.manufacturer} {info.model} serial {info.serial}, enrolled is "
                f"{self._pinned.token.manufacturer} {self._pinned.token.model} serial {self._pinned.token.serial}"
            )
        listed = await self._timed(worker, ListKeys(), seconds)
        if not isinstance(listed, Keys):
            raise self._not_opened(listed)
        keys, problems = usable_keys(listed)
        identity = self._pinned.identity if self._pinned else None
        if identity is None:
            identity = next((key.public_key.id for key in keys.values() if key.label == IDENTITY_LABEL), None)
        elif identity not in keys:
            raise TokenQuarantinedError(f"the token does not hold the enrolled identity key {identity[:16]}…")
        if identity:
            await self._answer_challenge(worker, keys[identity])
            self._pinned = self._pinned or Pinned(info, identity)
        self.keys, self.problems, self.info = keys, problems, info
        for problem in problems:
            log.warning("a key on the token cannot be used", problem=problem)

    async def _answer_challenge(self, worker: WorkerProcess, key: TokenKey) -> None:
        message = challenge_message(secrets.token_hex(32))
        if self.journal:
            try:
                await self.journal(key.public_key.id, message)
            except GuardError as error:
                raise TokenUnavailableError(f"no challenge without a record of it: {error}") from None
        inputs = [signing_input(key.public_key.scheme, message)]
        reply = await self._timed(worker, Sign(key.handle, inputs), self.config.seconds)
        if not isinstance(reply, Signatures):
            raise self._not_opened(reply)
        try:
            normalise(key.public_key, inputs, reply.signatures)
        except BadSignatureError as error:
            raise TokenQuarantinedError(f"the identity key does not answer a challenge: {error}") from None

    def _not_opened(self, reply: Reply) -> TokenError:
        if not isinstance(reply, Failed):
            return TokenUnavailableError("the token worker answered something else than what it was asked")
        text = f"{reply.ckr}: {reply.text}" if reply.text else reply.ckr
        if reply.ckr in PIN_REFUSALS:
            return PinRefusedError(
                f"the token refused the PIN in {self.config.uri.pin_file} ({text}); it is not tried again: "
                "correct the file, then restart the device"
            )
        if reply.ckr == "TokenSwapped" and self._pinned:
            return TokenQuarantinedError(reply.text)
        return TokenUnavailableError(text)

    def _on_lost(self, worker: WorkerProcess) -> None:
        """The worker has ended by itself: recover before anybody asks."""
        if worker is self._worker and not self._closed:
            self._recover_soon()

    def _recover_soon(self) -> None:
        if self._closed or self._final or (self._recovery and not self._recovery.done()):
            return
        self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        while not self._closed and not self._final:
            async with self._lock:
                if self._worker and not self._worker.ended:
                    return
                await self._drop("the token worker died")
                with contextlib.suppress(TokenError):
                    await self._open()
                    log.info("token recovered", restarts=self.restarts)
                    return
            log.warning("token is unavailable", reason=self._down)
            await asyncio.sleep(max(0.0, self._retry_at - time.monotonic()))

    async def _lose(self, reason: str) -> None:
        """Give up a worker that cannot be trusted any more. The lock is held."""
        log.warning("token worker is replaced", reason=reason)
        await self._drop(reason)
        self._recover_soon()

    async def _drop(self, reason: str) -> None:
        worker, self._worker, self._down = self._worker, None, reason
        if worker:
            await worker.kill()

    def _require_in_service(self) -> None:
        if self._final:
            raise type(self._final)(str(self._final))  # a fresh one: each carries its own traceback

    async def _quarantine(self, why: str) -> TokenQuarantinedError:
        error = TokenQuarantinedError(f"the token is quarantined: {why}; nothing is signed with it any more")
        self._final = error
        log.error("token is out of service", code=error.code, reason=str(error))
        await self._drop(str(error))
        return error

    def _key(self, key_id: KeyId) -> TokenKey:
        key = self.keys.get(key_id)
        if key is None:
            self._require_in_service()
            if self.trouble:
                raise TokenUnavailableError(self.trouble)
            raise UnknownKeyError(f"key {key_id[:16]}… is not on this token")
        return key


def _is_member(found: registry.Token, enrolled: registry.Token) -> bool:
    """Whether this is the enrolled token, or a member of the group that is enrolled as one token."""
    same_make = (found.manufacturer, found.model) == (enrolled.manufacturer, enrolled.model)
    return same_make and found.serial in {enrolled.serial, *enrolled.group}
