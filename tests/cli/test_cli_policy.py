"""`hsm-endorser policy`: explained, simulated against a running network, and set."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import network as networks
from cli.main import main
from cli.plan import read_network
from cli.supervisor import Supervisor
from tests.chain_builder import Network
from tests.cli.conftest import Result

Run = Callable[..., Result]


@pytest.mark.requirement("E-5", "E-15")
@pytest.mark.parametrize(
    ("expression", "meaning", "indispensable"),
    [
        ("AND('A', 'B')", "node A and node B", ["A", "B"]),
        ("OR('A', 'B')", "node A or node B", []),
        ("OutOf(2, 'A', 'B', 'C')", "at least 2 of node A, node B, node C", []),
        ("OR('A', AND('B', 'C'))", "node A or (node B and node C)", []),
        ("AND('A', OR('B', 'C'))", "node A and (node B or node C)", ["A"]),
        ("'A'", "node A", ["A"]),
    ],
)
def test_a_policy_is_explained(run: Run, expression: str, meaning: str, indispensable: list[str]) -> None:
    """A policy is said in words, with the nodes without which it cannot be satisfied."""
    result = run("policy", "check", expression, "--json")
    assert result.code == 0
    assert result.document["meaning"] == meaning
    assert result.document["indispensable"] == indispensable


@pytest.mark.requirement("E-15")
@pytest.mark.parametrize(
    ("expression", "meaning", "minimal"),
    [
        ("MAJORITY", "more than 2/3 of the nodes of the channel", ["A", "B", "C"]),
        ("MAJORITY(1/2)", "more than 1/2 of the nodes of the channel", ["A", "B"]),
        ("ALL", "all nodes of the channel", ["A", "B", "C"]),
        ("ANY", "any one node of the channel", ["A"]),
    ],
)
def test_the_channel_of_a_network_is_counted(
    run: Run, built: tuple[Path, Network], expression: str, meaning: str, minimal: list[str]
) -> None:
    """With a network folder, policies that speak of the channel are judged against its nodes."""
    result = run("policy", "check", expression, "--network", built[0], "--json")
    assert result.code == 0
    assert (result.document["meaning"], result.document["minimal"]) == (meaning, minimal)


def test_people_read_a_sentence(run: Run) -> None:
    """Without --json the answer is prose."""
    result = run("policy", "check", "AND('A', OR('B', 'C'))")
    assert result.code == 0
    assert "It asks for node A and (node B or node C)." in result.out
    assert "Without A it cannot be satisfied." in result.out


def test_an_unknown_node_is_a_usage_error(run: Run, built: tuple[Path, Network]) -> None:
    """A policy that names a node the network does not have is refused with the nodes that it has."""
    result = run("policy", "check", "AND('A', 'X')", "--network", built[0], "--json")
    assert result.code == 2
    assert result.document["error"]["reason"] == "the policy names X; the network's nodes are A, B, C"


def test_a_syntax_error_points_at_the_place(run: Run) -> None:
    """A policy that cannot be parsed is a usage error that says where."""
    result = run("policy", "check", "AND('A', ", "--json")
    assert result.code == 2
    assert result.document["error"]["code"] == "policy-syntax"
    assert "at character" in result.document["error"]["reason"]


def test_setting_a_policy_needs_the_administrators_keys(run: Run, built: tuple[Path, Network]) -> None:
    """Without the administrators' keys in the folder a policy cannot be set, and the missing key is named."""
    result = run("policy", "set", "assets", "ALL", "--network", built[0], "--json")
    assert result.code == 2
    assert "administrators/admin-1.key" in result.document["error"]["reason"]


@pytest.mark.requirement("E-5", "E-8")
def test_routing_and_distinct_devices_are_explained(run: Run) -> None:
    """How devices are chosen, and that each node needs a token of its own, is said in words."""
    turns = ["--routing", "rotation", "--sequence", "device-a; device-b,device-c"]
    result = run("policy", "check", "AND('A', 'B')", *turns, "--distinct-devices")
    assert result.code == 0
    assert "Each node that counts must sign on a token of its own" in result.out
    assert "Groups of devices take turns (rotation): device-a, then device-b with device-c." in result.out
    document = run("policy", "check", "AND('A', 'B')", *turns, "--distinct-devices", "--json").document
    assert document["distinct_devices"] is True
    assert document["routing"] == {"strategy": "rotation", "sequence": [["device-a"], ["device-b", "device-c"]]}


@pytest.mark.requirement("E-5", "E-8")
@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--routing", "rotation"], "usage", "a rotation, and nothing else, has a --sequence"),
        (["--sequence", "device-a"], "usage", "a rotation, and nothing else, has a --sequence"),
        (["--routing", "rotation", "--sequence", "device-a;;device-b"], "usage", "--sequence 'device-a;;device-b'"),
        (
            ["--routing", "rotation", "--sequence", "device-a;device-x"],
            "unknown-device",
            "device-x, which is no device",
        ),
        (["--routing", "rotation", "--sequence", "device-a;device-b"], "never-satisfied", "group 1 of the rotation"),
    ],
)
def test_what_the_registry_would_refuse_is_refused_before(
    run: Run, built: tuple[Path, Network], options: list[str], code: str, reason: str
) -> None:
    """A routing that makes no sense, or that the devices could never serve, is refused before anybody signs it."""
    for command in (["check"], ["set", "assets"]):
        result = run("policy", *command, "AND('A', 'B')", "--network", built[0], *options, "--json")
        assert result.code == 2
        assert result.document["error"]["code"] == code
        assert reason in result.document["error"]["reason"]


def test_too_large_for_distinct_devices(run: Run) -> None:
    """A policy that could take too long to judge with distinct devices is a usage error."""
    nodes = ", ".join(f"'n{number}'" for number in range(65))
    result = run("policy", "check", f"AND({nodes})", "--distinct-devices", "--json")
    assert (result.code, result.document["error"]["code"]) == (2, "limit-exceeded")


def test_simulating_needs_a_running_network(run: Run, built: tuple[Path, Network]) -> None:
    """Where nothing runs, the answer says how to start it."""
    result = run("policy", "simulate", "assets.issue", "--network", built[0], "--json")
    assert result.code == 3
    assert "hsm-endorser network up" in result.document["error"]["advice"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Supervisor]]:
    """A running network of three nodes: all of them issue assets, two of three do everything else."""
    folder = tmp_path_factory.mktemp("policies") / "net"
    assert main(["network", "init", str(folder), "--json"]) == 0
    with Supervisor(folder, networks.services(folder, read_network(folder)), print) as supervisor:
        supervisor.wait_ready(60)
        yield folder, supervisor


@pytest.mark.requirement("E-5", "E-6")
def test_what_would_be_endorsed_now(run: Run, live: tuple[Path, Supervisor]) -> None:
    """The nodes and their devices are named, by the policy that covers the transaction type."""
    result = run("policy", "simulate", "assets.transfer", "--network", live[0])
    assert result.code == 0
    assert "assets.transfer (by the policy for assets) asks for at least 2 of node A, node B, node C" in result.out
    assert "It would be endorsed now:" in result.out
    assert "A on device-a, B on device-b" in result.out
    everything = run("policy", "simulate", "--network", live[0], "--json").document["simulations"]
    assert {each["kind"]: each["endorsed"] for each in everything} == dict.fromkeys(
        ("assets", "assets.issue", "evidence"), True
    )


@pytest.mark.requirement("E-5", "E-6")
def test_what_a_lost_device_stops(run: Run, live: tuple[Path, Supervisor]) -> None:
    """Types that need the device's node stop; without the device of the center's key, all of them do."""
    result = run("policy", "simulate", "--lost", "device-b", "--network", live[0], "--json").document
    assert (result["stops"], result["goes_on"]) == (["assets.issue"], ["assets", "evidence"])
    words = run("policy", "simulate", "--lost", "device-b", "--network", live[0]).out
    assert "these stop: assets.issue" in words
    assert "nobody can sign for B (device-b: taken as lost)" in words
    center = run("policy", "simulate", "--lost", "device-a", "--network", live[0], "--json").document
    assert (center["stops"], center["goes_on"]) == (["assets", "assets.issue", "evidence"], [])
    assert "the key of center-1 on device-a cannot be used" in center["simulations"][0]["blocks"]


def test_unknown_kinds_and_devices(run: Run, live: tuple[Path, Supervisor]) -> None:
    """What no policy covers and devices that are not registered are refused with the reason."""
    for options, code in ((["loans.take"], "no-policy"), (["--lost", "device-x"], "unknown-device")):
        result = run("policy", "simulate", *options, "--network", live[0], "--json")
        assert result.document["error"]["code"] == code


@pytest.mark.requirement("E-5", "E-8")
def test_a_rotation_of_distinct_devices_is_set(run: Run, live: tuple[Path, Supervisor]) -> None:
    """Administrators put routing and distinct devices on chain; the running service judges by them at once."""
    turns = "device-a,device-b;device-a,device-b,device-c"
    options = ["--routing", "rotation", "--sequence", turns, "--distinct-devices", "--network", live[0], "--json"]
    assert run("policy", "set", "evidence.record", "AND('A', 'B')", *options).code == 0
    (found,) = run("policy", "simulate", "evidence.record", "--network", live[0], "--json").document["simulations"]
    assert (found["policy"], found["routing"], found["distinct_devices"]) == ("evidence.record", "rotation", True)
    assert [turn["devices"] for turn in found["turns"]] == [
        ["device-a", "device-b"],
        ["device-a", "device-b", "device-c"],
    ]
    assert found["endorsed"] is True
    words = run("policy", "simulate", "evidence.record", "--network", live[0]).out
    assert "node A and node B, each on a token of its own (rotation)" in words


@pytest.mark.requirement("E-6")
def test_a_device_that_is_gone(run: Run, live: tuple[Path, Supervisor]) -> None:
    """When a device stops, its types stand still, and the answer says which device and why."""
    folder, supervisor = live
    supervisor.stop("device-c")
    deadline = time.monotonic() + 20
    while True:
        (found,) = run("policy", "simulate", "assets.issue", "--network", folder, "--json").document["simulations"]
        if not found["endorsed"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found["missing"][0]["node"] == "C"
    assert "not reachable" in found["missing"][0]["devices"]["device-c"]
    lost = run("policy", "simulate", "--lost", "device-b", "--network", folder, "--json").document
    assert lost["stopped_already"] == ["assets.issue"]
    assert {"assets", "evidence"} <= set(lost["stops"])
