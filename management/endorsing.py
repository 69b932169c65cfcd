"""Gathering votes until each transaction's policy is satisfied, cannot be any more, or time is up (E-5, E-12).

The result is data: who approved, who refused, who is missing, every device tried and what it said. There is no
task for a single transaction: answers come in batches, and one tick looks after those that nobody could vote on.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from ledger.registry_view import RegistryView
from ledger.replica import Replica
from management.answers import VerifiedAnswer
from management.device_client import Ask, Outcome
from management.errors import DeviceRefusedError, ManagementError
from management.metrics import Metrics
from management.outcome import Refusal, Tried
from management.pool import Cast, Endorsed, Pool, Record
from management.routing import Assignment, Endpoint, Strategy
from protocol.canonical import TxId
from protocol.policy import Policy, PolicyResult

RETRY_SECONDS: Final = 1.0
TICK_SECONDS: Final = 0.25
MOST_TRIED: Final = 32
"""How many answers of devices are kept for one transaction."""

_log = structlog.get_logger()


class Endorser(Endpoint, Protocol):
    """A device that can be asked for votes."""

    reason: str

    @property
    def has_room(self) -> bool:
        """Whether more may be put before it."""
        ...

    def put(self, ask: Ask) -> None:
        """Ask for votes."""
        ...


class Gathering(msgspec.Struct, eq=False):
    """The votes on one transaction so far. Times are monotonic seconds."""

    record: Record
    approved: dict[str, Cast] = {}
    rejected: dict[str, str] = {}
    asked: dict[str, str] = {}
    failed: set[str] = set()
    tried: list[Tried] = []
    deadline: float = 0.0
    retry: float = 0.0


class Endorsing:
    """Asks devices through a routing strategy, and hands endorsed transactions to the pool."""

    def __init__(
        self,
        replica: Replica,
        pool: Pool,
        strategy: Strategy,
        devices: Mapping[str, Endorser],
        *,
        let_go: Callable[[Sequence[tuple[Record, Refusal]]], None],
        metrics: Metrics,
        deadline_seconds: float,
    ) -> None:
        self._replica = replica
        self._pool = pool
        self._strategy = strategy
        self._devices = devices
        self._let_go = let_go
        self._metrics = metrics
        self._deadline_seconds = deadline_seconds
        self._queue: deque[Gathering] = deque()
        self._gatherings: dict[TxId, Gathering] = {}
        self._stalled: dict[TxId, Gathering] = {}
        self._results: dict[tuple[str, frozenset[str], frozenset[str]], PolicyResult] = {}
        self._results_for = ""

    def add(self, records: Iterable[Record]) -> None:
        """Gather votes for these, from the beginning."""
        for record in records:
            gathering = Gathering(record)
            self._gatherings[record.id] = gathering
            self._queue.append(gathering)
        self._pump()

    async def run(self, stop: asyncio.Event) -> None:
        """Look after what stands still until `stop` is set."""
        while not stop.is_set():
            self._tick()
            await asyncio.sleep(TICK_SECONDS)

    def on_answers(self, device: str, asks: Sequence[Ask], outcome: Outcome) -> None:
        """What a device answered to a batch, verified; or why there is no answer to any of it."""
        verdicts = {"approve": 0, "reject": 0, "late": 0}
        touched: list[Gathering] = []
        answers = [None] * len(asks) if isinstance(outcome, ManagementError) else outcome
        for ask, answer in zip(asks, answers, strict=True):
            if answer is not None:
                verdicts["approve"] += len(answer.approved)
                verdicts["reject"] += len(answer.rejected)
            gathering = self._gatherings.get(ask.record.id)
            if gathering is None or gathering.record is not ask.record:
                if answer is not None and answer.rejected:
                    verdicts["late"] += len(answer.rejected)
                    _log.error("a reject came late", device=device, transaction=ask.record.id, votes=answer.rejected)
                continue
            for node in ask.nodes:
                gathering.asked.pop(node, None)
            _note(gathering, device, ask.nodes, outcome if isinstance(outcome, ManagementError) else answer)
            touched.append(gathering)
        for verdict in ("approve", "reject"):
            self._metrics.votes.labels(device, verdict).inc(verdicts[verdict])
        self._metrics.late_rejects.labels(device).inc(verdicts["late"])
        self._judge(touched)
        self._pump()

    def _pump(self) -> None:
        """Send what waits for its first request, as long as devices have room."""
        view = self._replica.registry
        without_policy: list[tuple[Record, Refusal]] = []
        while self._queue:
            gathering = self._queue[0]
            policy = view.policy(gathering.record.transaction.kind)
            if policy is None:
                without_policy.append((gathering.record, _no_policy(gathering.record)))
                self._gatherings.pop(gathering.record.id, None)
            else:
                assignment = self._strategy.assign(policy, view)
                if assignment is None:
                    self._stall(gathering)
                elif all(self._devices[device].has_room for device, _ in assignment):
                    self._ask(gathering, assignment)
                else:
                    break  # the clock of those behind has not begun
            self._queue.popleft()
        self._let_go(without_policy)

    def _judge(self, gatherings: Iterable[Gathering]) -> None:
        """Decide about each: endorsed, refused for ever, or whom to ask next."""
        view = self._replica.registry
        endorsed: list[Endorsed] = []
        ended: list[tuple[Record, Refusal]] = []
        for gathering in gatherings:
            record = gathering.record
            policy = view.policy(record.transaction.kind)
            if policy is None:
                ended.append((record, _no_policy(record)))
                continue
            result = self._evaluate(policy, view, gathering)
            if result.satisfied:
                endorsed.append(Endorsed(record, gathering.approved))
            elif not result.possible:
                ended.append((record, _endorsement_refused(policy, result, gathering)))
            elif not gathering.asked or gathering.rejected or gathering.failed:
                self._ask_more(gathering, policy, view)  # else others are asked already
        for record in (*(each.record for each in endorsed), *(record for record, _ in ended)):
            self._gatherings.pop(record.id, None)
            self._stalled.pop(record.id, None)
        if endorsed:
            self._pool.put(endorsed)
        self._let_go(ended)

    def _evaluate(self, policy: Policy, view: RegistryView, gathering: Gathering) -> PolicyResult:
        if self._results_for != view.root or len(self._results) > 4096:  # noqa: PLR2004
            self._results, self._results_for = {}, view.root
        case = (policy.text, frozenset(gathering.approved), frozenset(gathering.rejected))
        result = self._results.get(case)
        if result is None:
            result = self._results[case] = policy.evaluate(view.node_names, case[1], case[2])
        return result

    def _ask_more(self, gathering: Gathering, policy: Policy, view: RegistryView) -> None:
        assignment = self._strategy.assign(
            policy,
            view,
            approved=gathering.approved.keys() | gathering.asked.keys(),
            excluded=gathering.rejected.keys() | gathering.failed,
        )
        if assignment:
            self._ask(gathering, assignment)
        elif not gathering.asked:
            self._stall(gathering)

    def _ask(self, gathering: Gathering, assignment: Assignment) -> None:
        if not gathering.deadline:
            gathering.deadline = time.monotonic() + self._deadline_seconds
        self._stalled.pop(gathering.record.id, None)
        for device, nodes in assignment:
            for node in nodes:
                gathering.asked[node] = device
            self._devices[device].put(Ask(gathering.record, nodes))

    def _stall(self, gathering: Gathering) -> None:
        """Nobody ready could satisfy the policy now: try again for as long as there is time."""
        now = time.monotonic()
        if not gathering.deadline:
            gathering.deadline = now + self._deadline_seconds
        gathering.retry = now + RETRY_SECONDS
        self._stalled[gathering.record.id] = gathering

    def _tick(self) -> None:
        now = time.monotonic()
        view = self._replica.registry
        late = [gathering for gathering in self._stalled.values() if now >= gathering.deadline]
        ended: list[tuple[Record, Refusal]] = []
        for gathering in late:
            ended.append((gathering.record, self._unavailable(gathering, view)))
            self._gatherings.pop(gathering.record.id, None)
            del self._stalled[gathering.record.id]
        self._let_go(ended)
        again = [gathering for gathering in self._stalled.values() if now >= gathering.retry]
        for gathering in again:
            gathering.failed.clear()
        self._judge(again)
        self._pump()

    def _unavailable(self, gathering: Gathering, view: RegistryView) -> Refusal:
        policy = view.policy(gathering.record.transaction.kind)
        if policy is None:
            return _no_policy(gathering.record)
        result = self._evaluate(policy, view, gathering)
        tried = list(gathering.tried)
        spoken = {each.device for each in tried}
        for node in result.missing:
            for name in view.devices_of(node):
                device = self._devices.get(name)
                if name not in spoken and not (device and device.is_ready):
                    reason = device.reason if device else "not configured here"
                    tried.append(Tried(name, (node,), "not-ready", reason))
        return Refusal(
            code="endorsement-unavailable",
            detail=(
                f"{policy.text} was not satisfied within {self._deadline_seconds:.0f} s: approved by "
                f"{', '.join(result.approved) or 'nobody'}, missing {', '.join(result.missing) or 'nobody'}; "
                "send it again later"
            ),
            devices=tuple(tried),
            transaction=gathering.record.id,
        )


def _note(
    gathering: Gathering, device: str, nodes: tuple[str, ...], said: VerifiedAnswer | ManagementError | None
) -> None:
    """Keep what a device said."""
    if isinstance(said, VerifiedAnswer) and said.failure is None:
        gathering.approved.update(said.approved)
        gathering.rejected.update(said.rejected)
        for node in said.rejected.keys() & gathering.approved.keys():
            del gathering.approved[node]  # who says both, refuses
        if not said.rejected:
            return
        for node, reason in said.rejected.items():
            tried = Tried(device, (node,), "reject", reason)
            if len(gathering.tried) < MOST_TRIED:
                gathering.tried.append(tried)
        return
    gathering.failed.update(nodes)
    if isinstance(said, VerifiedAnswer) and said.failure is not None:
        tried = Tried(device, nodes, said.failure.code, said.failure.detail)
    else:
        code = said.said if isinstance(said, DeviceRefusedError) else getattr(said, "code", "no-answer")
        tried = Tried(device, nodes, code, str(said))
    if len(gathering.tried) < MOST_TRIED and tried not in gathering.tried:
        gathering.tried.append(tried)


def _endorsement_refused(policy: Policy, result: PolicyResult, gathering: Gathering) -> Refusal:
    reasons = sorted(set(gathering.rejected.values()))
    return Refusal(
        code="endorsement-refused",
        detail=(
            f"{policy.text} cannot be satisfied any more: "
            f"{', '.join(f'{node} says {reason}' for node, reason in sorted(gathering.rejected.items()))}; "
            f"approved by {', '.join(result.approved) or 'nobody'}"
        ),
        final=True,
        reason=reasons[0] if len(reasons) == 1 else None,
        devices=tuple(gathering.tried),
        transaction=gathering.record.id,
    )


def _no_policy(record: Record) -> Refusal:
    return Refusal(
        code="no-policy",
        detail=f"no endorsement policy covers {record.transaction.kind} any more",
        transaction=record.id,
    )
