"""Hands in many transactions in batches and follows the event stream until each has its end.

Cheap on purpose: bytes are prepared beforehand, a batch is one request over one Unix socket connection, and
what became of the transactions is read from one stream.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import httpx2
import msgspec

from cli.api import Management
from protocol.block import VALID
from protocol.messages import CommitEvent
from transport.address import Address
from transport.problem import Problem, ProblemError

BATCH: Final = 512
SENDERS: Final = 3
MAX_PENDING: Final = 8_192
SILENT_SECONDS: Final = 5.0
"""A transaction that nothing is heard of for so long is asked for by its id."""
ASKED_AT_ONCE: Final = 64
RETRY_SECONDS: Final = 0.25
RETRIED: Final = frozenset({"pool-full", "busy", "too-many-requests"})
SEND_ATTEMPTS: Final = 60

Signed = tuple[str, bytes]
"""A transaction id, and the canonical bytes of its envelope."""


class End(msgspec.Struct, frozen=True):
    """What became of a transaction: committed at a height with a code, or refused with a problem."""

    code: str
    height: int | None
    seconds: float
    """From the moment it was sent to the moment its end was heard of."""
    problem: Problem | None = None


class Submission:
    """One run of batches. Thread-safe; `ends` grows until every transaction has its end."""

    def __init__(self, address: Address, *, start: int, senders: int = SENDERS, max_pending: int = MAX_PENDING) -> None:
        """`start` is the height from which on commit events are followed."""
        self._address = address
        self._start = start
        self._senders = senders
        self._max_pending = max_pending
        self._changed = threading.Condition()
        self._source_lock = threading.Lock()
        self._pending: OrderedDict[str, float] = OrderedDict()
        self._stopped = False
        self._failure: Exception | None = None
        self._counts: Counter[str] = Counter()
        self.ends: dict[str, End] = {}
        self.first_sent: float | None = None
        self.last_end: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many transactions ended with each code; `valid` took effect."""
        with self._changed:
            return dict(self._counts)

    @property
    def pending(self) -> int:
        """How many were sent and have no end yet."""
        return len(self._pending)

    @property
    def acknowledged(self) -> int:
        """How many were sent and not refused at once."""
        return len(self._pending) + sum(1 for end in self.ends.values() if end.height is not None)

    def run(self, batches: Iterator[list[Signed]], progress: Callable[[int], None] = lambda _done: None) -> None:
        """Send all batches and wait for every end. A Ctrl-C stops sending and leaves what is known in `ends`."""
        senders = [threading.Thread(target=self._send_all, args=(batches,), daemon=True) for _ in range(self._senders)]
        follower = threading.Thread(target=self._follow, daemon=True)
        follower.start()
        for sender in senders:
            sender.start()
        try:
            self._watch(senders, progress)
        finally:
            self.stop()
            for sender in senders:
                sender.join()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait_ended(self, batch: list[Signed]) -> bool:
        """Wait until a batch has its ends (a source may ask, between batches); false when the run stops first."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or all(each in self.ends for each, _ in batch))
            return not self._stopped

    # ---- sending

    def _send_all(self, batches: Iterator[list[Signed]]) -> None:
        try:
            with Management(self._address) as management:
                while (batch := self._next(batches)) is not None:
                    self._send(management, batch)
        except Exception as error:  # noqa: BLE001  told to whoever waits in `run`
            with self._changed:
                self._failure = self._failure or error
            self.stop()

    def _next(self, batches: Iterator[list[Signed]]) -> list[Signed] | None:
        with self._source_lock:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or len(self._pending) < self._max_pending)
            return None if self._stopped else next(batches, None)

    def _send(self, management: Management, batch: list[Signed]) -> None:
        now = time.monotonic()
        with self._changed:
            self.first_sent = self.first_sent or now
            self._pending.update((identity, now) for identity, _ in batch if identity not in self.ends)
        for attempt in range(SEND_ATTEMPTS):
            batch = self._send_once(management, batch, last=attempt == SEND_ATTEMPTS - 1)
            if not batch or self._stopped:
                return
            time.sleep(RETRY_SECONDS)

    def _send_once(self, management: Management, batch: list[Signed], *, last: bool) -> list[Signed]:
        """Send; returns what should be sent again: the pool was full, or nobody knows whether it arrived."""
        try:
            results = management.submit_batch([raw for _, raw in batch])
        except ProblemError as error:
            if error.problem.code in RETRIED and not last:
                return batch
            raise
        except httpx2.TransportError:
            if last:
                raise
            return batch  # handing in twice is harmless: a transaction is known by its id
        again: list[Signed] = []
        for (identity, raw), result in zip(batch, results, strict=True):
            if result.problem is None:
                continue
            if result.problem.code in RETRIED and not last:
                again.append((identity, raw))
            else:
                self._end(identity, result.problem.code, None, result.problem)
        return again

    # ---- following

    def _follow(self) -> None:
        try:
            with Management(self._address) as management:
                for event in management.events(self._start, lambda: self._stopped):
                    self._heard(event)
        except Exception as error:  # noqa: BLE001  told to whoever waits in `run`
            with self._changed:
                self._failure = self._failure or error
            self.stop()

    def _heard(self, event: CommitEvent) -> None:
        now = time.monotonic()
        with self._changed:
            for identity, code in event.outcomes:
                sent = self._pending.pop(identity, None)
                if sent is not None:
                    self._note(identity, End(code, event.height, now - sent))
            self._changed.notify_all()

    def _end(self, identity: str, code: str, height: int | None, problem: Problem | None) -> None:
        with self._changed:
            sent = self._pending.pop(identity, None)
            if sent is not None:
                self._note(identity, End(code, height, time.monotonic() - sent, problem))
            self._changed.notify_all()

    def _note(self, identity: str, end: End) -> None:
        self.ends[identity] = end
        self._counts[end.code] += 1
        self.last_end = time.monotonic()

    # ---- watching

    def _watch(self, senders: list[threading.Thread], progress: Callable[[int], None]) -> None:
        with Management(self._address) as management:
            while not self._stopped:
                with self._changed:
                    self._changed.wait(0.25)
                progress(len(self.ends))
                if self._pending:
                    self._ask(management)
                elif not any(sender.is_alive() for sender in senders):
                    return

    def _ask(self, management: Management) -> None:
        """Ask for what has been silent: a transaction that failed is in no block, so no event tells of it."""
        now = time.monotonic()
        with self._changed:
            silent: list[str] = []
            for identity, sent in self._pending.items():
                if now - sent < SILENT_SECONDS or len(silent) == ASKED_AT_ONCE:
                    break
                silent.append(identity)
        for identity in silent:
            try:
                status = management.status(identity)
            except (ProblemError, httpx2.TransportError):
                continue
            if status.final:
                problem = status.problem
                code = status.code or (problem.code if problem else status.status)
                self._end(identity, code, status.height, problem)


def is_valid(end: End) -> bool:
    """Whether a transaction took effect."""
    return end.height is not None and end.code == VALID
