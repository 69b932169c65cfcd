"""`hsm-endorser route`: whom the next transaction goes to, and why."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.plan import Layout
from management.service import serve
from protocol.registry import Replicated
from tests.chain_builder import Network
from tests.cli.conftest import Result
from tests.management.simulated_network import SimulatedNetwork
from transport.connect import connect_blocking

Run = Callable[..., Result]


@pytest.fixture
def routed(tmp_path: Path, built: tuple[Path, Network]) -> Iterator[Path]:
    """A network folder with a management service of replicated devices, one of which drains."""
    folder = built[0]
    address = Layout(folder).socket("management")
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        network = SimulatedNetwork(tmp_path, routing=Replicated(), replicated=True)
        network.device_c.ready, network.device_c.reason = False, "draining"
        for device in network.devices.values():
            await device.start()
        await serve(network.config(listen=[address]), stop)
        for device in network.devices.values():
            await device.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert address.path is not None
    deadline = time.monotonic() + 20
    while not address.path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    with connect_blocking(address, timeout=5) as http:
        while sum(each["ready"] for each in http.get("/v1/devices").json()["devices"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield folder
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


@pytest.mark.requirement("E-7")
def test_the_choice_is_explained(run: Run, routed: Path) -> None:
    """All devices with their figures, who is chosen for which nodes, and why; the same as one JSON document."""
    told = run("route", "explain", "evidence.record", "--network", routed, "--json")
    assert told.code == 0
    assert (told.document["routing"], told.document["policy"]) == ("replicated", "evidence")
    (chosen,) = told.document["chosen"]
    assert chosen["device"] in {"device-a", "device-b"}
    words = run("route", "explain", "evidence.record", "--network", routed)
    assert words.code == 0
    assert "evidence.record asks for at least 2 of node A, node B, node C; routing is replicated." in words.out
    assert "draining" in words.out
    assert "Why: expected to answer first: device-" in words.out


def test_what_nobody_endorses_has_no_route(run: Run, routed: Path) -> None:
    """A transaction type without a policy is refused with its code."""
    result = run("route", "explain", "nothing.at-all", "--network", routed, "--json")
    assert result.code != 0
    assert result.document["error"]["code"] == "no-policy"


@pytest.mark.requirement("E-12")
def test_alarms_are_listed(run: Run, routed: Path) -> None:
    """Where there is no alarm, that is said."""
    assert run("route", "alarms", "--network", routed, "--json").document == {"alarms": []}
    assert "No alarm" in run("route", "alarms", "--network", routed).out
