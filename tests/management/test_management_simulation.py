"""Simulation: what would be endorsed now, by whom, on which devices, and what a lost device stops."""

import asyncio

import httpx2
import msgspec
import pytest

from ledger.registry_view import RegistryView
from management.simulation import DeviceState, MissingNode, SimulatedVote, Simulation, simulate
from protocol import canonical
from protocol.registry import EndorsementPolicy, Replicated, Rotation, key_of
from tests.chain_builder import GENESIS_TIME, Network
from tests.management.simulated_network import RunningCenter, SimulatedNetwork

TWO = "OutOf(2, 'A', 'B', 'C')"


def world(*policies: EndorsementPolicy, replicated: bool = False) -> tuple[RegistryView, dict[str, DeviceState]]:
    """A registry with these policies, and its devices, which are all ready."""
    network = Network(replicated=replicated, policies={"assets": TWO})
    view = RegistryView({key_of(entry): canonical.encode(entry) for entry in (*network.entries(), *policies)})
    nodes = "ABC" if replicated else ""
    states = {name: DeviceState(ready=True, nodes=tuple(nodes or name[-1].upper())) for name in network.devices}
    return view, states


def ask(kind: str, view: RegistryView, states: dict[str, DeviceState], without: str | None = None) -> Simulation:
    """A simulation at block 1."""
    found = simulate(kind, view, states, height=0, time=GENESIS_TIME, without=without)
    assert found is not None
    return found


@pytest.mark.requirement("E-5", "E-6")
def test_who_would_endorse() -> None:
    """The nodes that would be asked are named with their devices; the contract's policy covers its operations."""
    view, states = world()
    found = ask("assets.issue", view, states)
    assert (found.policy, found.endorsed, found.missing, found.blocks) == ("assets", True, (), "")
    (turn,) = found.turns
    assert turn.votes == (SimulatedVote("A", "device-a"), SimulatedVote("B", "device-b"))
    assert simulate("loans.take", view, states, height=0, time=GENESIS_TIME) is None


@pytest.mark.requirement("E-5", "E-6")
def test_devices_that_cannot_sign() -> None:
    """Each node that nobody can sign for is named, with what stands in the way at each of its devices."""
    view, states = world(EndorsementPolicy("evidence", "ALL"))
    states["device-a"] = DeviceState(ready=False, reason="the token is gone")
    del states["device-b"]
    states["device-c"] = DeviceState(ready=True, nodes=("A",))
    found = ask("evidence", view, states)
    assert not found.endorsed
    assert found.missing == (
        MissingNode("A", {"device-a": "the token is gone"}),
        MissingNode("B", {"device-b": "not configured here"}),
        MissingNode("C", {"device-c": "its token does not serve node C"}),
    )
    assert [turn.reason for turn in found.turns] == ["ALL is not met by nobody; missing are A, B, C"]


@pytest.mark.requirement("E-6", "E-7")
def test_a_lost_device() -> None:
    """Without a device, partitioned policies lose its node; replicated ones go on elsewhere."""
    view, states = world(EndorsementPolicy("evidence", "ALL"))
    assert ask("evidence", view, states).endorsed
    lost = ask("evidence", view, states, without="device-b")
    assert (lost.endorsed, lost.missing) == (False, (MissingNode("B", {"device-b": "taken as lost"}),))
    assert ask("assets", view, states, without="device-b").endorsed
    view, states = world(EndorsementPolicy("evidence", "ALL", Replicated()), replicated=True)
    (turn,) = ask("evidence", view, states, without="device-b").turns
    assert {vote.device for vote in turn.votes} <= {"device-a", "device-c"}
    assert [vote.node for vote in turn.votes] == ["A", "B", "C"]


@pytest.mark.requirement("E-5", "E-7")
def test_distinct_devices() -> None:
    """Where each node needs a device of its own, one device less is one node less."""
    entry = EndorsementPolicy("evidence", "ALL", Replicated(), distinct_devices=True)
    view, states = world(entry, replicated=True)
    (turn,) = ask("evidence", view, states).turns
    assert len({vote.device for vote in turn.votes}) == 3
    lost = ask("evidence", view, states, without="device-c")
    assert "each node needs a token of its own" in lost.turns[0].reason
    assert lost.missing == ()


@pytest.mark.requirement("E-8")
def test_turns_of_a_rotation() -> None:
    """Each group says for itself whether it could; one that can is enough."""
    rotation = Rotation((("device-a",), ("device-b", "device-c")))
    view, states = world(EndorsementPolicy("evidence", "ALL", rotation), replicated=True)
    found = ask("evidence", view, states, without="device-a")
    assert found.endorsed
    assert found.turns[0].reason == "device-a: ALL is not met by nobody; missing are A, B, C"
    assert {vote.device for vote in found.turns[1].votes} <= {"device-b", "device-c"}
    states["device-b"] = states["device-c"] = DeviceState(ready=False)
    assert not ask("evidence", view, states, without="device-a").endorsed


@pytest.mark.requirement("K-13")
def test_keys_out_of_force() -> None:
    """A key that has expired, or does not count yet, signs for nobody."""
    network = Network()
    early, late = network.node_entry("A", since=9), network.node_entry("B", until=GENESIS_TIME)
    view, states = world()
    view = view.changed({key_of(entry): canonical.encode(entry) for entry in (early, late)})
    found = ask("assets", view, states)
    assert found.missing == (MissingNode("A", {}), MissingNode("B", {}))
    assert not found.endorsed


def test_the_centers_device() -> None:
    """Without the device that holds the center's key no block can be signed, whatever is endorsed."""
    view, states = world()
    found = ask("assets", view, states, without="device-a")
    assert found.endorsed
    assert found.blocks == (
        "no block can be signed: 1 centers are needed, and the key of center-1 on device-a cannot be used"
    )


async def _get(center: RunningCenter, path: str) -> httpx2.Response:
    return await center.http.get(f"/v1/policies/{path}")


@pytest.mark.requirement("E-5")
async def test_the_door(center: RunningCenter, network: SimulatedNetwork) -> None:
    """The running service answers from its registry and from what its devices said last."""
    answer = await _get(center, "evidence.record/simulation")
    assert answer.status_code == 200
    found = msgspec.json.decode(answer.content, type=Simulation)
    assert (found.kind, found.policy, found.expression, found.endorsed) == ("evidence.record", "evidence", TWO, True)
    assert [(vote.node, vote.device) for vote in found.turns[0].votes] == [("A", "device-a"), ("B", "device-b")]
    network.device_a.ready = False
    async with asyncio.timeout(10):
        while not found.missing:
            found = msgspec.json.decode((await _get(center, "evidence.record/simulation")).content, type=Simulation)
            await asyncio.sleep(0.05)
    assert found.missing == (MissingNode("A", {"device-a": "the token is gone"}),)
    assert found.endorsed
    lost = await _get(center, "evidence.record/simulation?without=device-b")
    assert lost.json()["endorsed"] is False


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("loans.take/simulation", 404, "no-policy"),
        ("evidence/simulation?without=device-x", 404, "unknown-device"),
        ("registry.put/simulation", 422, "not-endorsed"),
        ("evidence/simulation?without=..%2Fx", 422, "malformed"),
    ],
)
async def test_what_cannot_be_simulated(center: RunningCenter, path: str, status: int, code: str) -> None:
    """What no policy covers, and devices that are not there, are refused with the reason."""
    answer = await _get(center, path)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:hsm-endorser:problem:{code}")
