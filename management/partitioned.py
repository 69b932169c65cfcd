"""Partitioned routing: each node is asked on a device that holds its key, nodes and devices taking turns (E-6)."""

import math
from collections.abc import Collection, Iterable

from ledger.endorsement_rule import EndorsementRule
from management.routing import Devices, Group, rotated


class PartitionedStrategy:
    """All devices form one group; where there is a choice, it is another one each turn, so that all share the load."""

    name = "partitioned"

    def cycle(self, rule: EndorsementRule) -> int:
        """See `Strategy`."""
        return math.lcm(len(rule.holders) or 1, *(len(devices) or 1 for devices in rule.holders.values()))

    def groups(self, rule: EndorsementRule, turn: int, devices: Devices, usable: Collection[str]) -> Iterable[Group]:
        """See `Strategy`."""
        del rule, turn
        return (tuple(name for name in devices if name in usable),)

    def available(self, rule: EndorsementRule, turn: int, group: Group) -> dict[str, tuple[str, ...]]:
        """See `Strategy`."""
        return {
            node: tuple(device for device in rotated(rule.holders[node], turn) if device in group)
            for node in rotated(tuple(rule.holders), turn)
        }

    def reason(self, rule: EndorsementRule, turn: int, devices: Devices, group: Group) -> str:
        """See `Strategy`."""
        del devices, group
        return (
            f"each node is asked on a device that holds its key; turn {turn + 1} of {self.cycle(rule)}, "
            "so that all that could serve get their share"
        )
