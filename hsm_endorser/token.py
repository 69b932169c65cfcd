"""The token as the rest of the device sees it: keys that sign, a deadline on every call, and one way to recover.

Recovery is always the same: kill the worker, start a new one, log in once, prove the enrolled identity
(`token_opening`), go on. What is done about each failure stands in a table (`failures`). A token that is not the
enrolled one, or that ever returns a wrong signature, is quarantined: nothing is signed with it, in this process or
the next, until an operator has looked (requirement K-9).
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog

from hsm_endorser import failures
from hsm_endorser.errors import (
    PinRefusedError,
    TokenBusyError,
    TokenError,
    TokenQuarantinedError,
    TokenRefusedError,
    TokenStoppedError,
    TokenUnavailableError,
    UnknownKeyError,
)
from hsm_endorser.failures import Reaction
from hsm_endorser.identity import challenge_message
from hsm_endorser.metrics import Metrics
from hsm_endorser.out_of_service import OutOfService
from hsm_endorser.pin import PinSource
from hsm_endorser.token_config import IDENTITY_LABEL, Pinned, TokenConfig
from hsm_endorser.token_key import TokenKey, normalise, token_key
from hsm_endorser.token_opening import Journal, Opening
from hsm_endorser.worker_messages import (
    Failed,
    Generate,
    Generated,
    LeftOut,
    Pin,
    PinSet,
    Reply,
    Request,
    SetPin,
    Sign,
    Signatures,
)
from hsm_endorser.worker_process import WorkerProcess
from protocol import registry
from protocol.canonical import KeyId
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import Scheme, signing_input

__all__ = ["IDENTITY_LABEL", "Pinned", "Token", "TokenConfig"]

MAX_WAITING: Final = 64
"""Calls that may wait for the token at once."""
RETRIES: Final = 2
RETRY_PAUSE_SECONDS: Final = 0.02
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 3.0
KEY_ID_BYTES: Final = 16
GENERATE_SECONDS: Final = 60.0
"""A small token needs many seconds for an RSA key."""
RECOVERY_SHARE: Final = 1 / 3
"""The part of a caller's patience that is spent on a recovery under way."""
OPENED_BY_A_PERSON: Final = (TokenQuarantinedError, PinRefusedError, TokenStoppedError)
"""Out of service with one of these, a token is opened again when an operator has acted, and not before."""

log = structlog.get_logger()


class Token:
    """A token behind a worker process. Make one with `start`; every method belongs to one event loop."""

    def __init__(
        self, config: TokenConfig, *, pinned: Pinned | None, journal: Journal | None, metrics: Metrics | None
    ) -> None:
        self.config = config
        self.pins = PinSource(config.uri.pin_file)
        self.keys: dict[KeyId, TokenKey] = {}
        self.info: registry.Token | None = None
        self.problems: tuple[str, ...] = ()
        """Keys on the token that cannot be used, and why."""
        self.left_out: dict[KeyId, tuple[LeftOut, ...]] = {}
        """What the token did not take of the template of keys that were generated here, where it did not take all."""
        self.restarts = 0
        self.signatures = 0
        """Signatures that the token made for this process, challenges included."""
        self.journal = journal
        self._pinned = pinned
        self._metrics = metrics or Metrics()
        self._opening = Opening(config, self.pins, journal)
        self._out_of_service = OutOfService(config.note, config.uri.format(), self.pins)
        self._worker: WorkerProcess | None = None
        self._lock = asyncio.Lock()
        self._up = asyncio.Event()
        self._waiting = 0
        self._final: TokenError | None = None
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

        Raises `PinFileError`, or the `TokenError` for which it cannot be opened. A `patient` caller gets a token that
        is down instead: it recovers by itself, or waits for an operator.
        """
        token = Token(config, pinned=pinned, journal=journal, metrics=metrics)
        try:
            token.pins.check()
            if note := token._out_of_service.note():
                token._take_out(note.error)
            async with token._lock:
                await token._open()
        except TokenUnavailableError:
            if not patient:
                await token.close()
                raise
            token._recover_soon()
        except TokenError as error:
            token._down = str(error)
            if not patient:
                await token.close()
                raise
        return token

    @property
    def trouble(self) -> str:
        """Why the token cannot sign now; empty when it can."""
        if self._final:
            return str(self._final)
        return "" if self._worker and not self._worker.ended else self._down

    async def usable(self) -> None:
        """Return when the token can sign, soon; raises the reason for which it cannot."""
        if self.trouble and not self._final and not self.pins.is_locked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.patience * RECOVERY_SHARE):
                    await self._up.wait()
        self.require_usable()

    def require_usable(self) -> None:
        """Raise the reason for which the token cannot sign now."""
        self._require_in_service()
        if self.pins.is_locked:
            self.pins.check()
        if self.trouble:
            raise TokenUnavailableError(self.trouble)

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
        Raises `UnknownKeyError`, `TokenRefusedError`, `TokenUnavailableError` or `TokenQuarantinedError`, the latest
        after `config.patience` seconds: what the token says after that is discarded.
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

    async def generate(self, label: str, scheme: Scheme, handle: bytes | None = None) -> TokenKey:
        """Generate a key pair by the strict template (requirement K-1) and let it answer a challenge.

        `handle` is its CKA_ID, by chance unless it is given.
        """
        if label == IDENTITY_LABEL and self.identity is not None:
            raise TokenRefusedError("DuplicateKey", "the token has an identity key, which never changes")
        request = Generate(label, scheme, handle or secrets.token_bytes(KEY_ID_BYTES), self.config.rsa_bits)
        reply = await self._call(request, GENERATE_SECONDS)
        if not isinstance(reply, Generated):
            raise await self._quarantine("it answered the generation of a key with something else")
        try:
            key = token_key(reply.key)
        except UnacceptableKeyError as error:
            raise TokenRefusedError("BadPublicKey", str(error)) from None
        self.keys[key.public_key.id] = key
        if reply.left_out:
            self.left_out[key.public_key.id] = tuple(reply.left_out)
            parts = [str(each) for each in reply.left_out]
            log.warning("the token did not take the whole template of a key", key=label, left_out=parts)
        await self.challenge(key.public_key.id)
        return key

    # --- what an operator does ----------------------------------------------------------------------------

    async def restart(self) -> None:
        """Replace the worker now; raises like `start`. A second try after a refused PIN; ends no quarantine."""
        if not isinstance(self._final, TokenQuarantinedError):
            self._put_back()
        async with self._lock:
            await self._drop("the token is being restarted")
            await self._open()

    async def unlock(self, pin: Pin) -> None:
        """Open the token with a PIN that an operator entered; one login. Raises like `start`."""
        self.pins.enter(pin)
        try:
            await self.restart()
        except (PinRefusedError, TokenStoppedError):
            self.pins.forget()
            raise

    async def release(self) -> None:
        """End a quarantine: the operator has looked. The token must prove itself as at any start; raises like it."""
        self._put_back()
        await self.restart()

    async def change_pin(self, old: Pin | None, new: Pin) -> None:
        """Give the token another user PIN; `old` None is the one that it was opened with.

        The order of the steps, and what a crash at each means, stands in `operator`. Raises `PinFileError` or
        `TokenError`; `TokenRefusedError` when the token does not change it, which leaves everything as it was.
        """
        async with self._lock:
            self._require_in_service()
            given, file = self.pins.given
            if self._worker is None:
                await self._open()  # proves the old PIN; nothing is changed when this fails
            self.pins.stage(new)  # both PINs are on the disk from here on: the next start tries the new one, once
            request = SetPin(old or given, str(file) if file and old is None else None, new)
            try:
                reply = await self._exchange_once(request, self.config.start_seconds)
            except TokenUnavailableError as error:
                # Whether the token heard of it is unknown: nobody but an operator may spend a try to find out.
                reason = f"a change of the PIN was interrupted ({error}); both PINs are kept, and the next start "
                raise await self._take_out_for_good(
                    TokenStoppedError(reason + "tries the new one: run hsm-endorser device release")
                ) from None
            if not isinstance(reply, PinSet):
                self.pins.abandon()  # the token has refused: the old PIN stays, in its file and on the token
                if isinstance(reply, Failed) and failures.reaction(reply.ckr, "in use") is Reaction.STOP:
                    raise TokenRefusedError(reply.ckr, f"the token did not change its PIN. {failures.why(reply.ckr)}")
                raise await self._met(reply)
            self.pins.settle(new)  # the file has the new PIN, by one rename
            await self._drop("the PIN was changed")
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

    async def _call(self, request: Request, seconds: float | None = None) -> Reply:
        seconds = seconds or self.config.seconds
        if self._waiting >= MAX_WAITING:
            raise TokenBusyError(f"{self._waiting} calls wait for the token already")
        self._waiting += 1
        # A caller that goes away must not take a half-finished exchange with it: the call runs to its end.
        call = asyncio.create_task(self._exchange(request, seconds))
        self._calls.add(call)
        call.add_done_callback(self._call_done)
        patience = max(self.config.patience, seconds)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(call)
        except TimeoutError:
            reason = self.trouble or f"{self._waiting} calls wait for it"
            raise TokenUnavailableError(f"the token did not answer within {patience:g} s: {reason}") from None

    def _call_done(self, call: asyncio.Task[Reply]) -> None:
        self._waiting -= 1
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # its caller may be gone

    async def _exchange(self, request: Request, seconds: float) -> Reply:
        async with self._lock:
            self._require_in_service()
            if self._worker is None:
                if self._closed or time.monotonic() < self._retry_at:
                    raise TokenUnavailableError(self._down)
                await self._open()
            for _ in range(RETRIES):
                reply = await self._exchange_once(request, seconds)
                if not isinstance(reply, Failed) or failures.reaction(reply.ckr, "in use") is not Reaction.RETRY:
                    break
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
            else:
                reply = await self._exchange_once(request, seconds)
            if isinstance(reply, Failed):
                raise await self._met(reply)
            return reply

    async def _exchange_once(self, request: Request, seconds: float) -> Reply:
        worker = self._worker
        if worker is None:
            raise TokenUnavailableError(self._down)
        try:
            return await self._timed(worker, request, seconds)
        except TokenUnavailableError as error:
            await self._lose(str(error))
            raise

    async def _met(self, reply: Reply) -> TokenError:
        """Do what the table says about a failure; the error for whoever asked. The lock is held."""
        if not isinstance(reply, Failed):
            return await self._quarantine("it answered something else than what it was asked")
        text = f"{reply.ckr}: {reply.text}" if reply.text else reply.ckr
        reaction = failures.reaction(reply.ckr, "in use")
        self._metrics.token_failures.labels(reply.ckr, reaction.value).inc()
        if reply.ckr in failures.PIN_WORDS:
            return await self._take_out_for_good(PinRefusedError(f"the token refused the PIN ({text})"))
        match reaction:
            case Reaction.QUARANTINE:
                return await self._quarantine(f"{text} ({failures.why(reply.ckr)})")
            case Reaction.STOP:
                return TokenRefusedError(reply.ckr, reply.text or failures.why(reply.ckr))
            case Reaction.NEW_WORKER:
                await self._lose(text)
        return TokenUnavailableError(text)

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
            self._metrics.wrong_signatures.inc()
            raise await self._quarantine(f"it returned a wrong signature: {error}") from None

    # --- opening and recovering ---------------------------------------------------------------------------

    async def _open(self) -> None:
        """Start a worker and prove that it holds the pinned token; one login. The lock is held."""
        self._require_in_service()
        if self.pins.is_locked:
            self.pins.check()
        if self._failures or self.info:
            self.restarts += 1
            self._metrics.token_restarts.inc()
        worker = await WorkerProcess.start(self.config.environment, self._on_lost)
        try:
            proven = await self._opening.open(partial(self._timed, worker), self._pinned)
        except TokenError as error:
            await worker.kill()
            self._failures += 1
            self._down = str(error)
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
            self._retry_at = time.monotonic() + pause
            if isinstance(error, OPENED_BY_A_PERSON):
                await self._take_out_for_good(error)
            raise
        except BaseException:
            await worker.kill()
            raise
        self.keys, self.problems, self.info, self._pinned = proven.keys, proven.problems, proven.info, proven.pinned
        self._worker = worker
        self._up.set()
        self._failures = 0
        for problem in self.problems:
            log.warning("a key on the token cannot be used", problem=problem)

    def _on_lost(self, worker: WorkerProcess) -> None:
        """The worker has ended by itself: recover before anybody asks."""
        if worker is self._worker and not self._closed:
            self._down = "the token worker died"
            self._up.clear()
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
        worker, self._worker = self._worker, None
        self._up.clear()
        self._down = reason
        if worker:
            await worker.kill()

    def _require_in_service(self) -> None:
        if self._final:
            raise type(self._final)(str(self._final))  # a fresh one: each carries its own traceback

    async def _quarantine(self, why: str) -> TokenQuarantinedError:
        error = TokenQuarantinedError(f"the token is quarantined: {why}; nothing is signed with it any more")
        await self._take_out_for_good(error)
        return error

    async def _take_out_for_good(self, error: TokenError) -> TokenError:
        """Out of service until an operator acts, in this process and the next."""
        self._take_out(error)
        self._out_of_service.write(error)
        await self._drop(str(error))
        return error

    def _take_out(self, error: TokenError) -> None:
        self._final = error
        self._metrics.token_quarantined.set(isinstance(error, TokenQuarantinedError))
        log.critical("token is out of service", code=error.code, reason=str(error))

    def _put_back(self) -> None:
        self._final = None
        self._out_of_service.clear()
        self._metrics.token_quarantined.set(0)

    def _key(self, key_id: KeyId) -> TokenKey:
        key = self.keys.get(key_id)
        if key is None:
            self.require_usable()
            raise UnknownKeyError(f"key {key_id[:16]}… is not on this token")
        return key
