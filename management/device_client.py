"""One endorsement device, as management sees it: what waits for it, what is in flight, whether it lives.

Everything that waits goes into one request, at most two are in flight: the next batch fills while the device
signs the one before. An answer is used only when all of it holds.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import httpx2
import msgspec
import structlog

from ledger.replica import Replica
from management.answers import VerifiedAnswer, verify
from management.errors import BadAnswerError, DeviceRefusedError, DeviceUnreachableError, ManagementError
from management.metrics import Metrics
from management.pool import Record
from protocol import canonical
from protocol.canonical import TxId
from protocol.envelope import Signature
from protocol.messages import DeviceStatus, EndorseRequest, Proposal, Signed
from transport.address import Address
from transport.connect import connect
from transport.problem import ProblemError, raise_for_problem

MOST_PROPOSALS: Final = 1024
LEAST_PROPOSALS: Final = 64
MOST_BYTES: Final = 12 << 20
MOST_IN_FLIGHT: Final = 2
MOST_WAITING: Final = 4 * MOST_PROPOSALS
ENDORSE_SECONDS: Final = 5.0
STATUS_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.5
MOST_ANSWER_BYTES: Final = 64 << 20

_log = structlog.get_logger()


class Ask(msgspec.Struct, frozen=True, eq=False):
    """A transaction, and the nodes for which the device is asked to vote."""

    record: Record
    nodes: tuple[str, ...]


Outcome = list[VerifiedAnswer] | ManagementError
OnAnswers = Callable[[str, Sequence[Ask], Outcome], None]


class DeviceClient:
    """The one connection to a device."""

    def __init__(
        self,
        name: str,
        address: Address,
        replica: Replica,
        *,
        checkers: Executor,
        metrics: Metrics,
        on_answers: OnAnswers,
    ) -> None:
        self.name = name
        self.address = address
        self.status: DeviceStatus | None = None
        self.reason = "not asked yet"
        self._replica = replica
        self._checkers = checkers
        self._metrics = metrics
        self._on_answers = on_answers
        self._http = connect(address, timeout=ENDORSE_SECONDS)
        self._waiting: deque[Ask] = deque()
        self._wake = asyncio.Event()
        self._batch = MOST_PROPOSALS
        self._in_flight: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether it answered lately and said that it can sign."""
        return self.status is not None and self.status.ready

    @property
    def has_room(self) -> bool:
        """Whether more may be put before it."""
        return len(self._waiting) < MOST_WAITING

    @property
    def waiting(self) -> int:
        """How many proposals wait to be sent."""
        return len(self._waiting)

    def put(self, ask: Ask) -> None:
        """Ask for votes; the answer goes to `on_answers`."""
        self._waiting.append(ask)
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send what waits and watch the device until `stop` is set."""
        watch = asyncio.create_task(self._watch(stop))
        try:
            while not stop.is_set():
                await self._wake.wait()
                self._wake.clear()
                while self._waiting and len(self._in_flight) < MOST_IN_FLIGHT and not stop.is_set():
                    task = asyncio.create_task(self._endorse(self._take()))
                    self._in_flight.add(task)
                    task.add_done_callback(self._landed)
        finally:
            watch.cancel()
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(watch, *self._in_flight, return_exceptions=True)
            await self._http.aclose()

    def wake(self) -> None:
        """Look again whether to stop."""
        self._wake.set()

    async def sign(self, door: str, body: bytes, seconds: float = ENDORSE_SECONDS) -> Signature:
        """The signature that a typed door (`sign-header`, …) gives for `body`.

        Raises `DeviceRefusedError` with the device's own code, `DeviceUnreachableError`, `BadAnswerError`.
        """
        answer = await self._post(f"/v1/{door}", body, seconds)
        try:
            return _signed_decoder.decode(answer).signature
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadAnswerError(f"device {self.name} answered what is no signature: {error}") from None

    def _landed(self, task: "asyncio.Task[None]") -> None:
        self._in_flight.discard(task)
        self._wake.set()
        if not task.cancelled() and task.exception():
            _log.error("an endorsement request failed", device=self.name, reason=repr(task.exception()))

    def _take(self) -> list[Ask]:
        taken: list[Ask] = []
        size = 0
        while self._waiting and len(taken) < self._batch:
            size += len(self._waiting[0].record.transaction.raw)
            if taken and size > MOST_BYTES:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _endorse(self, asks: list[Ask]) -> None:
        """Ask, and ask once more when the answer does not hold; tell what came of it in any case."""
        outcome: Outcome = BadAnswerError("not asked")
        try:
            for _attempt in range(2):
                outcome = await self._ask(asks)
                if not isinstance(outcome, BadAnswerError):
                    break
        except BaseException as error:
            outcome = DeviceUnreachableError(f"device {self.name} was not asked to the end: {error!r}")
            raise
        finally:
            self._on_answers(self.name, asks, outcome)

    async def _ask(self, asks: list[Ask]) -> Outcome:
        started = time.monotonic()
        self._metrics.requests.labels(self.name).inc()
        body = canonical.encode(
            EndorseRequest(
                # What its author has seen committed, the device must have applied: behind is not "no".
                least_height=max(ask.record.height for ask in asks),
                proposals=tuple(Proposal(msgspec.Raw(ask.record.transaction.raw), ask.nodes) for ask in asks),
            )
        )
        try:
            answer = await self._post("/v1/endorse", body, ENDORSE_SECONDS)
            verified = await asyncio.get_running_loop().run_in_executor(self._checkers, self._verify, answer, asks)
            self._batch = min(2 * self._batch, MOST_PROPOSALS)
        except BadAnswerError as error:
            self._metrics.bad_answers.labels(self.name).inc()
            _log.warning("a device's answer does not hold", device=self.name, reason=str(error))
            return error
        except ManagementError as error:
            self._metrics.unreachable.labels(self.name).inc()
            self._batch = max(self._batch // 4, LEAST_PROPOSALS)  # perhaps it was too much for the time it has
            _log.warning("a device did not endorse", device=self.name, reason=str(error))
            return error
        else:
            return verified
        finally:
            self._metrics.endorse.labels(self.name).observe(time.monotonic() - started)

    def _verify(self, answer: bytes, asks: list[Ask]) -> list[VerifiedAnswer]:
        replica = self._replica
        asked: list[tuple[TxId, tuple[str, ...]]] = [(ask.record.id, ask.nodes) for ask in asks]
        now = max(time.time_ns() // 1_000_000, replica.time)
        return verify(answer, asked, self.name, replica.registry, replica.memory, height=replica.height + 1, time=now)

    async def _post(self, path: str, body: bytes, seconds: float) -> bytes:
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.stream("POST", path, content=body, headers=_JSON, timeout=seconds) as response,
            ):
                chunks: list[bytes] = []
                size = 0
                async for chunk in response.aiter_raw():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > MOST_ANSWER_BYTES:
                        raise BadAnswerError(f"device {self.name} answered more than {MOST_ANSWER_BYTES} bytes")
                answer = b"".join(chunks)
            raise_for_problem(response.status_code, answer)
        except ProblemError as error:
            raise DeviceRefusedError(error.problem.code, f"device {self.name}: {error.problem.detail}") from None
        except TimeoutError:
            raise DeviceUnreachableError(f"device {self.name} did not answer within {seconds:.0f} s") from None
        except (httpx2.HTTPError, OSError) as error:
            raise DeviceUnreachableError(
                f"device {self.name} cannot be reached: {error or type(error).__name__}"
            ) from None
        else:
            return answer

    async def _watch(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._look()
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        before = self.is_ready
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                response = await self._http.get("/v1/status")
            raise_for_problem(response.status_code, response.content)
            status = _status_decoder.decode(response.content)
            if status.device == self.name:
                self.status, self.reason = status, status.reason or ("" if status.ready else "not ready")
            else:
                self.status, self.reason = None, f"{self.address} is device {status.device}, not {self.name}"
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            self.status, self.reason = None, f"not reachable at {self.address}: {error or type(error).__name__}"
        except (ProblemError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.status, self.reason = None, f"answers no status: {error}"
        if before != self.is_ready:
            _log.info("a device changed", device=self.name, ready=self.is_ready, reason=self.reason)
        if not self.is_ready and self._waiting:  # others may do it, or this one later
            asks = list(self._waiting)
            self._waiting.clear()
            self._on_answers(self.name, asks, DeviceUnreachableError(f"device {self.name}: {self.reason}"))


_JSON: Final = {"Content-Type": "application/json"}
_signed_decoder = msgspec.json.Decoder(Signed)
_status_decoder = msgspec.json.Decoder(DeviceStatus)
