"""Routing: which nodes are asked for a transaction, on which devices (requirements E-5, E-6).

Partitioned: each device holds keys of some nodes. A minimal set of nodes whose approval satisfies the policy is
asked, on devices that are ready, in rotation, so that all devices get their share of the load.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

from ledger.registry_view import RegistryView
from protocol.policy import Policy

Assignment = tuple[tuple[str, tuple[str, ...]], ...]
"""Devices, and the nodes that each is asked to vote for."""

CACHE: Final = 4096


class Endpoint(Protocol):
    """What routing must know of a device."""

    @property
    def is_ready(self) -> bool:
        """Whether it answers, and says that it can sign."""
        ...


class Strategy(Protocol):
    """How target nodes are assigned to devices. Partitioned is the first; others come as other classes."""

    def assign(
        self,
        policy: Policy,
        view: RegistryView,
        *,
        approved: Collection[str] = (),
        excluded: Collection[str] = (),
    ) -> Assignment | None:
        """Whom to ask so that `policy` can be satisfied, or None when nobody ready could.

        `approved` nodes have voted already and are not asked again; `excluded` ones refused or failed.
        """
        ...


class Partitioned:
    """Each target node is asked on a device that holds a key of it, the devices taking turns."""

    def __init__(self, devices: Mapping[str, Endpoint]) -> None:
        self._devices = devices
        self._turn = 0
        self._known: dict[tuple[str, int, frozenset[str], str], Assignment | None] = {}

    def assign(
        self,
        policy: Policy,
        view: RegistryView,
        *,
        approved: Collection[str] = (),
        excluded: Collection[str] = (),
    ) -> Assignment | None:
        """See `Strategy`."""
        self._turn += 1
        if approved or excluded:
            return self._choose(policy, view, self._turn, frozenset(approved), frozenset(excluded))
        ready = frozenset(name for name, device in self._devices.items() if device.is_ready)
        turn = self._turn % max(1, len(view.node_names))
        case = (policy.text, turn, ready, view.root)
        if case not in self._known:
            if len(self._known) >= CACHE:
                self._known.clear()
            self._known[case] = self._choose(policy, view, turn, frozenset(), frozenset())
        return self._known[case]

    def _choose(
        self, policy: Policy, view: RegistryView, turn: int, approved: frozenset[str], excluded: frozenset[str]
    ) -> Assignment | None:
        members = view.node_names
        candidates = [node for node in sorted(policy.nodes(members)) if node not in approved and node not in excluded]
        places = {node: self._device_for(node, view, turn) for node in _rotated(candidates, turn)}
        available = [*sorted(approved), *(node for node, device in places.items() if device)]
        chosen = policy.minimal(members, available)
        if chosen is None:
            return None
        by_device: dict[str, list[str]] = {}
        for node in chosen:
            device = places.get(node)
            if device:
                by_device.setdefault(device, []).append(node)
        return tuple((device, tuple(sorted(nodes))) for device, nodes in sorted(by_device.items()))

    def _device_for(self, node: str, view: RegistryView, turn: int) -> str | None:
        for name in _rotated(list(view.devices_of(node)), turn):
            device = self._devices.get(name)
            if device is not None and device.is_ready:
                return name
        return None


def _rotated(values: list[str], turn: int) -> Iterable[str]:
    if not values:
        return ()
    start = turn % len(values)
    return (*values[start:], *values[:start])
