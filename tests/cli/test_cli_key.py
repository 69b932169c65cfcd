"""`key` and the parts of `device` that change the registry: what is listed, what is refused and with which advice.

What they do on a running network stands in tests/flow/test_flow_rotation.py and test_flow_key_cycle.py.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli import exit_codes, key_rotation, key_table, revoking
from cli.errors import UsageError
from cli.keys import SoftwareKey
from cli.plan import Layout
from ledger.registry_view import RegistryView
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.registry import Entry, Revocation, key_of
from tests.chain_builder import GENESIS_TIME, Network
from tests.cli.conftest import Result

Run = Callable[..., Result]
Built = tuple[Path, Network]
DAY = 24 * 3600 * 1000


def extend(folder: Path, network: Network, *entries: Entry) -> int:
    """Put entries into the registry of the folder's first peer; the height after that."""
    with contextlib.closing(ChainStore.open(url_of(Layout(folder).peer("peer-1") / "chain.db"))) as store:
        replica = Replica.open(store)
        replica.apply(network.block(replica, [network.put(*entries)], []).encode())
        (outcome,) = store.outcomes(replica.height)
        assert outcome.code == "valid"
        return replica.height


def view_of(*entries: Entry) -> RegistryView:
    """A registry of the test network with other entries in their places."""
    known = {key_of(entry): entry for entry in (*Network().entries(), *entries)}
    return RegistryView({key: canonical.encode(entry) for key, entry in known.items()})


def error(result: Result) -> dict[str, Any]:
    """The error document of a command."""
    return result.document["error"]


# --- list ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("K-13", "K-14")
def test_all_keys_are_listed(built: Built, run: Run) -> None:
    """Every holder with its device, tier, lifetime and state, from what a peer has stored: nothing needs to run."""
    folder, network = built
    key = network.node_keys["B", "device-b"].id
    height = extend(
        folder,
        network,
        network.node_entry("A", until=network.time + 10 * DAY),
        Revocation(key, "node/B", "superseded", 0),
    )
    result = run("key", "list", "--network", folder, "--json")
    assert result.code == exit_codes.OK
    document = result.document
    assert document["height"] == height
    rows = {row["holder"]: row for row in document["keys"]}
    assert set(rows) == {
        *(f"administrator/admin-{number}" for number in (1, 2, 3)),
        *(f"device/device-{name}" for name in "abc"),
        *(f"node/{name}" for name in "ABC"),
        "center/center-1",
        "registrar/ca",
        "client/c1",
        "client/c2",
    }
    assert rows["node/A"] == {
        "holder": "node/A",
        "key": network.node_keys["A", "device-a"].id,
        "device": "device-a",
        "tier": "claimed",
        "since": 0,
        "last": None,
        "not_before": 0,
        "until": network.time + 10 * DAY,
        "days": 10.0,
        "state": "in force",
    }
    assert rows["node/B"]["state"] == "revoked: superseded"
    assert rows["client/c1"]["state"] == "in force"
    assert rows["client/c1"]["days"] is None
    assert "node/A (key" in result.err
    assert "expires in 10.0 days: hsm-endorser key rotate node/A" in result.err


def test_fewer_days_warn_of_less(built: Built, run: Run) -> None:
    """`--warn-days` says when it is warned; `network status` warns of 30 days, without clients' keys."""
    folder, network = built
    extend(folder, network, network.node_entry("A", until=network.time + 10 * DAY))
    assert run("key", "list", "--network", folder, "--warn-days", 5).err == ""
    status = run("network", "status", folder, "--json")
    assert [row["holder"] for row in status.document["expiring"]] == ["node/A"]
    assert "node/A (key" in status.err


@pytest.mark.requirement("K-12", "K-13", "K-14")
def test_each_state_has_its_words() -> None:
    """A key that is to come, one that has ended, one on a revoked device, one that is below the tier."""
    network = Network()
    identity = network.devices["device-b"].id
    channel = msgspec.structs.replace(view_of().channel, least_tier="probed")
    old, new = network.node_entry("A").keys[0], network.node_entry("C").keys[0]
    node = msgspec.structs.replace(
        network.node_entry("A"),
        keys=(
            msgspec.structs.replace(old, last=3),
            msgspec.structs.replace(new, device="device-a", since=9),
        ),
    )
    view = view_of(node, Revocation(identity, "device/device-b", "key-compromise", 0))
    states = {(row.holder, row.since): row.state for row in key_table.rows(view, height=5, time=GENESIS_TIME)}
    assert states["node/A", 0] == "counted up to height 3"
    assert states["node/A", 9] == "counts from height 9 on"
    assert states["node/B", 0] == "its device was revoked: key-compromise"
    assert states["device/device-b", 0] == "revoked: key-compromise"
    rows = {row.holder: row for row in key_table.rows(view_of(channel), height=5, time=GENESIS_TIME)}
    assert "is claimed, the channel asks for probed" in rows["node/A"].state
    assert "is claimed, the channel asks for probed" in rows["center/center-1"].state


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("key", "rotate", "node/X"), "the registry has no node/X"),
        (("key", "rotate", "client/c1"), "the key of client/c1 is not rotated so"),
        (("key", "rotate", "device/device-a"), "the key of device/device-a is not rotated so"),
        (("key", "rotate", "A", "--device", "device-b"), "device device-b holds no key of node/A"),
        (("key", "rotate", "A", "--administrator", "nobody"), "no key of administrator nobody"),
        (("key", "revoke", "X", "--reason", "superseded"), "no key is meant by 'X'"),
        (("key", "revoke", "A", "--reason", "boredom"), "'boredom' is no reason"),
        (("key", "revoke", "A", "--reason", "superseded", "--suspected", "soon"), "'soon' is no time"),
        (("device", "revoke", "device-x", "--reason", "superseded"), "no key is meant by 'device/device-x'"),
        (("device", "replace", "device-x", "--new", "device-y"), "the registry has no device device-x"),
        (("device", "replace", "device-a", "--new", "../x"), "a device cannot be called '../x'"),
        (("device", "replace", "device-a", "--new", "n", "--environment", "x"), "is not of the form NAME=VALUE"),
        (("device", "replace", "device-a", "--new", "n", "--reason", "boredom"), "'boredom' is no reason"),
    ],
)
def test_what_cannot_be_meant(built: Built, run: Run, words: tuple[str, ...], reason: str) -> None:
    """Nothing is tried, and the reason says what was wrong."""
    result = run(*words, "--network", built[0], "--json")
    assert result.code == exit_codes.USAGE
    assert reason in error(result)["reason"]


def test_several_keys_are_told_apart_by_id(built: Built, run: Run) -> None:
    """A node with two keys is not revoked as a whole by its name: the ids are listed to choose from."""
    folder, network = built
    node = network.node_entry("A")
    other = msgspec.structs.replace(node.keys[0], key=SoftwareKey.generate().public.spki)
    extend(folder, network, msgspec.structs.replace(node, keys=(*node.keys, other)))
    result = run("key", "revoke", "A", "--reason", "superseded", "--network", folder, "--json")
    assert result.code == exit_codes.USAGE
    assert error(result)["reason"].startswith("2 keys are meant by 'A': ")
    key = network.node_keys["A", "device-a"].id
    assert key in error(result)["reason"]
    assert revoking.find(folder, key[:10]).key == key


def test_a_device_that_does_not_run_cannot_rotate(built: Built, run: Run) -> None:
    """Nothing listens, so the command says what to start."""
    result = run("key", "rotate", "A", "--network", built[0], "--json")
    assert result.code == exit_codes.UNREACHABLE


@pytest.mark.requirement("K-12")
def test_an_administrators_new_key_is_taken_whole(tmp_path: Path) -> None:
    """The new file takes the old one's place in one step, and the old key is kept beside it, also after a crash."""
    path, fresh = tmp_path / "admin-1.key", tmp_path / "admin-1.key.new"
    old, new = SoftwareKey.create(path), SoftwareKey.create(fresh)
    (tmp_path / "admin-1.key.retired").write_text("of the time before")
    key_rotation._take(path, fresh)
    assert SoftwareKey.load(path).public == new.public
    assert SoftwareKey.load(tmp_path / "admin-1.key.retired").public == old.public
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1767312000000", 1_767_312_000_000),
        ("2026-01-02T00:00:00Z", 1_767_312_000_000),
        ("2026-01-02T01:00:00+01:00", 1_767_312_000_000),
    ],
)
def test_times_are_read(text: str, milliseconds: int) -> None:
    """As milliseconds or by ISO 8601, with its zone."""
    assert revoking.moment(text) == milliseconds


def test_a_wrong_time_is_refused() -> None:
    """With an example of a right one."""
    with pytest.raises(UsageError, match="is no time"):
        revoking.moment("yesterday")
