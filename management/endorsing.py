"""Gathering votes until each transaction's policy is satisfied, cannot be any more, or time is up (E-5, E-12).

The result is data: who approved, who refused, who is missing, every device tried and what it said. There is no
task for a single transaction: answers come in batches, and one tick looks after those that nobody could vote on.

Who owes an answer for too long is passed over: another device is asked besides, and whichever answers counts.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from ledger.endorsement_rule import EndorsementRule
from ledger.replica import Replica
from management.alarms import Alarms
from management.answers import VerifiedAnswer
from management.device_client import Ask, Outcome
from management.errors import DeviceRefusedError, ManagementError
from management.metrics import Metrics
from management.outcome import Refusal, Tried
from management.pool import Cast, Endorsed, Pool, Record
from management.refusing import endorsement_refused, endorsement_unavailable, no_policy
from management.routing import Assignment, Candidate, Need, Place, Router
from management.rule_now import lapsed, rule_now
from protocol.canonical import TxId
from protocol.policy import PolicyResult

RETRY_SECONDS: Final = 1.0
TICK_SECONDS: Final = 0.1
MOST_TRIED: Final = 32
"""How many answers of devices are kept for one transaction."""
REMEMBERED: Final = 65_536
"""How many endorsed transactions are remembered, so that a late reject is known for what it is."""
CACHE: Final = 4096

_log = structlog.get_logger()


class Endorser(Candidate, Protocol):
    """A device that can be asked for votes."""

    def put(self, ask: Ask) -> None:
        """Ask for votes."""
        ...


class Patience(msgspec.Struct, frozen=True):
    """How long is waited, in seconds, from the first question on; and from it when all that is left is silent."""

    deadline: float
    silence: float


class Gathering(msgspec.Struct, eq=False):
    """The votes on one transaction so far. Times are monotonic seconds; zero stands for not yet."""

    record: Record
    approved: dict[str, dict[str, Cast]] = {}
    """By node and device."""
    rejected: dict[str, str] = {}
    asked: set[Place] = set()
    late: set[Place] = set()
    """Asked, and silent for too long; an answer may still come."""
    failed: set[Place] = set()
    tried: list[Tried] = []
    begun: float = 0.0
    asked_at: float = 0.0
    retry: float = 0.0

    @property
    def places(self) -> frozenset[Place]:
        """Where nodes approved."""
        return frozenset((node, device) for node, devices in self.approved.items() for device in devices)

    def places_that_count(self, rule: EndorsementRule) -> frozenset[Place]:
        """Where nodes approved with keys of a sufficient tier."""
        return frozenset((node, device) for node, device in self.places if self._counts(rule, node, device))

    def _counts(self, rule: EndorsementRule, node: str, device: str) -> bool:
        return rule.counts(self.approved[node][device].key_of(node))


class Judged(msgspec.Struct, frozen=True):
    """How the votes stand, and, when they satisfy the policy, which of them are enough."""

    result: PolicyResult
    enough: Mapping[str, str]


class Endorsing:
    """Asks devices through the router, and hands endorsed transactions to the pool."""

    def __init__(
        self,
        replica: Replica,
        pool: Pool,
        router: Router,
        devices: Mapping[str, Endorser],
        *,
        let_go: Callable[[Sequence[tuple[Record, Refusal]]], None],
        alarms: Alarms,
        metrics: Metrics,
        patience: Patience,
        tell: Callable[[Iterable[TxId]], None] = lambda _endorsed: None,
    ) -> None:
        self._replica = replica
        self._pool = pool
        self._router = router
        self._devices = devices
        self._let_go = let_go
        self._alarms = alarms
        self._metrics = metrics
        self._patience = patience
        self._tell = tell
        self._queue: deque[Gathering] = deque()
        self._gatherings: dict[TxId, Gathering] = {}
        self._stalled: dict[TxId, Gathering] = {}
        self._endorsed: dict[TxId, None] = {}
        self._judged: dict[tuple[EndorsementRule, frozenset[Place], frozenset[str]], Judged] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Gather votes for these, from the beginning."""
        now = time.monotonic()
        for record in records:
            gathering = Gathering(record, begun=now)
            self._gatherings[record.id] = gathering
            self._queue.append(gathering)
        self._pump()

    async def run(self, stop: asyncio.Event) -> None:
        """Look after what stands still until `stop` is set."""
        while not stop.is_set():
            self._tick()
            await asyncio.sleep(TICK_SECONDS)

    def is_wanted(self, ask: Ask) -> bool:
        """Whether votes on this are still of use."""
        gathering = self._gatherings.get(ask.record.id)
        return gathering is not None and gathering.record is ask.record

    def on_answers(self, device: str, asks: Sequence[Ask], outcome: Outcome) -> None:
        """What a device answered to a batch, verified; or why there is no answer to any of it."""
        verdicts = {"approve": 0, "reject": 0}
        discarded = 0
        touched: list[Gathering] = []
        answers = [None] * len(asks) if isinstance(outcome, ManagementError) else outcome
        for ask, answer in zip(asks, answers, strict=True):
            if answer is not None:
                verdicts["approve"] += len(answer.approved)
                verdicts["reject"] += len(answer.rejected)
            gathering = self._gatherings.get(ask.record.id)
            if gathering is None or gathering.record is not ask.record:
                if answer is not None:
                    discarded += 1
                    self._on_late(device, ask.record, answer)
                continue
            for node in ask.nodes:
                gathering.asked.discard((node, device))
                gathering.late.discard((node, device))
            self._note(gathering, device, ask.nodes, outcome if isinstance(outcome, ManagementError) else answer)
            touched.append(gathering)
        for verdict, count in verdicts.items():
            self._metrics.votes.labels(device, verdict).inc(count)
        self._metrics.discarded.labels(device).inc(discarded)
        self._judge(touched)
        self._pump()

    def on_silent(self, device: str, asks: Sequence[Ask], seconds: float) -> None:
        """A device owes these answers for so long that others are asked too."""
        touched: list[Gathering] = []
        for ask in asks:
            gathering = self._gatherings.get(ask.record.id)
            places = {(node, device) for node in ask.nodes}
            if gathering is None or gathering.record is not ask.record or not places <= gathering.asked:
                continue
            gathering.late |= places
            _tell(gathering, Tried(device, ask.nodes, "silent", f"no answer within {seconds:.1f} s"))
            touched.append(gathering)
        if touched:
            _log.warning("a device is silent; others are asked", device=device, transactions=len(touched))
            self._metrics.hedged.labels(device).inc(len(touched))
            self._judge(touched)
            self._pump()

    def _pump(self) -> None:
        """Send what waits for its first request, as long as devices have room."""
        without_policy: list[tuple[Record, Refusal]] = []
        while self._queue:
            gathering = self._queue[0]
            rule = rule_now(self._replica, gathering.record.transaction.kind)
            if rule is None:
                without_policy.append((gathering.record, no_policy(gathering.record)))
                self._gatherings.pop(gathering.record.id, None)
            else:
                assignment = self._router.choose(rule)
                if assignment is not None:
                    self._ask(gathering, assignment)
                    for device, nodes in self._router.besides(rule, assignment):
                        self._devices[device].put(Ask(gathering.record, nodes))
                elif any(device.is_ready and not device.has_room for device in self._devices.values()):
                    break  # the clock of those behind has not begun
                else:
                    self._stall(gathering)
            self._queue.popleft()
        self._let_go(without_policy)

    def _judge(self, gatherings: Iterable[Gathering]) -> None:
        """Decide about each: endorsed, refused for ever, or whom to ask next."""
        endorsed: list[Endorsed] = []
        ended: list[tuple[Record, Refusal]] = []
        now = time.monotonic()
        for gathering in gatherings:
            record = gathering.record
            rule = rule_now(self._replica, record.transaction.kind)
            if rule is None:
                ended.append((record, no_policy(record)))
                continue
            judged = self._evaluate(rule, gathering)
            if judged.result.satisfied:
                casts = {node: gathering.approved[node][device] for node, device in judged.enough.items()}
                endorsed.append(Endorsed(record, casts))
                self._metrics.time_to_endorse.observe(now - gathering.begun)
            elif not judged.result.possible:
                ended.append((record, endorsement_refused(record, rule, judged.result, gathering)))
            elif gathering.asked == gathering.late or gathering.rejected or gathering.failed or gathering.late:
                self._ask_more(gathering, rule)  # else others are asked already
        for record in (*(each.record for each in endorsed), *(record for record, _ in ended)):
            self._gatherings.pop(record.id, None)
            self._stalled.pop(record.id, None)
        if endorsed:
            self._remember(each.record.id for each in endorsed)
            self._pool.put(endorsed)
            self._tell(each.record.id for each in endorsed)
        self._let_go(ended)

    def _evaluate(self, rule: EndorsementRule, gathering: Gathering) -> Judged:
        places = gathering.places if rule.least_tier == "claimed" else gathering.places_that_count(rule)
        case = (rule, places, frozenset(gathering.rejected))
        judged = self._judged.get(case)
        if judged is None:
            if len(self._judged) >= CACHE:
                self._judged.clear()
            # Where tokens count, a device without an entry vouches for none.
            known = rule.token_of if rule.distinct_devices else self._devices
            devices: dict[str, tuple[str, ...]] = {}
            for node, device in sorted(places):
                if device in known:
                    devices[node] = (*devices.get(node, ()), device)
            result = rule.evaluate(devices, case[2])
            judged = self._judged[case] = Judged(result, (rule.choose(devices) or {}) if result.satisfied else {})
        return judged

    def _ask_more(self, gathering: Gathering, rule: EndorsementRule) -> None:
        open_ones = gathering.asked - gathering.late
        assignment = self._router.choose(
            rule,
            Need(
                voted=gathering.places | open_ones,
                refused=frozenset(gathering.rejected),
                failed=frozenset(gathering.failed | gathering.late),
            ),
        )
        if assignment:
            self._ask(gathering, assignment)
        elif open_ones:
            self._stalled.pop(gathering.record.id, None)
        else:
            self._stall(gathering)

    def _ask(self, gathering: Gathering, assignment: Assignment) -> None:
        if not gathering.asked_at:
            gathering.asked_at = time.monotonic()
        self._stalled.pop(gathering.record.id, None)
        for device, nodes in assignment:
            gathering.asked.update((node, device) for node in nodes)
            self._devices[device].put(Ask(gathering.record, nodes))
            self._metrics.chosen.labels(device).inc()

    def _stall(self, gathering: Gathering) -> None:
        """Nobody ready could satisfy the policy now: try again for as long as there is time."""
        now = time.monotonic()
        if not gathering.asked_at:
            gathering.asked_at = now
        gathering.retry = now + RETRY_SECONDS
        self._stalled[gathering.record.id] = gathering

    def _tick(self) -> None:
        now = time.monotonic()
        ended: list[tuple[Record, Refusal]] = []
        for gathering in [each for each in self._stalled.values() if now >= self._end_of(each)]:
            ended.append((gathering.record, self._unavailable(gathering)))
            self._gatherings.pop(gathering.record.id, None)
            del self._stalled[gathering.record.id]
        self._let_go(ended)
        again = [gathering for gathering in self._stalled.values() if now >= gathering.retry]
        for gathering in again:
            gathering.failed.clear()
        self._judge(again)
        self._pump()

    def _end_of(self, gathering: Gathering) -> float:
        """Whoever is away may come back within the deadline; of who took a request and is silent, less is hoped for."""
        return gathering.asked_at + (self._patience.silence if gathering.late else self._patience.deadline)

    def _unavailable(self, gathering: Gathering) -> Refusal:
        rule = rule_now(self._replica, gathering.record.transaction.kind)
        if rule is None:
            return no_policy(gathering.record)
        seconds = time.monotonic() - gathering.asked_at
        result = self._evaluate(rule, gathering).result
        return endorsement_unavailable(
            gathering.record,
            rule,
            result,
            gathering,
            devices=self._devices,
            lapsed=lapsed(self._replica, rule, result.missing),
            seconds=seconds,
        )

    def _remember(self, transactions: Iterable[TxId]) -> None:
        self._endorsed.update(dict.fromkeys(transactions))
        while len(self._endorsed) > REMEMBERED:
            del self._endorsed[next(iter(self._endorsed))]

    def _on_late(self, device: str, record: Record, answer: VerifiedAnswer) -> None:
        """An answer that nobody waits for is discarded; a reject of what was endorsed without it is an alarm."""
        if not answer.rejected or record.id not in self._endorsed:
            return
        self._metrics.late_rejects.labels(device).inc(len(answer.rejected))
        votes = ", ".join(f"{node} says {reason}" for node, reason in sorted(answer.rejected.items()))
        state = "it waits for its block" if self._pool.find(record.id) is record else "it is in a block"
        detail = f"{votes}, after the transaction was endorsed without that vote; {state}; compare the nodes' replicas"
        self._alarms.raise_alarm("late-reject", device, tuple(sorted(answer.rejected)), record.id, detail)

    def _note(
        self,
        gathering: Gathering,
        device: str,
        nodes: tuple[str, ...],
        said: VerifiedAnswer | ManagementError | None,
    ) -> None:
        """Keep what a device said."""
        if isinstance(said, VerifiedAnswer) and said.failure is None:
            for node, cast in said.approved.items():
                gathering.approved.setdefault(node, {})[device] = cast
            for node, reason in said.rejected.items():
                gathering.rejected[node] = reason
                _tell(gathering, Tried(device, (node,), "reject", reason))
            # Who says both, in whichever order and on whichever devices, refuses (requirement E-22).
            for node in gathering.rejected.keys() & gathering.approved.keys():
                others = sorted({device, *gathering.approved.pop(node)})
                detail = f"node {node} approves and rejects ({gathering.rejected[node]}) on {', '.join(others)}"
                self._alarms.raise_alarm("disagreement", device, (node,), gathering.record.id, detail)
            return
        gathering.failed.update((node, device) for node in nodes)
        if isinstance(said, VerifiedAnswer) and said.failure is not None:
            _tell(gathering, Tried(device, nodes, said.failure.code, said.failure.detail))
        else:
            code = said.said if isinstance(said, DeviceRefusedError) else getattr(said, "code", "no-answer")
            _tell(gathering, Tried(device, nodes, code, str(said)))


def _tell(gathering: Gathering, tried: Tried) -> None:
    if len(gathering.tried) < MOST_TRIED and tried not in gathering.tried:
        gathering.tried.append(tried)
