"""Starts, asks and kills a worker that loads a PKCS#11 module: the only place where its process is touched."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import msgspec

from hsm_endorser.errors import TokenUnavailableError
from hsm_endorser.worker_messages import (
    FRAME_LENGTH,
    MAX_FRAME,
    NumberedReply,
    NumberedRequest,
    Reply,
    Request,
    frame,
)

IMPORT_FROM: Final = str(Path(__file__).resolve().parent.parent)
KILL_SECONDS: Final = 2.0
"""How long the kernel may take to end a process that was sent SIGKILL."""


Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class AskedProcess(Generic[Asked, Answered]):
    """One worker, from its start to its end. Calls are made one at a time."""

    program: ClassVar[str]
    """The module that it runs."""
    request_frame: ClassVar[type[Any]]
    reply_frame: ClassVar[type[Any]]
    """A number, and `request` or `reply`."""

    def __init__(self, process: subprocess.Popen[bytes], on_lost: Callable[[Any], None]) -> None:
        self._process = process
        self._on_lost = on_lost
        self._number = 0
        self._awaited: tuple[int, asyncio.Future[Answered]] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ended = False

    @classmethod
    async def start(cls, environment: Mapping[str, str], on_lost: Callable[[Self], None]) -> Self:
        """A new worker with this environment alone; `on_lost` is told when it ends without having been asked to."""
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220  starting takes a millisecond and must happen in this thread
                # The kernel ends the worker when the thread that started it ends: the event loop's.
                [sys.executable, "-P", "-m", cls.program, str(theirs.fileno()), str(os.getpid())],
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **environment, "PYTHONPATH": IMPORT_FROM},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise TokenUnavailableError(f"the token worker cannot be started: {error}") from None
        finally:
            theirs.close()
        worker = cls(process, on_lost)
        try:
            reader, worker._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            await worker.kill()
            raise
        worker._pump = asyncio.create_task(worker._read(reader))
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended, or was told to."""
        return self._ended

    async def call(self, request: Asked, seconds: float) -> Answered:
        """The reply to one request; raises `TokenUnavailableError` when it does not come within `seconds`.

        After that the worker cannot be trusted to be in step: kill it.
        """
        if self._ended or self._writer is None:
            raise TokenUnavailableError("the token worker has ended")
        self._number += 1
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._awaited = (self._number, future)
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(frame(type(self).request_frame(self._number, request)))
                await self._writer.drain()
                return await future
        except TimeoutError:
            raise TokenUnavailableError(f"the token did not answer within {seconds:g} s") from None
        except OSError as error:
            raise TokenUnavailableError(f"the token worker has ended: {error}") from None
        finally:
            self._awaited = None

    async def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._ended = True
        self._process.kill()
        if self._pump:
            self._pump.cancel()
        if self._writer:
            self._writer.close()
        try:
            # Shielded: whoever is cancelled here must not leave a process that nobody waits for.
            await asyncio.shield(asyncio.create_task(asyncio.to_thread(self._process.wait, KILL_SECONDS)))
        except subprocess.TimeoutExpired:
            raise TokenUnavailableError(
                f"the token worker {self.pid} does not end although it was killed: its driver hangs in the kernel"
            ) from None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder(type(self).reply_frame)
        try:
            while True:
                (length,) = FRAME_LENGTH.unpack(await reader.readexactly(FRAME_LENGTH.size))
                if length > MAX_FRAME:
                    break
                reply = decoder.decode(await reader.readexactly(length))
                if self._awaited and self._awaited[0] == reply.number and not self._awaited[1].done():
                    self._awaited[1].set_result(reply.reply)
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError):
            pass
        self._ended = True
        if self._awaited and not self._awaited[1].done():
            self._awaited[1].set_exception(TokenUnavailableError("the token worker died during the call"))
        self._on_lost(self)


class WorkerProcess(AskedProcess[Request, Reply]):
    """The worker that signs for the service (`token_worker`)."""

    program = "hsm_endorser.token_worker"
    request_frame = NumberedRequest
    reply_frame = NumberedReply
