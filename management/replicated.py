"""Replicated routing: every device may sign for every node, and the one that should answer first is asked (E-7).

All nodes of a transaction go to one device where that can be: it signs one tree head for each node, however many
transactions there are. Where one device is not enough (keys that it lacks, distinct devices), the next quickest joins.
"""

from collections.abc import Collection, Iterable
from typing import Final

from ledger.endorsement_rule import EndorsementRule
from management.routing import Devices, Group

SLOW_TIMES: Final = 3.0
CAUTION: Final = 3.0
"""A device that takes `SLOW_TIMES` as long as the quickest is used only when the others would take `CAUTION` times as
long as it: whoever waits for a batch waits for its last transaction, and an estimate may be wrong."""


class ReplicatedStrategy:
    """Devices in the order in which they should answer; the fewest that can satisfy the policy."""

    name = "replicated"

    def cycle(self, rule: EndorsementRule) -> int:
        """See `Strategy`."""
        del rule
        return 1

    def groups(self, rule: EndorsementRule, turn: int, devices: Devices, usable: Collection[str]) -> Iterable[Group]:
        """See `Strategy`."""
        del rule, turn
        typical = {name: devices[name].typical() for name in usable}
        quick = SLOW_TIMES * min(typical.values(), default=0.0)
        costs = {name: devices[name].cost() * (CAUTION if typical[name] > quick else 1) for name in usable}
        ranked = sorted(usable, key=lambda name: (costs[name], name))
        return (tuple(ranked[:count]) for count in range(1, len(ranked) + 1))

    def available(self, rule: EndorsementRule, turn: int, group: Group) -> dict[str, tuple[str, ...]]:
        """See `Strategy`. Without its last device the group was not enough, so that one gets whatever it can serve."""
        del turn
        return {node: tuple(name for name in reversed(group) if name in held) for node, held in rule.holders.items()}

    def reason(self, rule: EndorsementRule, turn: int, devices: Devices, group: Group) -> str:
        """See `Strategy`."""
        del rule, turn
        others = sorted(
            (device.cost(), name)
            for name, device in devices.items()
            if name not in group and device.is_ready and not device.is_silent
        )
        first = ", ".join(f"{name} in {1000 * devices[name].cost():.1f} ms" for name in group)
        later = ", ".join(f"{name} in {1000 * cost:.1f} ms" for cost, name in others)
        return f"expected to answer first: {first}; then: {later or 'nobody who is ready'}"
