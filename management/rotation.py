"""Routing by rotation: groups of devices take turns, and each device of a group has its share of the nodes (E-8)."""

from collections.abc import Collection, Iterable

from ledger.endorsement_rule import EndorsementRule
from management.routing import Devices, Group, rotated


class RotationStrategy:
    """The configured sequence, a group for each transaction; one that cannot serve is passed over for the next."""

    name = "rotation"

    def cycle(self, rule: EndorsementRule) -> int:
        """See `Strategy`. After a whole sequence the nodes move on too, so that under k of n all get their share."""
        return len(rule.turns) * max(1, len(rule.holders))

    def groups(self, rule: EndorsementRule, turn: int, devices: Devices, usable: Collection[str]) -> Iterable[Group]:
        """See `Strategy`."""
        del devices
        sequence, start = rule.turns, turn % len(rule.turns)
        return (tuple(name for name in group if name in usable) for group in (*sequence[start:], *sequence[:start]))

    def available(self, rule: EndorsementRule, turn: int, group: Group) -> dict[str, tuple[str, ...]]:
        """See `Strategy`. The nodes that are needed are dealt out: each to the device that has the fewest so far."""
        nodes = rotated(tuple(rule.holders), turn // len(rule.turns))
        held = {node: tuple(device for device in group if device in rule.holders[node]) for node in nodes}
        needed = rule.choose(held)
        if needed is None or rule.distinct_devices:
            return held
        share = dict.fromkeys(group, 0)
        for node in sorted(needed, key=lambda node: len(held[node])):  # those with the least choice first
            held[node] = tuple(sorted(held[node], key=lambda device: share[device]))
            share[held[node][0]] += 1
        return {node: held[node] for node in (*needed, *(other for other in nodes if other not in needed))}

    def reason(self, rule: EndorsementRule, turn: int, devices: Devices, group: Group) -> str:
        """See `Strategy`."""
        del devices
        number = next(
            (
                1 + (turn + index) % len(rule.turns)
                for index in range(len(rule.turns))
                if set(group) <= set(rule.turns[(turn + index) % len(rule.turns)])
            ),
            0,
        )
        return f"group {number} of {len(rule.turns)} ({', '.join(group)}) has its turn"
