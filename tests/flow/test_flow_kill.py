"""Nothing acknowledged is lost: every process is killed with SIGKILL under load, and the peers are asked afterwards."""

import time
from collections.abc import Callable

import pytest

from cli.plan import Layout
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.canonical import TxId
from tests.flow.running_network import Load, RunningNetwork

pytestmark = pytest.mark.slow

SERVICES = ["management", "device-a", "device-b", "peer-1"]
LOAD_SECONDS_AROUND = 1.0


@pytest.fixture(scope="module")
def network(start: Callable[..., RunningNetwork]) -> RunningNetwork:
    """A network of this module's own, because it is mistreated."""
    return start()


@pytest.mark.requirement("M-6", "K-10")
@pytest.mark.parametrize("service", SERVICES)
def test_what_was_acknowledged_survives_the_death_of(service: str, network: RunningNetwork) -> None:
    """Every transaction that got a 202 is committed on both peers after the service was killed and came back."""
    load = Load(network, f"load-{service}")
    load.start()
    time.sleep(LOAD_SECONDS_AROUND)
    killed = network.kill(service)
    time.sleep(LOAD_SECONDS_AROUND)
    network.supervisor.wait_ready(60)
    time.sleep(LOAD_SECONDS_AROUND)
    load.stop()

    assert network.supervisor.processes[service].pid != killed
    assert len(load.acknowledged) >= 100
    assert load.refused == []
    ends = [network.ended(transaction) for transaction in load.acknowledged]
    assert {(end.status, end.code) for end in ends} == {("committed", "valid")}
    network.wait_level(max(end.height or 0 for end in ends))
    digests = set()
    for name in network.peers:
        with network.peer(name) as peer:
            assert peer.status().halted is None
            digests.add(peer.digest())
        assert _held_by(network.layout, name, load.acknowledged) == set(load.acknowledged)
    assert len(digests) == 1


@pytest.mark.requirement("M-6")
def test_all_processes_at_once(network: RunningNetwork) -> None:
    """The whole machine fails under load: after the restart, everything acknowledged is on both peers."""
    load = Load(network, "load-all")
    load.start()
    time.sleep(LOAD_SECONDS_AROUND)
    for service in network.supervisor.processes:
        network.kill(service)
    time.sleep(LOAD_SECONDS_AROUND)
    network.supervisor.wait_ready(60)
    load.stop()

    assert load.failures > 0, "the failure went unnoticed, so nothing was shown"
    ends = [network.ended(transaction) for transaction in load.acknowledged]
    assert {(end.status, end.code) for end in ends} == {("committed", "valid")}
    network.wait_level(max(end.height or 0 for end in ends))
    for name in network.peers:
        assert _held_by(network.layout, name, load.acknowledged) == set(load.acknowledged)


def test_the_chain_that_came_of_it_verifies_from_genesis(network: RunningNetwork) -> None:
    """A fresh replica accepts every block that a peer kept through all this."""
    with network.peer("peer-2") as peer:
        height = peer.status().height
    kept = ChainStore.open(url_of(network.layout.peer("peer-2") / "chain.db"))
    fresh = Replica.create(
        ChainStore.create(url_of(network.layout.folder / "fresh.db")), network.layout.genesis.read_bytes()
    )
    for number in range(1, height + 1):
        fresh.apply(kept.block(number) or b"")
    assert fresh.height == height >= 5
    kept.close()
    fresh.store.close()


def _held_by(layout: Layout, peer: str, transactions: list[str]) -> set[str]:
    """Those of the transactions that stand in a peer's own database."""
    store = ChainStore.open(url_of(layout.peer(peer) / "chain.db"))
    try:
        return set(store.locate([TxId(each) for each in transactions]))
    finally:
        store.close()
