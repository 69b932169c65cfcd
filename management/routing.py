"""Routing: which nodes are asked for a transaction, on which devices (requirements E-5 to E-8).

The policy on the chain names the strategy. All strategies answer two questions: which groups of devices are tried,
one after the other; and in which order the nodes and devices of a group are preferred. The first group with which the
policy can be satisfied is asked, and no more nodes of it than are needed.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

import msgspec
import structlog

from ledger.endorsement_rule import EndorsementRule
from management.pace import NO_FIGURES, Figures

Place = tuple[str, str]
"""A node, and a device that can sign for it."""
Group = tuple[str, ...]
"""Devices that serve a transaction together."""
Assignment = tuple[tuple[str, tuple[str, ...]], ...]
"""Devices, and the nodes that each is asked to vote for."""

CACHE: Final = 4096
PROBE_SECONDS: Final = 2.0
"""A device that was not chosen for so long is asked besides others, so that its pace is known."""

_log = structlog.get_logger()


class Candidate(Protocol):
    """What routing must know of a device."""

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it answers, and says that it can sign."""
        ...

    @property
    def is_silent(self) -> bool:
        """Whether it owes an answer for longer than it should take."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether more may be put before it."""
        ...

    @property
    def idle_seconds(self) -> float:
        """For how long nothing was asked of it; zero while something is."""
        ...

    def cost(self) -> float:
        """In how many seconds an answer to one more proposal is expected."""
        ...

    def typical(self) -> float:
        """In how many seconds it would answer a typical request if nothing else waited."""
        ...

    def figures(self) -> Figures:
        """What is known of its pace."""
        ...


Devices = Mapping[str, Candidate]


class Strategy(Protocol):
    """One way to choose devices. Stateless: what changes is the turn and the devices' state."""

    name: str

    def cycle(self, rule: EndorsementRule) -> int:
        """After how many turns everything repeats."""
        ...

    def groups(self, rule: EndorsementRule, turn: int, devices: Devices, usable: Collection[str]) -> Iterable[Group]:
        """The groups in the order in which they are tried, each without those devices that are not `usable`."""
        ...

    def available(self, rule: EndorsementRule, turn: int, group: Group) -> dict[str, tuple[str, ...]]:
        """The nodes that a group can sign for, each with its devices; what comes earlier is preferred."""
        ...

    def reason(self, rule: EndorsementRule, turn: int, devices: Devices, group: Group) -> str:
        """Why this group is asked, in words."""
        ...


class Skipped(msgspec.Struct, frozen=True):
    """Devices whose turn it was and that could not serve, and why not."""

    devices: Group
    why: str


class Need(msgspec.Struct, frozen=True):
    """What lacks for one transaction: who voted or is asked, which nodes refused, which places failed."""

    voted: frozenset[Place] = frozenset()
    refused: frozenset[str] = frozenset()
    failed: frozenset[Place] = frozenset()


NOTHING_YET: Final = Need()


class Choice(msgspec.Struct, frozen=True):
    """Whom to ask (None: nobody who is ready could satisfy the policy), and who was passed over."""

    assignment: Assignment | None
    group: Group = ()
    skipped: tuple[Skipped, ...] = ()


class CandidateView(msgspec.Struct, frozen=True):
    """A device as routing sees it for one policy: the target nodes that it holds keys of, and its figures."""

    device: str
    nodes: tuple[str, ...]
    ready: bool
    silent: bool
    reason: str
    figures: Figures


class Assigned(msgspec.Struct, frozen=True):
    """A device and the nodes that it is asked for."""

    device: str
    nodes: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Whom the next transaction of a type goes to, and why (requirement E-7)."""

    kind: str
    policy: str
    expression: str
    meaning: str
    routing: str
    candidates: tuple[CandidateView, ...]
    chosen: tuple[Assigned, ...] | None
    skipped: tuple[Skipped, ...]
    reason: str


class Router:
    """Chooses devices by the strategy that each policy names."""

    def __init__(self, devices: Devices, strategies: Mapping[type, Strategy]) -> None:
        self._devices = devices
        self._strategies = strategies
        self._turns: dict[str, int] = {}
        self._known: dict[tuple[EndorsementRule, int, tuple[Group, ...]], Choice] = {}
        self._skips: dict[str, tuple[Skipped, ...]] = {}

    def choose(self, rule: EndorsementRule, need: Need = NOTHING_YET) -> Assignment | None:
        """Whom to ask so that the policy can be satisfied, or None when nobody ready could.

        Every first question of a transaction takes a turn. Who is silent is asked when nobody else will do.
        """
        turn = self._turns.get(rule.name, 0)
        if need is NOTHING_YET:
            self._turns[rule.name] = turn + 1
        choice = self._choose(rule, turn, need)
        if choice.skipped != self._skips.get(rule.name, ()):
            self._skips[rule.name] = choice.skipped
            for skipped in choice.skipped:
                _log.warning("a group is skipped", policy=rule.name, devices=skipped.devices, reason=skipped.why)
        return choice.assignment

    def can_serve(self, rule: EndorsementRule) -> bool:
        """Whether devices that are ready could satisfy the policy now."""
        return self._choose(rule, self._turns.get(rule.name, 0), NOTHING_YET).assignment is not None

    def besides(self, rule: EndorsementRule, assignment: Assignment) -> Assignment:
        """A device that was not asked for long and could do the same: asked too, to learn its pace."""
        if len(assignment) != 1 or self._strategy(rule).name != "replicated":
            return ()
        (chosen, nodes), *_ = assignment
        for name, device in self._devices.items():
            if name == chosen or device.idle_seconds < PROBE_SECONDS or not device.is_ready:
                continue
            held = tuple(node for node in nodes if name in rule.holders[node])
            if held:
                return ((name, held),)
        return ()

    def explain(self, kind: str, rule: EndorsementRule) -> Explanation:
        """Whom the next transaction of a type goes to, and why; no turn is taken."""
        strategy, turn = self._strategy(rule), self._turns.get(rule.name, 0)
        choice = self._choose(rule, turn, NOTHING_YET)
        names = dict.fromkeys(device for devices in rule.holders.values() for device in devices)
        if choice.assignment is None:
            reason = f"no set of devices that are ready satisfies {rule.policy.text}"
        else:
            reason = strategy.reason(rule, turn % strategy.cycle(rule), self._devices, choice.group)
        return Explanation(
            kind=kind,
            policy=rule.name,
            expression=rule.policy.text,
            meaning=rule.meaning,
            routing=strategy.name,
            candidates=tuple(self._candidate(name, rule) for name in sorted(names)),
            chosen=None if choice.assignment is None else tuple(Assigned(*each) for each in choice.assignment),
            skipped=choice.skipped,
            reason=reason,
        )

    def _strategy(self, rule: EndorsementRule) -> Strategy:
        return self._strategies[type(rule.routing)]

    def _choose(self, rule: EndorsementRule, turn: int, need: Need) -> Choice:
        usable = frozenset(name for name, device in self._devices.items() if device.is_ready and device.has_room)
        silent = frozenset(name for name in usable if self._devices[name].is_silent)
        choice = self._among(rule, turn, need, usable - silent)
        if choice.assignment is None and silent:
            choice = self._among(rule, turn, need, usable)
        return choice

    def _among(self, rule: EndorsementRule, turn: int, need: Need, usable: frozenset[str]) -> Choice:
        strategy = self._strategy(rule)
        turn %= strategy.cycle(rule)
        groups = tuple(strategy.groups(rule, turn, self._devices, usable))
        if need is not NOTHING_YET:
            return self._first(rule, turn, need, groups)
        case = (rule, turn, groups)
        choice = self._known.get(case)
        if choice is None:
            if len(self._known) >= CACHE:
                self._known.clear()
            choice = self._known[case] = self._first(rule, turn, need, groups)
        return choice

    def _first(self, rule: EndorsementRule, turn: int, need: Need, groups: tuple[Group, ...]) -> Choice:
        """The first group with which the policy can be satisfied."""
        strategy = self._strategy(rule)
        skipped: list[Skipped] = []
        for index, group in enumerate(groups):
            assignment = _assign(rule, strategy.available(rule, turn, group), need)
            if assignment is not None:
                return Choice(assignment, group, tuple(skipped))
            if len(rule.turns) > 1:
                skipped.append(self._skipped(rule, (turn + index) % len(rule.turns), group))
        return Choice(None, (), tuple(skipped))

    def _skipped(self, rule: EndorsementRule, number: int, group: Group) -> Skipped:
        away = [device for device in rule.turns[number] if device not in group]
        why = "; ".join(f"{name}: {self._state(name)}" for name in away) or "its devices failed or refused before"
        return Skipped(rule.turns[number], why)

    def _state(self, name: str) -> str:
        device = self._devices.get(name)
        if device is None:
            return "not configured here"
        if not device.is_ready:
            return device.reason or "not ready"
        return "silent" if device.is_silent else "it has no room" if not device.has_room else "ready"

    def _candidate(self, name: str, rule: EndorsementRule) -> CandidateView:
        device = self._devices.get(name)
        return CandidateView(
            device=name,
            nodes=tuple(node for node, devices in rule.holders.items() if name in devices),
            ready=device is not None and device.is_ready,
            silent=device is not None and device.is_silent,
            reason=self._state(name),
            figures=device.figures() if device else NO_FIGURES,
        )


def _assign(rule: EndorsementRule, available: Mapping[str, tuple[str, ...]], need: Need) -> Assignment | None:
    """The nodes and devices that lack; those who voted or are asked already count."""
    places: dict[str, tuple[str, ...]] = {}
    for node, device in sorted(need.voted):
        places[node] = (*places.get(node, ()), device)
    for node, devices in available.items():
        if node not in need.refused:
            free = tuple(device for device in devices if (node, device) not in need.failed)
            places[node] = tuple(dict.fromkeys((*places.get(node, ()), *free)))
    if rule.distinct_devices:  # a device without an entry vouches for no token
        places = {node: tuple(each for each in some if each in rule.token_of) for node, some in places.items()}
    chosen = rule.choose(places)
    if chosen is None:
        return None
    by_device: dict[str, list[str]] = {}
    for node, device in chosen.items():
        if (node, device) not in need.voted:
            by_device.setdefault(device, []).append(node)
    return tuple((device, tuple(sorted(nodes))) for device, nodes in sorted(by_device.items()))


def rotated(values: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """The values, beginning with another one each turn."""
    start = turn % len(values) if values else 0
    return (*values[start:], *values[:start])
