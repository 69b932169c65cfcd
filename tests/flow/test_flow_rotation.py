"""Keys are rotated while transactions come in: nothing is lost, and every block verifies from genesis for ever."""

import json
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from cli import exit_codes
from cli.device_control import DeviceControl
from cli.main import main
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.block import Block
from protocol.canonical import TxId
from protocol.endorsement import decode_head
from tests.flow.running_network import Load, RunningNetwork

pytestmark = pytest.mark.slow

OVERLAP = 4


@pytest.fixture(scope="module")
def network(start: Callable[..., RunningNetwork]) -> RunningNetwork:
    """A network of this module's own; all three nodes endorse, so that no other node covers for a fault."""
    return start("--policy", "evidence=AND('A','B','C')")


def command(capsys: pytest.CaptureFixture[str], network: RunningNetwork, *words: str) -> dict:
    """The document of a command that must succeed."""
    capsys.readouterr()
    code = main([*words, "--network", str(network.layout.folder), "--json"])
    out = capsys.readouterr().out
    assert code == exit_codes.OK, out
    return json.loads(out)


def wait_height(network: RunningNetwork, height: int) -> None:
    """Let the load bring the chain to a height."""
    deadline = time.monotonic() + 60
    while True:
        with network.management() as management:
            if management.network().height >= height:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def committed(network: RunningNetwork, peer: str, transactions: list[str]) -> Counter[str]:
    """The outcomes that a peer has stored for these transactions, after waiting for all of them."""
    store = ChainStore.open(url_of(network.layout.peer(peer) / "chain.db"))
    deadline = time.monotonic() + 60
    while True:
        found = store.locate([TxId(each) for each in transactions])
        if len(found) == len(transactions) or time.monotonic() > deadline:
            store.close()
            return Counter(place.code for place in found.values())
        time.sleep(0.2)


@pytest.mark.requirement("K-12")
def test_rotation_under_load_loses_nothing(network: RunningNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    """A node's key, the center's and the CA's are rotated: all that was acknowledged is committed on both peers."""
    load = Load(network, "rotation")
    load.start()
    time.sleep(1)
    (node,) = command(capsys, network, "key", "rotate", "A", "--overlap", str(OVERLAP))["rotated"]
    (center,) = command(capsys, network, "key", "rotate", "center/center-1")["rotated"]
    (ca,) = command(capsys, network, "key", "rotate", "registrar/ca")["rotated"]
    wait_height(network, node["last"] + 3)
    load.stop()
    assert command(capsys, network, "client", "register", "after-rotation")["registered"]

    assert len(load.acknowledged) >= 100
    assert load.refused == []
    for name in network.peers:
        assert committed(network, name, load.acknowledged) == {"valid": len(load.acknowledged)}
    with network.management() as management:
        height = management.network().height
    network.wait_level(height)
    digests = set()
    for name in network.peers:
        with network.peer(name) as peer:
            assert peer.status().halted is None
            digests.add(peer.digest())
    assert len(digests) == 1
    signers = _signers(network, height)
    assert _headers(signers, center["height"]) == {center["old"]}
    assert {_headers(signers, h).pop() for h in range(center["height"] + 1, height + 1)} == {center["new"]}
    assert _heads(signers, 1, node["since"] - 1) == {node["old"]}
    # An old key's head may still land in the overlap; after `last` there is none, and the new key signs from `since`.
    assert node["new"] in _heads(signers, node["since"], node["last"]) <= {node["old"], node["new"]}
    assert _heads(signers, node["last"] + 1, height) == {node["new"]}
    assert ca["old"] != ca["new"]


def test_the_old_key_signs_nothing_more(network: RunningNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of keys says so of the old one, and that the new one is in force until it expires."""
    rows = command(capsys, network, "key", "list")["keys"]
    old, new = [row for row in rows if row["holder"] == "node/A"]
    assert old["state"] == f"counted up to height {old['last']}"
    assert (new["state"], new["last"]) == ("in force", None)
    assert 729 < new["days"] < 731


@pytest.mark.requirement("K-12", "E-16")
def test_the_chain_verifies_from_genesis(network: RunningNetwork) -> None:
    """A fresh replica follows every rotation of center, node and CA with nothing but block 0."""
    with network.peer("peer-1") as peer:
        height = peer.status().height
    kept = ChainStore.open(url_of(network.layout.peer("peer-1") / "chain.db"))
    fresh = Replica.create(
        ChainStore.create(url_of(network.layout.folder / "fresh.db")), network.layout.genesis.read_bytes()
    )
    for number in range(1, height + 1):
        fresh.apply(kept.block(number) or b"")
    assert fresh.height == height
    assert fresh.store.digest()[1] == kept.digest()[1]
    for store in (kept, fresh.store):
        store.close()


@pytest.mark.requirement("K-12", "K-10")
def test_a_device_killed_in_a_rotation_goes_on_with_the_same_key(
    network: RunningNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL after the announcement and before its transaction: the next order announces the key that is there."""
    with network.management() as management:
        info = management.network()
    order = {"holder": "node/B", "since": info.height + 5, "overlap": 1, "not_before": info.time, "until": 2**52}
    with DeviceControl(network.layout.device("device-b") / "device.toml") as control:
        made = json.loads(control.ask("/v1/rotations", order))["made"]
    network.kill("device-b")
    network.supervisor.wait_ready(60, ["device-b"])
    (rotated,) = command(capsys, network, "key", "rotate", "B")["rotated"]
    assert rotated["new"] == made["id"]


class Signers(msgspec.Struct):
    """Who signed a block: the header, and the heads for node A."""

    header: set[str]
    heads: set[str]


def _signers(network: RunningNetwork, height: int) -> dict[int, Signers]:
    store = ChainStore.open(url_of(network.layout.peer("peer-1") / "chain.db"))
    found = {}
    for number in range(height + 1):
        block = Block.decode(store.block(number) or b"")
        heads = [decode_head(branch.head) for tree in block.trees for branch in tree.branches if branch.node == "A"]
        found[number] = Signers({each.keyid for each in block.envelope.signatures}, {head.key for head in heads})
    store.close()
    return found


def _headers(signers: dict[int, Signers], height: int) -> set[str]:
    return signers[height].header


def _heads(signers: dict[int, Signers], first: int, last: int) -> set[str]:
    return {key for height in range(first, last + 1) for key in signers[height].heads}
