"""A network that two people made in a ceremony runs like any other, and says for ever that it had one."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import exit_codes, registry, role_holder
from cli.api import Management
from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from protocol.transcript import Transcript
from tests.cli.ceremony_hall import Hall
from tests.flow.running_network import RunningNetwork

pytestmark = pytest.mark.requirement("K-11")


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    """Anna, with a key in a file, and carla, with a key on a token of her own, have held the ceremony."""
    hall = Hall(tmp_path_factory.mktemp("ceremony"))
    run = ["ceremony", "run", str(hall.plan), "--into", str(hall.network), "--holder", "anna", "--holder", "carla"]
    assert main([*run, "--json"]) == 0
    return hall


@pytest.fixture(scope="module")
def network(hall: Hall) -> Iterator[RunningNetwork]:
    """The network, running, with a client."""
    folder = hall.network
    with Supervisor(folder, services(folder, read_network(folder)), print) as supervisor:
        supervisor.wait_ready(60)
        assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == 0
        yield RunningNetwork(Layout(folder), supervisor)


def test_its_keys_endorse(network: RunningNetwork) -> None:
    """A transaction that both nodes must endorse is committed, signed by the keys of the transcript."""
    transaction = network.evidence("pump-1")
    with network.management() as management:
        management.submit(transaction.raw)
    assert (network.ended(transaction.id).status, network.ended(transaction.id).code) == ("committed", "valid")


def test_the_network_names_its_ceremony(network: RunningNetwork, hall: Hall) -> None:
    """At `/v1/network`: the digest of the transcript up to the first set."""
    digest = Transcript.read(hall.transcript.read_bytes()).steps[-2].previous
    with Management(network.layout.socket("management")) as management:
        assert management.network().ceremony == digest


@pytest.mark.requirement("K-12", "S-2")
def test_an_administrators_key_on_a_token_is_rotated(network: RunningNetwork, hall: Hall) -> None:
    """The next key is made on carla's token, both sign; the one before stays, and what is interrupted is found."""
    folder, before = network.layout.folder, hall.objects()
    held = role_holder.held_elsewhere(folder, "carla")
    assert held is not None
    words = ["key", "rotate", "administrator/carla", "--network", str(folder), "--json"]
    assert main(words) == 0
    after = hall.objects()
    assert len(after) == len(before) + 2
    assert {path: after[path] for path in before} == before
    now = role_holder.held_elsewhere(folder, "carla")
    assert now is not None
    assert now.public_key != held.public_key
    role_holder.write_held(folder, "carla", held)  # as if it had been interrupted before it was written down
    entry = registry.in_force(folder).administrator("carla")
    deadline = time.monotonic() + 20
    while entry is None or entry.key.hex() != now.public_key:
        assert time.monotonic() < deadline, "the peer does not show the new key"
        time.sleep(0.1)
        entry = registry.in_force(folder).administrator("carla")
    assert main(words) == exit_codes.USAGE, "nothing is left to do but to write it down"
    assert role_holder.held_elsewhere(folder, "carla") == now
    assert hall.objects() == after


@pytest.mark.requirement("S-2")
def test_its_administrators_change_it_with_keys_held_elsewhere(network: RunningNetwork, hall: Hall) -> None:
    """A policy is set under the signatures of a file outside the folder and of a token; the folder has neither key."""
    folder = network.layout.folder
    assert not list(Path(folder / "administrators").glob("*.key"))
    before = hall.objects()
    assert main(["policy", "set", "assets", "OutOf(1, 'A', 'B')", "--network", str(folder), "--json"]) == 0
    assert hall.objects() == before
    deadline = time.monotonic() + 20
    while "policy/assets" not in registry.in_force(folder).entries:
        assert time.monotonic() < deadline, "the peer does not show the new policy"
        time.sleep(0.1)
