"""Routing: who is asked, on which device, by each of the three strategies."""

from collections import Counter

import msgspec
import pytest
import structlog

from ledger.endorsement_rule import EndorsementRule
from ledger.registry_view import RegistryView
from management.pace import NO_FIGURES, Figures
from management.partitioned import PartitionedStrategy
from management.replicated import ReplicatedStrategy
from management.rotation import RotationStrategy
from management.routing import Assignment, Need, Router
from protocol import canonical
from protocol import registry as entries
from protocol.registry import Partitioned, Replicated, Rotation, Routing
from tests.management.simulated_network import Key

NODES = "ABCDEFG"
THREE = ("x", "y", "z")
EVERYWHERE = dict.fromkeys("ABC", THREE)


class Device:
    """A device in any state."""

    def __init__(self) -> None:
        self.is_ready = True
        self.is_silent = False
        self.has_room = True
        self.idle_seconds = 0.0
        self.reason = ""
        self.seconds = 0.01

    def cost(self) -> float:
        """What the test says."""
        return self.seconds

    def typical(self) -> float:
        """The same."""
        return self.seconds

    def figures(self) -> Figures:
        """Nothing but the cost."""
        return msgspec.structs.replace(NO_FIGURES, expected_ms=1000 * self.seconds)


Devices = dict[str, Device]


def view(places: dict[str, tuple[str, ...]]) -> RegistryView:
    """A registry of nodes with a key on each of their devices, which are all on tokens of their own."""
    names = sorted({device for devices in places.values() for device in devices})
    devices = [entries.Device(name, Key().spki, entries.Token("simulated", "software", name)) for name in names]
    nodes = [
        entries.Node(name, tuple(entries.NodeKey(Key().spki, device, until=1) for device in devices))
        for name, devices in places.items()
    ]
    return RegistryView({entries.key_of(entry): canonical.encode(entry) for entry in (*nodes, *devices)})


def rule(
    text: str, places: dict[str, tuple[str, ...]], routing: Routing | None = None, *, distinct: bool = False
) -> EndorsementRule:
    """A policy as it would be judged where nodes have keys in these places."""
    return view(places).rule_of(
        entries.EndorsementPolicy("evidence", text, routing or Partitioned(), distinct_devices=distinct)
    )


def router(devices: Devices) -> Router:
    """A router with all strategies."""
    strategies = {Partitioned: PartitionedStrategy(), Replicated: ReplicatedStrategy(), Rotation: RotationStrategy()}
    return Router(devices, strategies)


@pytest.fixture
def devices() -> Devices:
    """A device for each node."""
    return {f"device-{name}": Device() for name in NODES}


@pytest.fixture
def three() -> Devices:
    """Devices x, y and z."""
    return {name: Device() for name in THREE}


OWN = {name: (f"device-{name}",) for name in NODES}


# --- partitioned ------------------------------------------------------------------------------------------


@pytest.mark.requirement("E-5", "E-6")
@pytest.mark.parametrize(
    ("text", "count"),
    [("AND('A', 'B', 'C', 'F')", 4), ("MAJORITY", 5), ("OutOf(3, 'A', 'B', 'C', 'D', 'E', 'F', 'G')", 3), ("ANY", 1)],
)
def test_minimal_set_of_nodes_is_asked(devices: Devices, text: str, count: int) -> None:
    """Exactly as many nodes as the policy needs are asked, each on the device that holds its key."""
    assignment = router(devices).choose(rule(text, OWN))
    assert assignment is not None
    assert len(assignment) == count
    assert all(device == f"device-{nodes[0]}" and len(nodes) == 1 for device, nodes in assignment)


@pytest.mark.requirement("E-6")
def test_devices_take_turns(devices: Devices) -> None:
    """Under k of n all devices get the same share."""
    routes, some = router(devices), rule("OutOf(3, 'A', 'B', 'C', 'D', 'E', 'F', 'G')", OWN)
    asked = Counter(device for _ in range(70) for device, _nodes in routes.choose(some) or ())
    assert asked == dict.fromkeys(devices, 30)


def test_nodes_of_one_device_are_asked_together() -> None:
    """Nodes that share a device stand in one request."""
    places = {"A": ("x",), "B": ("x",), "C": ("y",)}
    assert router({"x": Device(), "y": Device()}).choose(rule("ALL", places)) == (("x", ("A", "B")), ("y", ("C",)))


def test_devices_that_are_not_ready_are_left_out(devices: Devices) -> None:
    """Who is not ready is not asked; when too few are left, nobody is."""
    routes, two = router(devices), rule("OutOf(2, 'A', 'B', 'C')", OWN)
    devices["device-A"].is_ready = False
    assert routes.choose(two) == (("device-B", ("B",)), ("device-C", ("C",)))
    devices["device-B"].is_ready = False
    assert routes.choose(two) is None
    assert not routes.can_serve(two)


def test_only_what_lacks_is_asked(devices: Devices) -> None:
    """Approvals count, refusals and failures are replaced."""
    routes, two = router(devices), rule("OutOf(2, 'A', 'B', 'C')", OWN)
    a, b = ("A", "device-A"), ("B", "device-B")
    assert routes.choose(two, Need(frozenset([a]), frozenset("B"))) == (("device-C", ("C",)),)
    assert routes.choose(two, Need(frozenset([a]), failed=frozenset([b]))) == (("device-C", ("C",)),)
    assert routes.choose(two, Need(frozenset([a, b]))) == ()
    assert routes.choose(two, Need(frozenset([a]), frozenset("BC"))) is None


def test_second_device_of_a_node_stands_in() -> None:
    """A node with keys on two devices is asked on the one that is ready."""
    devices = {"device-A": Device(), "device-B": Device()}
    devices["device-A"].is_ready = False
    assert router(devices).choose(rule("ALL", {"A": ("device-A", "device-B")})) == (("device-B", ("A",)),)


@pytest.mark.requirement("E-5", "E-7")
def test_distinct_devices_are_asked(devices: Devices) -> None:
    """Where each node needs a device of its own, nodes that share one are asked elsewhere, or others are."""
    places = {"A": ("device-A",), "B": ("device-A", "device-B"), "C": ("device-A",)}
    routes, two = router(devices), rule("OutOf(2, 'A', 'B', 'C')", places, distinct=True)
    for _ in range(6):
        asked = routes.choose(two)
        assert asked is not None
        assert len({device for device, _ in asked}) == len(asked) == 2
        assert ("device-B", ("B",)) in asked
    assert routes.choose(rule("ALL", places, distinct=True)) is None


@pytest.mark.requirement("E-5", "E-7")
def test_a_node_votes_again_on_another_device(devices: Devices) -> None:
    """A node that approved on the only device of another is asked again, on its other device."""
    places = {"A": ("device-A",), "B": ("device-A", "device-B")}
    routes, both = router(devices), rule("ALL", places, distinct=True)
    a, b = ("A", "device-A"), ("B", "device-A")
    assert routes.choose(both, Need(frozenset([a, b]))) == (("device-B", ("B",)),)
    assert routes.choose(both, Need(frozenset([b]))) == (("device-A", ("A",)), ("device-B", ("B",)))


def test_who_is_silent_is_asked_only_when_nobody_else_will_do(three: Devices) -> None:
    """A silent device is passed over, and asked again where the policy cannot do without it."""
    routes = router(three)
    places = {"A": ("x",), "B": ("y",), "C": ("z",)}
    three["x"].is_silent = True
    for _ in range(3):
        assert routes.choose(rule("OutOf(2, 'A', 'B', 'C')", places)) == (("y", ("B",)), ("z", ("C",)))
    assert routes.choose(rule("ALL", places)) == (("x", ("A",)), ("y", ("B",)), ("z", ("C",)))


# --- replicated -------------------------------------------------------------------------------------------


@pytest.mark.requirement("E-7")
def test_the_device_that_should_answer_first_gets_all_nodes(three: Devices) -> None:
    """One device votes for all nodes that are needed: the quickest at this moment."""
    routes, two = router(three), rule("OutOf(2, 'A', 'B', 'C')", EVERYWHERE, Replicated())
    three["y"].seconds = 0.002
    assert routes.choose(two) == (("y", ("A", "B")),)
    three["y"].seconds = 0.02
    three["z"].seconds = 0.001
    assert routes.choose(two) == (("z", ("A", "B")),)
    three["z"].is_ready = False
    assert routes.choose(two) == (("x", ("A", "B")),)


@pytest.mark.requirement("E-7")
def test_next_quickest_joins_for_keys_that_lack(three: Devices) -> None:
    """As few devices as can do it are asked: a slower one for all nodes, or two that have a key each."""
    places = {"A": ("x", "y", "z"), "B": ("y", "z"), "C": ("z",)}
    three["x"].seconds, three["y"].seconds, three["z"].seconds = 0.001, 0.002, 0.003
    routes = router(three)
    assert routes.choose(rule("OutOf(1, 'A')", places, Replicated())) == (("x", ("A",)),)
    assert routes.choose(rule("AND('A', 'B')", places, Replicated())) == (("y", ("A", "B")),)
    places = {"A": ("x",), "B": ("y", "z"), "C": ("z",)}
    assert routes.choose(rule("AND('A', 'B')", places, Replicated())) == (("x", ("A",)), ("y", ("B",)))


@pytest.mark.requirement("E-7", "E-5")
def test_distinct_devices_spread_the_nodes(three: Devices) -> None:
    """Where each node needs a device of its own, the two quickest are asked for one node each."""
    three["x"].seconds = 0.05
    two = rule("OutOf(2, 'A', 'B', 'C')", EVERYWHERE, Replicated(), distinct=True)
    asked = router(three).choose(two)
    assert asked is not None
    assert [device for device, _ in asked] == ["y", "z"]
    assert [len(nodes) for _, nodes in asked] == [1, 1]


@pytest.mark.requirement("E-12")
def test_replicated_node_is_asked_elsewhere(three: Devices) -> None:
    """A node that failed on one device is asked on the next quickest, not on another node's account."""
    routes, every = router(three), rule("ALL", EVERYWHERE, Replicated())
    failed = frozenset((node, "x") for node in "ABC")
    assert routes.choose(every, Need(failed=failed)) == (("y", ("A", "B", "C")),)
    voted = frozenset([("A", "x"), ("B", "x")])
    assert routes.choose(every, Need(voted, failed=frozenset([("C", "x")]))) == (("y", ("C",)),)


@pytest.mark.requirement("E-7")
def test_device_that_was_long_idle_is_asked_besides(three: Devices) -> None:
    """So that a slow device that has recovered is found, one that was not asked for two seconds is asked too."""
    routes, two = router(three), rule("OutOf(2, 'A', 'B', 'C')", EVERYWHERE, Replicated())
    chosen: Assignment = (("x", ("A", "B")),)
    assert routes.besides(two, chosen) == ()
    three["z"].idle_seconds = 3.0
    assert routes.besides(two, chosen) == (("z", ("A", "B")),)
    three["z"].is_ready = False
    assert routes.besides(two, chosen) == ()


@pytest.mark.requirement("E-7")
def test_explanation_names_candidates_and_the_reason(three: Devices) -> None:
    """What is explained is what would be done, with each candidate's figures and why the others were not chosen."""
    three["y"].seconds = 0.002
    three["z"].is_ready, three["z"].reason = False, "draining"
    routes, two = router(three), rule("OutOf(2, 'A', 'B', 'C')", EVERYWHERE, Replicated())
    told = routes.explain("evidence.record", two)
    assert (told.routing, told.kind, told.policy) == ("replicated", "evidence.record", "evidence")
    assert [(each.device, each.ready, each.reason, each.nodes) for each in told.candidates] == [
        ("x", True, "ready", ("A", "B", "C")),
        ("y", True, "ready", ("A", "B", "C")),
        ("z", False, "draining", ("A", "B", "C")),
    ]
    assert told.chosen is not None
    assert [(each.device, each.nodes) for each in told.chosen] == [("y", ("A", "B"))]
    assert told.reason == "expected to answer first: y in 2.0 ms; then: x in 10.0 ms"
    for device in three.values():
        device.is_ready = False
    told = routes.explain("evidence.record", two)
    assert (told.chosen, told.reason) == (None, "no set of devices that are ready satisfies OutOf(2, 'A', 'B', 'C')")


# --- rotation ---------------------------------------------------------------------------------------------

FIVE = ("1", "2", "3", "4", "5")
SEQUENCE = Rotation((("1",), ("2", "3"), ("4", "5")))
EVERY_KEY = dict.fromkeys("ABCD", FIVE)


@pytest.fixture
def five() -> Devices:
    """Devices 1 to 5."""
    return {name: Device() for name in FIVE}


@pytest.mark.requirement("E-8")
def test_groups_take_turns_and_each_device_has_its_share(five: Devices) -> None:
    """The sequence (1), (2,3), (4,5) is followed in turn, the target nodes dealt out among the group."""
    routes, every = router(five), rule("ALL", EVERY_KEY, SEQUENCE)
    for _ in range(3):
        assert routes.choose(every) == (("1", ("A", "B", "C", "D")),)
        assert [(device, len(nodes)) for device, nodes in routes.choose(every) or ()] == [("2", 2), ("3", 2)]
        assert [(device, len(nodes)) for device, nodes in routes.choose(every) or ()] == [("4", 2), ("5", 2)]


@pytest.mark.requirement("E-8")
def test_nodes_move_on_after_each_round(five: Devices) -> None:
    """Under k of n all nodes get the same share over the rounds."""
    routes, two = router(five), rule("OutOf(2, 'A', 'B', 'C', 'D')", EVERY_KEY, SEQUENCE)
    asked = Counter(node for _ in range(24) for _, nodes in routes.choose(two) or () for node in nodes)
    assert asked == dict.fromkeys("ABCD", 12)


@pytest.mark.requirement("E-8", "E-9")
def test_share_keeps_to_the_keys(five: Devices) -> None:
    """A device is asked only for nodes whose keys it holds, also when the shares are uneven then."""
    places = {"A": ("2",), "B": ("2", "3"), "C": ("2", "3"), "D": ("2", "3")}
    (two, three) = router(five).choose(rule("ALL", places, Rotation((("2", "3"),)))) or ()
    assert (two[0], three[0]) == ("2", "3")
    assert "A" in two[1]
    assert (len(two[1]), len(three[1])) == (2, 2)


@pytest.mark.requirement("E-8")
def test_group_that_is_down_is_skipped_with_the_reason(five: Devices) -> None:
    """A group that cannot serve is passed over for the next one; why is logged once, and explained."""
    five["1"].is_ready, five["1"].reason = False, "not reachable at unix:/run/1.sock"
    routes, every = router(five), rule("ALL", EVERY_KEY, SEQUENCE)
    with structlog.testing.capture_logs() as logged:
        told = routes.explain("evidence.record", every)
        first = routes.choose(every)
    assert [device for device, _ in first or ()] == ["2", "3"]
    assert [(skipped.devices, skipped.why) for skipped in told.skipped] == [
        (("1",), "1: not reachable at unix:/run/1.sock")
    ]
    assert told.reason == "group 2 of 3 (2, 3) has its turn"
    assert [(entry["devices"], entry["reason"]) for entry in logged] == [
        (("1",), "1: not reachable at unix:/run/1.sock")
    ]


@pytest.mark.requirement("E-8")
def test_rest_of_a_group_takes_over(five: Devices) -> None:
    """Where one device of a group is away, the others of it take its share when they can."""
    five["3"].is_ready = False
    routes, every = router(five), rule("ALL", EVERY_KEY, SEQUENCE)
    routes.choose(every)
    assert routes.choose(every) == (("2", ("A", "B", "C", "D")),)


@pytest.mark.requirement("E-8")
def test_strategies_differ_by_transaction_type(five: Devices) -> None:
    """Each policy has its own strategy and its own turn."""
    routes = router(five)
    rotating, fastest = rule("ALL", EVERY_KEY, SEQUENCE), rule("ALL", EVERY_KEY, Replicated())
    five["5"].seconds = 0.001
    assert routes.choose(rotating) == (("1", ("A", "B", "C", "D")),)
    assert routes.choose(fastest) == (("5", ("A", "B", "C", "D")),)
