"""What is in force: the registry at one height, read-only, with its keys and policies ready to use."""

import bisect
import functools
from collections.abc import Mapping
from functools import cached_property

import msgspec

from ledger.endorsement_rule import EndorsementRule
from ledger.registry_keys import RegistryKeys
from protocol import policy
from protocol.policy import Policy
from protocol.registry import EndorsementPolicy


class RegistryView(RegistryKeys):
    """All registry entries (canonical bytes by `kind/name`); never changes. Safe to share among threads."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        super().__init__(entries)
        self._rules: dict[tuple[str, int, int], EndorsementRule] = {}

    def policy(self, kind: str) -> Policy | None:
        """The policy for a transaction type `contract.operation`: its own, else that of its contract."""
        key = self.policy_key(kind)
        return policy.parse(self._require(key, EndorsementPolicy).expression) if key else None

    def rule(self, kind: str) -> EndorsementRule | None:
        """The policy for a transaction type, as votes are judged by it."""
        key = self.policy_key(kind)
        return self._rule(key, None) if key else None

    def rule_at(self, kind: str, *, height: int, time: int) -> EndorsementRule | None:
        """The same with those holders alone whose keys count at this height and block time: for asking them."""
        key = self.policy_key(kind)
        return self._rule(key, (height, time)) if key else None

    def rule_of(
        self, entry: EndorsementPolicy, *, usable: bool = False, at: tuple[int, int] | None = None
    ) -> EndorsementRule:
        """What a policy, in force or not, comes to in this registry; raises `PolicySyntaxError`.

        Its holders are the devices that hold keys of its nodes. With `usable` or `at`, those whose keys are not revoked
        and of a sufficient tier; with `at` (a height and a block time in ms), those whose keys count then.
        """
        parsed = policy.parse(entry.expression)
        keys = {name: self._keys_of(name) for name in sorted(parsed.nodes(self.node_names))}
        rule = EndorsementRule(
            name=entry.name,
            policy=parsed,
            routing=entry.routing,
            distinct_devices=entry.distinct_devices,
            members=self.node_names,
            token_of=self.tokens if entry.distinct_devices else {},
            holders={},
            least_tier=entry.least_tier,
            tier_of={
                key: functools.partial(self.tier, each.device, key)
                for some in keys.values()
                for key, each in some.items()
            },
        )

        def holds(name: str, key: str) -> bool:
            if not usable and at is None:
                return True
            standing = self._node_standing(name, key, keys[name][key])
            lapse = standing.lapse(*at) if at else standing.revoked or standing.weak
            return not lapse and rule.counts(key)

        holders = {
            name: tuple(sorted({each.device for key, each in some.items() if holds(name, key)}))
            for name, some in keys.items()
        }
        return msgspec.structs.replace(rule, holders=holders)

    def policy_key(self, kind: str) -> str | None:
        """Under which key the policy for a transaction type stands."""
        for key in (f"policy/{kind}", f"policy/{kind.partition('.')[0]}"):
            if key in self.entries:
                return key
        return None

    def changed(self, changes: Mapping[str, bytes | None]) -> "RegistryView":
        """The registry after `changes`; None removes an entry."""
        return RegistryView(self.entries.changed(changes)) if changes else self

    def _rule(self, key: str, at: tuple[int, int] | None) -> EndorsementRule:
        case = (key, *self._epoch(at))
        rule = self._rules.get(case)
        if rule is None:
            rule = self._rules[case] = self.rule_of(self._require(key, EndorsementPolicy), at=at)
        return rule

    def _epoch(self, at: tuple[int, int] | None) -> tuple[int, int]:
        """Which of the spans of height and of time it is between which keys of nodes begin or cease to count."""
        if at is None:
            return (-1, -1)
        heights, times = self._turns
        return bisect.bisect_right(heights, at[0]), bisect.bisect_right(times, at[1])

    @cached_property
    def _turns(self) -> tuple[list[int], list[int]]:
        lifetimes = [
            lifetime
            for name in self.node_names
            for standing in self._node_standings(name)
            for lifetime in (standing.lifetime, standing.device_lifetime)
            if lifetime is not None
        ]
        heights = {height for each in lifetimes for height in (each.since, each.last + 1)}
        return sorted(heights), sorted({time for each in lifetimes for time in (each.not_before, each.until)})
