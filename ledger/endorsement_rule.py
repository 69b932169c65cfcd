"""An endorsement policy in force, with all that the registry says of it: who counts, on which devices, in which turn.

The one place that judges votes: blocks, receipts and the management service ask here (requirements E-5 to E-8, E-22).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from ledger.errors import RegistryError
from protocol import distinct
from protocol.policy import Policy, PolicyResult
from protocol.registry import Rotation, Routing
from protocol.tier import Tier, reaches

Vouchers = Mapping[str, Collection[str]]
"""The devices on which each node approved."""


class EndorsementRule(msgspec.Struct, frozen=True, eq=False):
    """A policy, the channel's `members`, the token of each device, and the devices that hold keys of each target."""

    name: str
    policy: Policy
    routing: Routing
    distinct_devices: bool
    members: tuple[str, ...]
    token_of: Mapping[str, str]
    holders: Mapping[str, tuple[str, ...]]
    least_tier: Tier = "claimed"
    tier_of: Mapping[str, Callable[[], Tier]] = {}
    """How to find the tier of each target's key, by key id: it is looked up for those that voted alone."""

    def counts(self, key_id: str) -> bool:
        """Whether a vote by this key counts for the policy: its tier suffices (requirement K-5)."""
        if self.least_tier == "claimed":
            return True
        tier = self.tier_of.get(key_id)
        return tier is not None and reaches(tier(), self.least_tier)

    @property
    def turns(self) -> tuple[tuple[str, ...], ...]:
        """The groups of devices that serve one transaction together: those of a rotation, else all at once."""
        if isinstance(self.routing, Rotation):
            return self.routing.sequence
        return (tuple(sorted({device for devices in self.holders.values() for device in devices})),)

    @property
    def meaning(self) -> str:
        """What is asked for, in words."""
        return f"{self.policy.meaning}, each on a token of its own" if self.distinct_devices else self.policy.meaning

    def evaluate(self, approved: Vouchers, refused: Iterable[str] = ()) -> PolicyResult:
        """Judge votes. A node counts once, and who approved on one device and refused on another refuses.

        Raises `RegistryError` when distinct devices are asked for and one of those named is not in the registry.
        """
        if not self.distinct_devices:
            return self.policy.evaluate(self.members, approved, refused)
        tokens = {node: {self._token(device) for device in devices} for node, devices in approved.items()}
        reachable = {
            node: {self.token_of[device] for device in devices if device in self.token_of}
            for node, devices in self.holders.items()
        }
        return distinct.evaluate(self.policy, self.members, tokens, refused, reachable)

    def shortfall(self, approved: Vouchers, result: PolicyResult) -> str:
        """Why `approved` does not satisfy the policy, in words: the `result` said so."""
        said = f"{self.policy.text} is not met by {', '.join(result.approved) or 'nobody'}"
        if self.distinct_devices and self.policy.evaluate(self.members, result.approved, ()).satisfied:
            places = "; ".join(f"{node} on {', '.join(sorted(approved[node]))}" for node in result.approved)
            return f"{said}: each node needs a token of its own, and they voted {places}"
        return f"{said}; missing are {', '.join(result.missing) or 'none'}"

    def choose(self, available: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
        """Nodes whose approval satisfies the policy, none to spare, each with one of its `available` devices, or None.

        Nodes and devices that come earlier are preferred.
        """
        some = {node: devices for node, devices in available.items() if devices}
        if not self.distinct_devices:
            nodes = self.policy.minimal(self.members, some)
            return None if nodes is None else {node: some[node][0] for node in nodes}
        tokens = {
            node: tuple(dict.fromkeys(self._token(device) for device in devices)) for node, devices in some.items()
        }
        chosen = distinct.choose(self.policy, self.members, tokens)
        if chosen is None:
            return None
        return {
            node: next(device for device in some[node] if self.token_of[device] == token)
            for node, token in chosen.items()
        }

    def never(self) -> str:
        """Why the registered keys could never satisfy the policy, whatever the devices' state; empty when they could.

        Every turn of a rotation must be able to: else each time round some transactions would fail.
        """
        for number, group in enumerate(self.turns, 1):
            available = {
                node: tuple(device for device in devices if device in group) for node, devices in self.holders.items()
            }
            if self.choose(available) is None:
                without = sorted(node for node, devices in available.items() if not devices)
                who = (
                    f"group {number} of the rotation ({', '.join(group)})" if self._rotates else "all devices together"
                )
                lack = f"no keys of {', '.join(without)}" if without else "too few distinct tokens"
                return f"{who} can never satisfy {self.policy.text}: {lack}"
        return ""

    @property
    def _rotates(self) -> bool:
        return isinstance(self.routing, Rotation)

    def _token(self, device: str) -> str:
        token = self.token_of.get(device)
        if token is None:
            raise RegistryError(f"the registry has no device/{device}, so it does not say which token that is")
        return token
