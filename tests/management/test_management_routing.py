"""Partitioned routing: who is asked, on which device."""

from collections import Counter

import pytest

from ledger.registry_view import RegistryView
from management.routing import Partitioned
from protocol import canonical, policy
from protocol import registry as entries
from tests.management.simulated_network import Key


class Device:
    """A device that is ready or is not."""

    def __init__(self) -> None:
        self.is_ready = True


NODES = "ABCDEFG"


def view(places: dict[str, tuple[str, ...]]) -> RegistryView:
    """A registry of nodes with a key on each of their devices."""
    nodes = [
        entries.Node(name, tuple(entries.NodeKey(Key().spki, device, 0, 1) for device in devices))
        for name, devices in places.items()
    ]
    return RegistryView({entries.key_of(node): canonical.encode(node) for node in nodes})


@pytest.fixture
def devices() -> dict[str, Device]:
    """A device for each node."""
    return {f"device-{name}": Device() for name in NODES}


@pytest.fixture
def own_devices() -> RegistryView:
    """Each node has its own device."""
    return view({name: (f"device-{name}",) for name in NODES})


@pytest.mark.requirement("E-5", "E-6")
@pytest.mark.parametrize(
    ("text", "count"),
    [("AND('A', 'B', 'C', 'F')", 4), ("MAJORITY", 5), ("OutOf(3, 'A', 'B', 'C', 'D', 'E', 'F', 'G')", 3), ("ANY", 1)],
)
def test_minimal_set_of_nodes_is_asked(
    devices: dict[str, Device], own_devices: RegistryView, text: str, count: int
) -> None:
    """Exactly as many nodes as the policy needs are asked, each on the device that holds its key."""
    assignment = Partitioned(devices).assign(policy.parse(text), own_devices)
    assert assignment is not None
    assert len(assignment) == count
    assert all(device == f"device-{nodes[0]}" and len(nodes) == 1 for device, nodes in assignment)


@pytest.mark.requirement("E-6")
def test_devices_take_turns(devices: dict[str, Device], own_devices: RegistryView) -> None:
    """Under k of n all devices get the same share."""
    router = Partitioned(devices)
    rule = policy.parse("OutOf(3, 'A', 'B', 'C', 'D', 'E', 'F', 'G')")
    asked = Counter(device for _ in range(70) for device, _nodes in router.assign(rule, own_devices) or ())
    assert asked == dict.fromkeys(devices, 30)


def test_nodes_of_one_device_are_asked_together() -> None:
    """Nodes that share a device stand in one request."""
    router = Partitioned({"x": Device(), "y": Device()})
    assert router.assign(policy.parse("ALL"), view({"A": ("x",), "B": ("x",), "C": ("y",)})) == (
        ("x", ("A", "B")),
        ("y", ("C",)),
    )


def test_devices_that_are_not_ready_are_left_out(devices: dict[str, Device], own_devices: RegistryView) -> None:
    """Who is not ready is not asked; when too few are left, nobody is."""
    router = Partitioned(devices)
    rule = policy.parse("OutOf(2, 'A', 'B', 'C')")
    devices["device-A"].is_ready = False
    assert router.assign(rule, own_devices) == (("device-B", ("B",)), ("device-C", ("C",)))
    devices["device-B"].is_ready = False
    assert router.assign(rule, own_devices) is None


def test_only_what_lacks_is_asked(devices: dict[str, Device], own_devices: RegistryView) -> None:
    """Approvals count, refusals and failures are replaced."""
    router = Partitioned(devices)
    rule = policy.parse("OutOf(2, 'A', 'B', 'C')")
    assert router.assign(rule, own_devices, approved={"A"}, excluded={"B"}) == (("device-C", ("C",)),)
    assert router.assign(rule, own_devices, approved={"A", "B"}) == ()
    assert router.assign(rule, own_devices, approved={"A"}, excluded={"B", "C"}) is None


def test_second_device_of_a_node_stands_in(devices: dict[str, Device]) -> None:
    """A node with keys on two devices is asked on the one that is ready."""
    router = Partitioned(devices)
    both = view({"A": ("device-A", "device-B")})
    devices["device-A"].is_ready = False
    assert router.assign(policy.parse("ALL"), both) == (("device-B", ("A",)),)
