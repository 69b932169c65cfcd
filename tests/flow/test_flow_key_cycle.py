"""The whole life of keys on SoftHSM: ceremony, load, rotation, revocation, lost and replaced tokens, and the trace."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cli import exit_codes, registry, role_holder
from cli.keys import SoftwareKey
from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.block import Block
from protocol.canonical import TxId
from protocol.ceremony import Generated
from protocol.endorsement import decode_head
from protocol.keys import key_id
from protocol.transcript import Transcript
from softhsm.tokens import create_pin_file, create_token
from tests.flow.founding_people import FirstToken, Founders
from tests.flow.running_network import Load, RunningNetwork

pytestmark = pytest.mark.slow
Command = Callable[..., Any]
DEVICES = ("device-a", "device-b", "device-c")
RSA = "rsa-pkcs1-sha256"


@pytest.fixture(scope="module")
def founders(tmp_path_factory: pytest.TempPathFactory) -> Founders:
    """Two of three role holders have founded a network of three nodes, each on a token of its own; two endorse."""
    place = tmp_path_factory.mktemp("cycle")
    founders = Founders(place, {name: _token(place / "tokens" / name) for name in DEVICES})
    founders.found()
    return founders


def _token(folder: Path) -> FirstToken:
    folder.mkdir(parents=True)
    for name in ("pin", "so-pin"):
        create_pin_file(folder / name)
    token = create_token(folder, folder.name, folder / "pin", folder / "so-pin")
    return FirstToken(token.uri, token.environment)


@pytest.fixture(scope="module")
def folder(founders: Founders) -> Path:
    """The folder of the network whose life is told here."""
    return founders.network


def up(folder: Path) -> Supervisor:
    """All services of the folder as its files name them now, ready."""
    supervisor = Supervisor(folder, services(folder, read_network(folder)), print)
    supervisor.__enter__()
    supervisor.wait_ready(60)
    return supervisor


@pytest.fixture(scope="module")
def life(folder: Path) -> Iterator[dict[str, Any]]:
    """What one part of the story leaves to the next: the running network, and the keys by name."""
    supervisor = up(folder)
    story: dict[str, Any] = {"network": RunningNetwork(Layout(folder), supervisor), "acknowledged": []}
    assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == exit_codes.OK
    yield story
    story["network"].supervisor.close()


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The document of a command on the network, with the exit code that is expected."""

    def run(*words: str, code: int = exit_codes.OK) -> Any:
        capsys.readouterr()
        got = main([*words, "--network", str(folder), "--json"])
        out = capsys.readouterr().out
        assert got == code, out
        return json.loads(out)

    return run


def load(life: dict[str, Any], label: str, during: Callable[[], Any]) -> Any:
    """Do something while transactions come in; all that is acknowledged must be committed."""
    network = life["network"]
    loading = Load(network, label, batch=20, pause=0.1)
    loading.start()
    try:
        done = during()
    finally:
        loading.stop()
    assert loading.refused == []
    ends = [network.ended(transaction) for transaction in loading.acknowledged]
    assert {(end.status, end.code) for end in ends} == {("committed", "valid")}
    life["acknowledged"] += loading.acknowledged
    life["height"] = max(end.height or 0 for end in ends)
    return done


@pytest.mark.requirement("K-11")
def test_a_ceremony_has_founded_it(life: dict[str, Any], run: Command, founders: Founders) -> None:
    """Block 0 names the digest of the transcript, whose keys are those in force; the folder has no private key."""
    digest = _verified(founders)
    with life["network"].management() as management:
        assert management.network().ceremony == digest
    enrolled = {
        key["key"]: each.name
        for each in registry.founding(founders.network).devices
        for key in run("key", "list")["keys"]
        if key["device"] == each.name
    }
    transcript = Transcript.read(founders.transcript.read_bytes())
    made = [step.act for step in transcript.steps if isinstance(step.act, Generated)]
    assert {key_id(key.key): each.device for each in made for key in each.keys if "ca/" not in key.label} == enrolled
    assert {path.name for path in founders.network.rglob("*.key")} == {"alice.key"}


@pytest.mark.requirement("K-12")
def test_keys_are_rotated_under_load(life: dict[str, Any], run: Command, founders: Founders) -> None:
    """A node's, the center's, the CA's and an administrator's; the administrator signs with the new key at once."""

    def rotate() -> list[dict[str, Any]]:
        holders = ("node/B", "center/center-1", "registrar/ca", "administrator/anna")
        return [run("key", "rotate", holder, "--overlap", "2")["rotated"][0] for holder in holders]

    rotated = load(life, "rotate", rotate)
    assert rotated[-1]["signers"] == ["anna", "bert"]
    again = run("key", "rotate", "administrator/bert")["rotated"][0]
    assert again["signers"] == ["anna", "bert"]
    states = {row["key"]: row["state"] for row in run("key", "list")["keys"]}
    assert [states[each["new"]] for each in rotated[1:]] == ["in force"] * 3
    for name, each in (("anna", rotated[-1]), ("bert", again)):
        assert SoftwareKey.load(founders.key(name)).public.id == each["new"], "in the old one's place"
        assert SoftwareKey.load(founders.key(name).with_suffix(".key.retired")).public.id == each["old"]
    life["rotated"] = rotated[0]


@pytest.mark.requirement("K-12")
def test_an_interrupted_rotation_is_taken_up(life: dict[str, Any], run: Command, founders: Founders) -> None:
    """On the chain, and not yet written down where a role holder keeps the key: the same command does the rest."""
    path = founders.key("bert")
    life["network"].wait_level(registry.head(founders.network)[0])
    held = role_holder.held_elsewhere(founders.network, "bert")
    assert held is not None
    path.rename(path.with_suffix(".key.new"))
    path.with_suffix(".key.retired").rename(path)
    old = SoftwareKey.load(path).public
    role_holder.write_held(founders.network, "bert", msgspec.structs.replace(held, public_key=old.spki.hex()))
    again = run("key", "rotate", "administrator/bert", code=exit_codes.USAGE)
    assert again["error"]["reason"] == "administrator/bert was rotated before; its new key is in place now"
    assert role_holder.held_elsewhere(founders.network, "bert") == held
    assert SoftwareKey.load(path).public.spki.hex() == held.public_key


@pytest.mark.requirement("K-14")
def test_a_key_is_revoked_under_load(life: dict[str, Any], run: Command) -> None:
    """Node C's key is refused from the next block on, for ever; two nodes carry the load until C has a new key."""
    words = ("key", "revoke", "C", "--reason", "key-compromise", "--administrator")
    nobody = run(*words, "carla", code=exit_codes.USAGE)
    assert nobody["error"]["reason"] == "the folder has no key of administrator carla", "she was not at the ceremony"
    revoked = load(life, "revoke", lambda: run(*words, "bert", "--administrator", "anna"))
    assert revoked["signers"] == ["bert", "anna"]
    assert revoked["holder"] == "node/C"
    life["revoked"] = revoked
    again = run("key", "revoke", revoked["key"], "--reason", "superseded", code=exit_codes.REFUSED)
    assert again["error"]["code"] == "final"
    (row,) = [row for row in run("key", "list")["keys"] if row["key"] == revoked["key"]]
    assert row["state"] == "revoked: key-compromise"
    (fresh,) = load(life, "after", lambda: run("key", "rotate", "C", "--unannounced"))["rotated"]
    assert fresh["old"] == revoked["key"]
    states = {row["key"]: row["state"] for row in run("key", "list")["keys"]}
    assert states[fresh["new"]] == "in force"


@pytest.mark.requirement("K-14")
def test_a_lost_token_is_replaced(life: dict[str, Any], run: Command, founders: Founders) -> None:
    """Device B's token is gone: the command says what its keys had signed last; the new device carries on."""
    network, folder = life["network"], founders.network
    before = {row["key"] for row in run("key", "list")["keys"] if row["device"] == "device-b"}
    network.supervisor.stop("device-b")
    (founders.network.parent / "tokens" / "device-b").rename(folder / "lost")
    words = ("device", "replace", "device-b", "--new", "device-d", "--reason", "key-compromise")
    done = run(*words, "--scheme", RSA, "--rsa-bits", "2048")
    assert (done["nodes"], done["centers"], done["registrars"]) == (["B"], [], [])
    last = {each["key"]: each["height"] for each in done["signed_last"]}
    assert last.keys() == before
    proven = _last_signatures(folder, before)
    assert {key: height for key, height in last.items() if height is not None} == proven
    assert done["sequence"] > 0

    again = run("device", "replace", "device-b", "--new", "device-d")
    assert (again["height"], again["keys"]) == (None, done["keys"])

    network.supervisor.close()
    assert read_network(folder).devices == ("device-a", "device-c", "device-d")
    life["network"] = RunningNetwork(Layout(folder), up(folder))
    load(life, "replaced", lambda: None)
    life["replaced"] = done
    with life["network"].management() as management:
        told = {each["device"]: each for each in management.devices()}
    assert told["device-d"]["ready"]
    assert told["device-d"]["status"]["nodes"] == ["B"]


@pytest.mark.requirement("K-14", "E-18")
def test_a_key_keeps_its_scheme_without_an_announcement(life: dict[str, Any], run: Command, folder: Path) -> None:
    """The new token was told to make RSA keys of 2048 bits: so it does when one was revoked and another is put."""
    life["network"].wait_level(registry.head(folder)[0])
    for key in life["replaced"]["keys"].values():
        assert key in [row["key"] for row in run("key", "list")["keys"] if row["device"] == "device-d"]
    revoked = run("key", "revoke", life["replaced"]["keys"]["node/B"], "--reason", "superseded")
    life["network"].wait_level(revoked["since"] - 1)
    (fresh,) = run("key", "rotate", "B", "--unannounced")["rotated"]
    life["network"].wait_level(fresh["last"])
    device, node = registry.in_force(folder).device("device-d"), registry.in_force(folder).node("B")
    assert device is not None
    assert node is not None
    made = [device.identity, *(each.key for each in node.keys if each.device == "device-d")]
    assert [key_id(each) for each in made[1:]] == [fresh["old"], fresh["new"]]
    assert [_size(each) for each in made] == [2048, 2048, 2048]
    load(life, "rsa", lambda: None)


@pytest.mark.requirement("K-14", "E-1")
def test_the_center_and_the_ca_move_to_another_token(life: dict[str, Any], run: Command, folder: Path) -> None:
    """Device A is replaced while it still runs: its center signs the block that names its successor, and no further."""
    done = run("device", "replace", "device-a", "--new", "device-e", "--reason", "superseded")
    assert (done["nodes"], done["centers"], done["registrars"]) == (["A"], ["center-1"], ["ca"])
    life["network"].supervisor.close()
    life["network"] = RunningNetwork(Layout(folder), up(folder))
    load(life, "moved", lambda: None)
    assert run("client", "register", "bob")["registered"]
    life["moved"] = done


@pytest.mark.requirement("K-14")
def test_the_last_center_cannot_be_replaced_when_it_is_gone(life: dict[str, Any], run: Command, folder: Path) -> None:
    """Without its key no block names a successor: the command says so before it makes anything."""
    life["network"].supervisor.stop("device-e")
    refused = run("device", "replace", "device-e", "--new", "device-f", code=exit_codes.FAILED)
    assert refused["error"]["code"] == "center-lost"
    assert "center-1" in refused["error"]["reason"]
    assert not (folder / "devices" / "device-f").exists()


@pytest.mark.requirement("K-14", "K-12", "E-16")
def test_the_chain_tells_all_of_it(life: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """A fresh replica verifies every block from genesis on; no refused key signed in a block after its end."""
    life["network"].wait_level(life["height"])
    kept = ChainStore.open(url_of(folder / "peers" / "peer-1" / "chain.db"))
    fresh = Replica.create(ChainStore.create(url_of(tmp_path / "fresh.db")), (folder / "genesis.json").read_bytes())
    ended = {life["revoked"]["key"]: life["revoked"]["since"]}
    for gone in (life["replaced"], life["moved"]):
        ended |= {each["key"]: gone["height"] + 1 for each in gone["signed_last"]}
    for number in range(1, kept.height() + 1):
        body = kept.block(number) or b""
        fresh.apply(body)
        for key in _keys_in(Block.decode(body)) & ended.keys():
            assert number < ended[key]
    wanted = {TxId(each) for each in life["acknowledged"]}
    assert len(wanted) > 100
    assert fresh.store.locate(sorted(wanted)).keys() == wanted
    assert {row.holder for row in fresh.registry.revocations} == {
        "node/B",
        "node/C",
        "device/device-b",
        "device/device-a",
        "center/center-1",
        "registrar/ca",
    }
    for store in (kept, fresh.store):
        store.close()


@pytest.mark.requirement("K-14")
def test_each_key_that_counts_no_more_is_traced(life: dict[str, Any], run: Command, tmp_path: Path) -> None:
    """All that a rotated, a revoked and the replaced keys ever signed, up to their end, and what of it is in doubt."""
    page = tmp_path / "trace.html"
    ends = {life["rotated"]["old"]: life["rotated"]["last"] + 1, life["revoked"]["key"]: life["revoked"]["since"]}
    for gone in (life["replaced"], life["moved"]):
        for last in gone["signed_last"]:
            (found,) = run("key", "trace", last["key"], "--html", str(page))["traces"]
            heights = [each["height"] for each in found["proven"]]
            # A device that still runs signs on until it is revoked: after the list was made, and before its end.
            if gone is life["replaced"]:
                assert max(heights, default=None) == last["height"]
            assert max(heights, default=0) <= gone["height"]
            assert last["key"] in page.read_text()
            ends[last["key"]] = gone["height"] + 1
    for key, end in ends.items():
        (found,) = run("key", "trace", key, "--suspected", "0")["traces"]
        assert all(each["height"] < end for each in found["proven"])
        assert found["in_doubt"] == len(found["proven"])
    votes = run("key", "trace", life["revoked"]["key"], "--suspected", "0")["traces"][0]
    assert set(votes["touched"]) <= set(life["acknowledged"])
    assert votes["touched"]


@pytest.mark.requirement("K-11", "K-12", "K-14")
def test_both_ends_are_verified_offline(life: dict[str, Any], founders: Founders) -> None:
    """With every service down: the ceremony against block 0, and each peer's chain from block 0 on."""
    life["network"].supervisor.close()
    assert _verified(founders)
    assert main(["chain", "verify", str(founders.network), "--json"]) == exit_codes.OK


def _verified(founders: Founders) -> str:
    """The digest of the ceremony that `ceremony verify` finds in transcript and block 0, and the registry names."""
    words = ["ceremony", "verify", str(founders.transcript), "--genesis", str(founders.network / "genesis.json")]
    assert main([*words, "--json"]) == exit_codes.OK
    digest = Transcript.read(founders.transcript.read_bytes()).steps[-2].previous
    assert registry.founding(founders.network).channel.ceremony == digest
    return digest


def _size(spki: bytes) -> int:
    """The bits of an RSA key."""
    key = load_der_public_key(spki)
    assert isinstance(key, RSAPublicKey)
    return key.key_size


def _keys_in(block: Block) -> set[str]:
    """The keys of the header and of the heads in a block."""
    heads = {decode_head(branch.head).key for tree in block.trees for branch in tree.branches}
    return heads | {each.keyid for each in block.envelope.signatures}


def _last_signatures(folder: Path, keys: set[str]) -> dict[str, int]:
    """The last block with a head or header signature of each key, by looking at all of them."""
    store = ChainStore.open(url_of(folder / "peers" / "peer-1" / "chain.db"))
    last: dict[str, int] = {}
    for number in range(store.height() + 1):
        last |= dict.fromkeys(_keys_in(Block.decode(store.block(number) or b"")) & keys, number)
    store.close()
    return last
