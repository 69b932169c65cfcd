"""The endorsement policy as it is to be carried out now: who holds a key that will count in the next block, who not."""

import time
from collections.abc import Iterable

from ledger.endorsement_rule import EndorsementRule
from ledger.replica import Replica
from management.outcome import Tried


def rule_now(replica: Replica, kind: str) -> EndorsementRule | None:
    """The policy for a transaction type; of its holders, those whose keys count at the next height, by this clock.

    So nobody is asked for a vote that no block could hold (requirements K-5, K-13, K-14). None without a policy.
    """
    return replica.registry.rule_at(kind, height=replica.height + 1, time=_now(replica))


def lapsed(replica: Replica, rule: EndorsementRule, nodes: Iterable[str]) -> list[Tried]:
    """The devices with keys of these nodes that were not asked for a vote, because the keys do not count, and why."""
    found: list[Tried] = []
    for node in nodes:
        lapses = replica.registry.lapses(node, height=replica.height + 1, time=_now(replica))
        weak = set(replica.registry.devices_of(node)) - lapses.keys() - set(rule.holders.get(node, ()))
        lapses |= dict.fromkeys(weak, f"its key is below tier {rule.least_tier}, which the policy asks for")
        found += [Tried(device, (node,), "not-asked", why) for device, why in sorted(lapses.items())]
    return found


def _now(replica: Replica) -> int:
    return max(time.time_ns() // 1_000_000, replica.time)
