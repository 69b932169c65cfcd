"""Distinct devices: a policy can demand that each node that counts has a token of its own (requirements E-5, E-22).

Then votes satisfy it when some of the nodes that approved can be given a different token each, out of those that
vouch for them, so that these nodes alone satisfy the policy. Two slots of one box are one token, and so is a
vendor's high-availability group.

The search is exact. Each way to satisfy the policy is a set of demands (at least k of these nodes). Where no node
stands in two demands, nodes and tokens are matched along augmenting paths, as in a flow. A node that stands in
several is first taken in, or left out: that is what can be exponential, and what `check_size` bounds.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from protocol.errors import LimitExceededError
from protocol.policy import Demand, Policy, PolicyResult
from protocol.registry import Device, Token

MOST_NODES: Final = 64
"""Most nodes that a policy of distinct devices may count."""
MOST_DEMANDS: Final = 64
MOST_CASES: Final = 256
"""Most matchings that judging one set of votes may need."""

Tokens = Mapping[str, Sequence[str]]
"""Which tokens may vouch for each node; what stands first, of nodes and of tokens, is preferred."""


def tokens(devices: Iterable[Device]) -> dict[str, str]:
    """The token of each device, by name: devices whose serials overlap, under one maker and model, share one."""
    found: dict[str, str] = {}
    label_of: dict[tuple[str, str, str], str] = {}
    for device in sorted(devices, key=lambda device: device.name):
        serials = _serials(device.token)
        known = {label_of[serial] for serial in serials if serial in label_of}
        label = min(known, default=device.name)
        for old in known - {label}:  # this device shows that they are one
            found.update((name, label) for name, its in found.items() if its == old)
            label_of.update((serial, label) for serial, its in label_of.items() if its == old)
        found[device.name] = label
        label_of.update(dict.fromkeys(serials, label))
    return found


def overlap(one: Token, other: Token) -> frozenset[str]:
    """The serials that two tokens have in common; none where maker or model differ."""
    return frozenset(serial for _, _, serial in _serials(one) & _serials(other))


def check_size(policy: Policy, members: Iterable[str]) -> None:
    """Refuse a policy that could take too long to judge; raises `LimitExceededError`."""
    everyone = frozenset(members)
    nodes = policy.nodes(everyone)
    if len(nodes) > MOST_NODES:
        raise LimitExceededError(
            f"with distinct devices a policy may count {MOST_NODES} nodes, not {len(nodes)}; name fewer"
        )
    cases = 0
    for way in policy.ways(everyone):
        demands = _essential(way, nodes)
        shared = _shared(demands, nodes)
        cases += MOST_CASES + 1 if len(demands) > MOST_DEMANDS else 1 << min(len(shared), MOST_DEMANDS)
        if cases > MOST_CASES:
            raise LimitExceededError(
                f"with distinct devices {policy.text} needs more than {MOST_CASES} cases to be judged; "
                "nest it less, and name each node once"
            )


def choose(policy: Policy, members: Iterable[str], available: Tokens) -> dict[str, str] | None:
    """Nodes whose approval satisfies the policy, none to spare, each with a token of its own; None if there are none.

    The same arguments in the same order give the same answer.
    """
    everyone = tuple(members)
    if not policy.evaluate(everyone, available, ()).satisfied:
        return None
    for way in policy.ways(everyone):
        demands = _essential(way, available.keys())
        if any(len(demand.nodes) < demand.needed for demand in demands):
            continue
        shared = _shared(demands, available)
        for count in range(len(shared), -1, -1):
            for taken in itertools.combinations(shared, count):
                matching = _Matching(available)
                if matching.meet(demands, taken, shared):
                    enough = policy.minimal(everyone, [node for node in available if node in matching.token_of])
                    return {node: matching.token_of[node] for node in enough or ()}
    return None


def evaluate(
    policy: Policy,
    members: Iterable[str],
    approved: Mapping[str, Collection[str]],
    refused: Iterable[str],
    reachable: Mapping[str, Collection[str]],
) -> PolicyResult:
    """Judge votes: `approved` are the tokens on which each node approved; who refused on any of them refuses.

    `possible` tells whether the policy could still be satisfied by votes on the tokens that are `reachable`: also
    by a second vote of a node that approved, on another token.
    """
    everyone = tuple(members)
    against = frozenset(refused)
    plain = policy.evaluate(everyone, approved, against)
    now = {node: sorted(approved[node]) for node in plain.approved}
    later = {
        node: sorted({*approved.get(node, ()), *reachable.get(node, ())}) for node in (*plain.approved, *plain.missing)
    }
    satisfied = choose(policy, everyone, now) is not None
    return PolicyResult(
        satisfied=satisfied,
        possible=satisfied
        or choose(policy, everyone, {node: each for node, each in later.items() if each}) is not None,
        approved=plain.approved,
        refused=plain.refused,
        missing=plain.missing,
    )


class _Matching:
    """Nodes and their tokens, one each."""

    def __init__(self, available: Tokens) -> None:
        self.token_of: dict[str, str] = {}
        self._available = available
        self._holder: dict[str, str] = {}
        self._candidates: list[list[str]] = []
        self._demand_of: dict[str, int] = {}

    def meet(self, demands: Sequence[Demand], taken: Sequence[str], shared: Sequence[str]) -> bool:
        """Whether `taken` of the `shared` nodes, and others that stand in one demand only, meet all demands."""
        if not all(self._seat(node, set()) for node in taken):
            return False
        for index, demand in enumerate(demands):
            self._candidates.append([node for node in self._available if node in demand.nodes and node not in shared])
            self._demand_of.update(dict.fromkeys(self._candidates[index], index))
        return all(
            self._serve(index, set())
            for index, demand in enumerate(demands)
            for _ in range(demand.needed - len(demand.nodes.intersection(taken)))
        )

    def _serve(self, demand: int, seen: set[tuple[str, str | int]]) -> bool:
        """Give a demand one more node; the others may get other tokens, and other nodes may serve other demands."""
        if ("demand", demand) in seen:
            return False
        seen.add(("demand", demand))
        return any(node not in self.token_of and self._seat(node, seen) for node in self._candidates[demand])

    def _seat(self, node: str, seen: set[tuple[str, str | int]]) -> bool:
        """Give a node a token, which its holder leaves for another, or leaves to this one altogether."""
        free = next((token for token in self._available[node] if token not in self._holder), None)
        if free is not None:
            self._holder[free], self.token_of[node] = node, free
            return True
        for token in self._available[node]:
            if ("token", token) in seen:
                continue
            seen.add(("token", token))
            holder = self._holder[token]
            if self._seat(holder, seen) or self._replace(holder, seen):
                self._holder[token], self.token_of[node] = node, token
                return True
        return False

    def _replace(self, node: str, seen: set[tuple[str, str | int]]) -> bool:
        """Let another node serve the demand that this one serves."""
        if node not in self._demand_of or not self._serve(self._demand_of[node], seen):
            return False
        del self.token_of[node]
        return True


def _serials(token: Token) -> frozenset[tuple[str, str, str]]:
    return frozenset((token.manufacturer, token.model, serial) for serial in (token.serial, *token.group))


def _essential(way: Iterable[Demand], available: Collection[str]) -> list[Demand]:
    """The demands of a way, on the nodes that there are, without those that others imply."""
    strictest: dict[frozenset[str], int] = {}
    for demand in way:
        nodes = demand.nodes.intersection(available)
        strictest[nodes] = max(demand.needed, strictest.get(nodes, 0))
    if len(strictest) > MOST_DEMANDS:
        return [Demand(needed, nodes) for nodes, needed in strictest.items()]
    return [
        Demand(needed, nodes)
        for nodes, needed in strictest.items()
        if not any(other < nodes and more >= needed for other, more in strictest.items())
    ]


def _shared(demands: Iterable[Demand], available: Iterable[str]) -> list[str]:
    """The nodes that stand in several demands, in the order of preference."""
    counted = Counter(node for demand in demands for node in demand.nodes)
    return [node for node in available if counted[node] > 1]
