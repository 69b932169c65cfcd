"""What is in force: names, keys, lifetimes, policies; and entries that never change."""

import random

import pytest

from ledger import registry_entries
from ledger.errors import RegistryError
from ledger.registry_entries import RegistryEntries
from ledger.replica import Replica
from protocol.registry import registry_root
from tests.chain_builder import Network


def test_who_is_who(network: Network, replica: Replica) -> None:
    """The view gives every kind of entry by name, and nothing for names that are not there."""
    view = replica.registry
    assert view.node_names == ("A", "B", "C")
    assert set(view.administrators) == {"admin-1", "admin-2", "admin-3"}
    assert (list(view.registrars), list(view.centers)) == (["ca"], ["center-1"])
    key = network.node_keys["A", "device-a"]
    assert view.keys_on_device("device-a") == {key.id: "A"}
    assert (view.devices_of("A"), view.devices_of("Z")) == (("device-a",), ())
    for nothing in (
        view.client("nobody"),
        view.node("nobody"),
        view.device("nobody"),
        view.center("nobody"),
        view.registrar("nobody"),
        view.policy("loans.take"),
    ):
        assert nothing is None


def test_policies(replica: Replica) -> None:
    """A type without a policy of its own has that of its contract."""
    assert replica.registry.policy_key("assets.issue") == "policy/assets"
    assert replica.registry.policy("assets.issue") is replica.registry.policy("assets.transfer")


@pytest.mark.requirement("E-9", "K-13")
def test_node_keys(network: Network, replica: Replica) -> None:
    """A node's key is given for its own node, device, heights and times alone, and the refusal says why."""
    view = replica.registry.changed({})
    key = network.node_keys["A", "device-a"]
    good = {"device": "device-a", "height": 1, "time": 1}
    assert view.node_key("A", key.id, **good) == key.public  # type: ignore[arg-type]
    for node, identity, changed, reason in (
        ("Z", key.id, {}, "no node Z"),
        ("B", key.id, {}, "not registered for node B"),
        ("A", "ab" * 32, {}, "not registered for node A"),
        ("A", key.id, {"device": "device-b"}, "lives on device-a"),
        ("A", key.id, {"time": 2**53}, "has expired"),
    ):
        with pytest.raises(RegistryError, match=reason):
            view.node_key(node, identity, **{**good, **changed})  # type: ignore[arg-type]


def test_an_empty_registry_says_so() -> None:
    """Without a channel there is no network."""
    from ledger.registry_view import RegistryView  # noqa: PLC0415  used here alone

    with pytest.raises(RegistryError, match="the registry has no channel"):
        _ = RegistryView({}).channel


def test_entries_are_a_mapping_that_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random changes give the same as a plain dictionary would, and leave all earlier versions as they were."""
    monkeypatch.setattr(registry_entries, "MOST_CHANGES", 5)
    chance = random.Random(1)  # noqa: S311  a test's own dice
    plain: dict[str, bytes] = {"channel": b"c"}
    entries = RegistryEntries(plain)
    versions: list[tuple[RegistryEntries, dict[str, bytes]]] = []
    for step in range(200):
        keys = [f"{chance.choice(['node', 'client', 'device'])}/{chance.randrange(12)}" for _ in range(3)]
        changes = {key: chance.choice([None, str(step).encode()]) for key in keys}
        entries = entries.changed(changes)
        plain = {key: value for key, value in {**plain, **changes}.items() if value is not None}
        versions.append((entries, plain))
    for made, expected in versions:
        assert dict(made) == expected
        assert len(made) == len(expected)
        assert made == expected
        for kind in ("channel", "node", "client", "device", "nothing"):
            assert made.under(kind) == sorted(key for key in expected if key.partition("/")[0] == kind)
        assert {key for kind in made.kinds() for key in made.under(kind)} == set(expected)
        assert ("node/3" in made) == ("node/3" in expected)
    assert registry_root(entries) == registry_root(plain)
