"""One endorsement device, as management sees it: what waits for it, what is in flight, whether it lives, how fast.

Everything that waits goes into one request, at most two are in flight: the next batch fills while the device
signs the one before. An answer is used only when all of it holds. Who owes an answer for too long is called silent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final, Protocol

import httpx2
import msgspec
import structlog

from ledger.replica import Replica
from management.answers import VerifiedAnswer, verify
from management.errors import BadAnswerError, DeviceRefusedError, DeviceUnreachableError, ManagementError
from management.metrics import Metrics
from management.pace import Figures, Pace
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
TYPICAL_PROPOSALS: Final = 32
MOST_BYTES: Final = 12 << 20
MOST_IN_FLIGHT: Final = 2
MOST_WAITING: Final = 4 * MOST_PROPOSALS
ENDORSE_SECONDS: Final = 5.0
STATUS_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.5
SILENCE_POLL_SECONDS: Final = 0.1
SILENT_TIMES: Final = 3.0
"""A device is silent when an answer takes so many times what was expected, and `hedge_seconds` at least."""
MOST_ANSWER_BYTES: Final = 64 << 20

_log = structlog.get_logger()


class Ask(msgspec.Struct, frozen=True, eq=False):
    """A transaction, and the nodes for which the device is asked to vote."""

    record: Record
    nodes: tuple[str, ...]


Outcome = list[VerifiedAnswer] | ManagementError


class Listener(Protocol):
    """Who asks, and is told what came of it."""

    def is_wanted(self, ask: Ask) -> bool:
        """Whether votes on this are still of use."""
        ...

    def on_answers(self, device: str, asks: Sequence[Ask], outcome: Outcome) -> None:
        """What the device answered."""
        ...

    def on_silent(self, device: str, asks: Sequence[Ask], seconds: float) -> None:
        """The device owes these answers for so long; they may still come."""
        ...


class InFlight(msgspec.Struct, eq=False):
    """A request that is not answered yet: since when (monotonic seconds), and for how long that is no wonder."""

    asks: list[Ask]
    since: float
    patience: float


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
        listener: Listener,
        hedge_seconds: float,
    ) -> None:
        self.name = name
        self.address = address
        self.status: DeviceStatus | None = None
        self.reason = "not asked yet"
        self._replica = replica
        self._checkers = checkers
        self._metrics = metrics
        for counter in (metrics.chosen, metrics.requests, metrics.bad_answers, metrics.unreachable):
            counter.labels(name)  # zero is a figure, too: alarms on a rate need it
        self._listener = listener
        self._hedge_seconds = hedge_seconds
        self._http = connect(address, timeout=ENDORSE_SECONDS)
        self._waiting: deque[Ask] = deque()
        self._wake = asyncio.Event()
        self._batch = MOST_PROPOSALS
        self._tasks: set[asyncio.Task[None]] = set()
        self.pace = Pace()
        self._in_flight: list[InFlight] = []
        self._late: set[Ask] = set()
        self._answered_at = 0.0
        self._idle_since = time.monotonic()

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

    @property
    def in_flight(self) -> int:
        """How many proposals are sent and not answered."""
        return sum(len(request.asks) for request in self._in_flight)

    @property
    def is_silent(self) -> bool:
        """Whether it owes an answer for longer than it should take."""
        now = time.monotonic()
        return any(now - request.since > request.patience for request in self._in_flight)

    @property
    def idle_seconds(self) -> float:
        """For how long nothing was asked of it; zero while something is."""
        return 0.0 if self._waiting or self._in_flight else time.monotonic() - self._idle_since

    def cost(self) -> float:
        """In how many seconds an answer to one more proposal is expected (requirement E-7)."""
        own = len(self._waiting) + self.in_flight
        queued = max(own, self.status.queued if self.status else 0)  # others may ask it too
        requests = len(self._in_flight) + 1 + len(self._waiting) // self._batch
        expected = self.pace.expected(requests, queued + 1)
        # Who has taken long already is not about to answer.
        return max(expected, time.monotonic() - self._in_flight[0].since) if self._in_flight else expected

    def typical(self) -> float:
        """In how many seconds it would answer a typical request if nothing else waited."""
        return self.pace.expected(1, TYPICAL_PROPOSALS)

    def figures(self) -> Figures:
        """What is known of its pace."""
        pace = self.pace
        return Figures(
            waiting=len(self._waiting),
            in_flight=self.in_flight,
            queued=self.status.queued if self.status else None,
            reported_batch_ms=self.status.batch_microseconds / 1000 if self.status else 0.0,
            reported_error_rate=self.status.failed_permille / 1000 if self.status else 0.0,
            network_ms=round(1000 * pace.network, 3),
            batch_ms=round(1000 * pace.batch, 3),
            fixed_ms=round(1000 * pace.fixed, 3),
            each_ms=round(1000 * pace.each, 3),
            error_rate=round(pace.error_rate, 3),
            expected_ms=round(1000 * self.cost(), 3),
        )

    def put(self, ask: Ask) -> None:
        """Ask for votes; the answer goes to the listener."""
        self._waiting.append(ask)
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send what waits and watch the device until `stop` is set."""
        watches = [asyncio.create_task(self._watch(stop)), asyncio.create_task(self._notice_silence(stop))]
        try:
            while not stop.is_set():
                await self._wake.wait()
                self._wake.clear()
                while self._waiting and len(self._tasks) < MOST_IN_FLIGHT and not stop.is_set():
                    asks = self._take()
                    if asks:
                        task = asyncio.create_task(self._endorse(asks))
                        self._tasks.add(task)
                        task.add_done_callback(self._landed)
        finally:
            for task in (*watches, *self._tasks):
                task.cancel()
            await asyncio.gather(*watches, *self._tasks, return_exceptions=True)
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
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and task.exception():
            _log.error("an endorsement request failed", device=self.name, reason=repr(task.exception()))

    def _take(self) -> list[Ask]:
        taken: list[Ask] = []
        size = 0
        while self._waiting and len(taken) < self._batch:
            if not self._listener.is_wanted(self._waiting[0]):  # others have answered meanwhile
                self._late.discard(self._waiting.popleft())
                continue
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
            self._late.difference_update(asks)
            self._listener.on_answers(self.name, asks, outcome)

    async def _ask(self, asks: list[Ask]) -> Outcome:
        started = time.monotonic()
        ahead = len(self._in_flight)
        expected = self.pace.expected(ahead + 1, self.in_flight + len(asks))
        request = InFlight(asks, started, max(self._hedge_seconds, SILENT_TIMES * expected))
        self._in_flight.append(request)
        self._metrics.requests.labels(self.name).inc()
        body = canonical.encode(
            EndorseRequest(
                # What its author has seen committed, the device must have applied: behind is not "no".
                least_height=max(ask.record.height for ask in asks),
                proposals=tuple(Proposal(msgspec.Raw(ask.record.transaction.raw), ask.nodes) for ask in asks),
            )
        )
        try:
            try:
                answer = await self._post("/v1/endorse", body, ENDORSE_SECONDS)
            finally:
                self._in_flight.remove(request)
                seconds = self._measured(request)
            verified = await asyncio.get_running_loop().run_in_executor(self._checkers, self._verify, answer, asks)
            self._batch = min(2 * self._batch, MOST_PROPOSALS)
            if all(each.failure is not None for each in verified):
                self.pace.failed()  # a quick no is no pace
            else:
                self.pace.answered(len(asks), seconds)
        except BadAnswerError as error:
            self.pace.failed()
            self._metrics.bad_answers.labels(self.name).inc()
            _log.warning("a device's answer does not hold", device=self.name, reason=str(error))
            return error
        except ManagementError as error:
            self.pace.failed()
            self._metrics.unreachable.labels(self.name).inc()
            self._batch = max(self._batch // 4, LEAST_PROPOSALS)  # perhaps it was too much for the time it has
            _log.warning("a device did not endorse", device=self.name, reason=str(error))
            return error
        else:
            return verified
        finally:
            self._metrics.endorse.labels(self.name).observe(time.monotonic() - started)

    def _measured(self, request: InFlight) -> float:
        """How long the device worked on a request, in seconds: it works on one after the other."""
        now = time.monotonic()
        if request.since >= self._answered_at:
            seconds = now - request.since - self.pace.network
        else:
            seconds = now - self._answered_at  # its way there lay in the time of the request before
        self._answered_at = self._idle_since = now
        return seconds

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

    async def _notice_silence(self, stop: asyncio.Event) -> None:
        """Say of whatever waits for a silent device, once, that it may take long."""
        while not stop.is_set():
            await asyncio.sleep(SILENCE_POLL_SECONDS)
            if self.is_silent:
                owed = (*(ask for request in self._in_flight for ask in request.asks), *self._waiting)
                late = [ask for ask in owed if ask not in self._late]
                self._late.update(late)
                self._listener.on_silent(self.name, late, time.monotonic() - self._in_flight[0].since)

    async def _look(self) -> None:
        before = self.is_ready
        started = time.monotonic()
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                response = await self._http.get("/v1/status")
            self.pace.polled(time.monotonic() - started)
            raise_for_problem(response.status_code, response.content)
            status = _status_decoder.decode(response.content)
            if status.device == self.name:
                self.status, self.reason = status, status.reason or ("" if status.ready else "not ready")
                self.pace.reported(status.batch_microseconds / 1e6)
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
            self._late.difference_update(asks)
            self._listener.on_answers(self.name, asks, DeviceUnreachableError(f"device {self.name}: {self.reason}"))
        self._metrics.show(self.name, self.figures())


_JSON: Final = {"Content-Type": "application/json"}
_signed_decoder = msgspec.json.Decoder(Signed)
_status_decoder = msgspec.json.Decoder(DeviceStatus)
