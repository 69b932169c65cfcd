"""When the network's own keys end, as services and commands are told."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ledger import expiring
from ledger.registry_view import RegistryView
from protocol import canonical
from protocol.registry import Entry, Revocation, key_of
from tests.chain_builder import GENESIS_TIME, Network
from transport.expiry import KeyExpiry

DAY = 24 * 3600 * 1000


def view(network: Network, *entries: Entry) -> RegistryView:
    """The network's registry with other entries in their places."""
    known = {key_of(entry): entry for entry in (*network.entries(), *entries)}
    return RegistryView({key: canonical.encode(entry) for key, entry in known.items()})


@pytest.mark.requirement("K-13")
def test_the_networks_keys_are_told_soonest_first() -> None:
    """Those of administrators, CA, centers, devices and nodes; no client's, and none that is revoked."""
    network = Network()
    revoked = network.node_keys["B", "device-b"].id
    found = expiring.network_keys(
        view(network, network.node_entry("C", until=GENESIS_TIME + DAY), Revocation(revoked, "node/B", "superseded", 0))
    )
    assert found[0].holder == "node/C"
    assert found[0].device == "device-c"
    assert sorted(each.holder for each in found) == [
        *(f"administrator/admin-{number}" for number in (1, 2, 3)),
        "center/center-1",
        *(f"device/device-{name}" for name in "abc"),
        "node/A",
        "node/C",
        "registrar/ca",
    ]


@pytest.mark.requirement("K-13")
def test_days_are_counted_by_block_time() -> None:
    """To the end, below zero after it, and not at all without one."""
    network = Network()
    by_holder = {
        each.holder: each for each in expiring.network_keys(view(network, network.node_entry("C", until=GENESIS_TIME)))
    }
    assert expiring.days_left(by_holder["node/C"], GENESIS_TIME - 3 * DAY) == 3
    assert expiring.days_left(by_holder["node/C"], GENESIS_TIME + DAY // 2) == -0.5
    assert expiring.days_left(by_holder["node/A"], GENESIS_TIME) is None


@pytest.mark.requirement("K-13")
def test_the_figure_is_of_the_moment_it_is_asked_for() -> None:
    """A service names each key that ends with the seconds that are left then."""
    network = Network()
    registry = view(network, network.node_entry("C", until=GENESIS_TIME + DAY))
    now = GENESIS_TIME
    figures = CollectorRegistry()
    figures.register(KeyExpiry("hsm_endorser_peer", lambda: expiring.seconds_left(registry, now)))
    line = f'hsm_endorser_peer_key_expires_seconds{{holder="node/C",key="{network.node_keys["C", "device-c"].id}"}}'
    assert f"{line} 86400.0\n" in generate_latest(figures).decode()
    now += 2 * DAY
    text = generate_latest(figures).decode()
    assert f"{line} -86400.0\n" in text
    assert text.count("\nhsm_endorser_peer_key_expires_seconds{") == 1
