"""The audit's end of a probe worker: every call has a deadline, a worker that hangs is killed, a new one takes over.

A PIN that the token refused is never given again, not by a new worker either.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeVar

import msgspec

from hsm_endorser import failures
from hsm_endorser.custody.errors import ProbeLostError, ProbeRefusedError
from hsm_endorser.custody.probe_messages import (
    Bytes,
    Done,
    Login,
    NumberedFinding,
    NumberedProbe,
    ProbeReply,
    ProbeRequest,
    Read,
    TokenInfo,
)
from hsm_endorser.errors import PinFileError, TokenUnavailableError
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.worker_messages import Failed, Open, Pin
from hsm_endorser.worker_process import AskedProcess

Reply = TypeVar("Reply", bound=msgspec.Struct)
CALL_SECONDS: Final = 20.0
"""Deadline of one call: a slow token needs its time for an RSA key, and the audit is in no hurry."""


class ProbeProcess(AskedProcess[ProbeRequest, ProbeReply]):
    """The worker that attacks (`custody.probe_worker`)."""

    program = "hsm_endorser.custody.probe_worker"
    request_frame = NumberedProbe
    reply_frame = NumberedFinding


class Probe:
    """One token behind a probe worker. Make one with `open`; calls are made one at a time."""

    def __init__(self, config: TokenConfig, pin: Pin | None, seconds: float) -> None:
        self.config = config
        self.seconds = seconds
        self.calls = 0
        self._pin = pin
        self._refused: Failed | None = None
        self._process: ProbeProcess | None = None

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        config: TokenConfig, *, pin: Pin | None = None, seconds: float = CALL_SECONDS
    ) -> AsyncIterator["Probe"]:
        """A probe with no worker yet: `start` it. The worker is gone at the end, whatever happens."""
        probe = Probe(config, pin, seconds)
        try:
            yield probe
        finally:
            await probe.kill()

    async def start(self) -> TokenInfo:
        """A fresh worker with a session on the token, not logged in; the one before is killed.

        Raises `ProbeRefusedError` when there is no such token or the module does not load, `ProbeLostError` when it
        hangs or dies.
        """
        await self.kill()
        uri, start = self.config.uri, self.config.start_seconds
        try:
            self._process = await ProbeProcess.start(self.config.environment, lambda _: None)
        except TokenUnavailableError as error:
            raise ProbeLostError(str(error)) from None
        pin_file = None if self._pin else uri.pin_file
        request = Open(
            module=str(uri.module), pin=self._pin, pin_file=str(pin_file) if pin_file else None, token=uri.token,
            manufacturer=uri.manufacturer, model=uri.model, serial=uri.serial, slot_id=uri.slot_id,
            lock_seconds=start / 2,
        )  # fmt: skip
        reply = await self.call(request, max(start, self.seconds))
        if not isinstance(reply, TokenInfo):
            raise ProbeRefusedError.of("the token cannot be opened", reply)
        return reply

    async def login(self) -> None:
        """Log in. Raises `PinFileError`, `ProbeRefusedError` or `ProbeLostError`."""
        if self._refused:
            raise ProbeRefusedError.of("the token refused the PIN before; it is not given again", self._refused)
        reply = await self.call(Login(), max(self.config.start_seconds, self.seconds))
        if isinstance(reply, Failed) and reply.ckr == "PinFile":
            raise PinFileError(reply.text)
        if isinstance(reply, Failed) and (reply.ckr in failures.PIN_WORDS or reply.ckr == failures.UNKNOWN):
            self._refused = reply
        if not isinstance(reply, Done):
            raise ProbeRefusedError.of("the login was refused; it is not tried again", reply)

    async def call(self, request: ProbeRequest, seconds: float | None = None) -> ProbeReply:
        """The module's answer to one request, within `seconds`.

        Raises `ProbeLostError` when the module hangs or takes the worker with it; the worker is dead then.
        """
        if self._process is None:
            raise ProbeLostError("there is no probe worker")
        self.calls += 1
        try:
            return await self._process.call(request, seconds or self.seconds)
        except TokenUnavailableError as error:
            await self.kill()
            raise ProbeLostError(f"{type(request).__name__}: {error}") from None
        except BaseException:  # cancelled: whatever it is doing, nobody waits for it
            await self.kill()
            raise

    async def value(self, number: int, attribute: int) -> Bytes | Failed:
        """One attribute of one object: its bytes, or why there are none."""
        return expect(await self.call(Read(number, attribute)), Bytes)

    async def kill(self) -> None:
        """End the worker, if there is one."""
        process, self._process = self._process, None
        if process:
            await process.kill()

    @property
    def pid(self) -> int | None:
        """The process id of the worker."""
        return self._process.pid if self._process else None


def expect(reply: ProbeReply, kind: type[Reply]) -> Reply | Failed:
    """The reply as the kind that belongs to the request, or the refusal."""
    if isinstance(reply, (kind, Failed)):
        return reply
    raise ProbeLostError(f"the probe worker answered {type(reply).__name__} where {kind.__name__} was expected")
