"""Whole networks for the flow tests: real tokens, every service a process of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from tests.flow.running_network import RunningNetwork

TWO_OF_THREE = "OutOf(2, 'A', 'B', 'C')"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningNetwork]]:
    """Makes and starts networks of three nodes, with clients `alice` and `bob`; stops them at the end."""
    supervisors: list[Supervisor] = []

    def begin(*options: str) -> RunningNetwork:
        folder = tmp_path_factory.mktemp("flow") / "net"
        assert main(["network", "init", str(folder), "--json", *options]) == 0
        supervisor = Supervisor(folder, services(folder, read_network(folder)), print)
        supervisors.append(supervisor)
        supervisor.__enter__()
        supervisor.wait_ready(60)
        for client in ("alice", "bob"):
            assert main(["client", "register", client, "--network", str(folder), "--json"]) == 0
        return RunningNetwork(Layout(folder.absolute()), supervisor)

    yield begin
    for supervisor in supervisors:
        supervisor.close()


@pytest.fixture(scope="module")
def network(start: Callable[..., RunningNetwork]) -> RunningNetwork:
    """A running network in which two of three nodes endorse evidence and transfers."""
    return start()


@pytest.fixture
def folder(network: RunningNetwork) -> Path:
    """The folder of the running network."""
    return network.layout.folder
