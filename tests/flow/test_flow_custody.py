"""A network that demands probed keys, on real tokens: what is below the tier signs nothing and counts nowhere (K-5)."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli import exit_codes, registry
from cli.answers import TransactionStatus
from cli.api import Device
from cli.main import main
from cli.output import Output
from hsm_endorser.config import load
from hsm_endorser.custody.cryptoki import Attribute
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe import Probe
from hsm_endorser.token import TokenConfig
from ledger.errors import RegistryError
from protocol.keys import PublicKey
from protocol.messages import Answer
from protocol.registry import EndorsementPolicy, Entry, NodeKey
from tests import software_keys
from tests.flow.conftest import TWO_OF_THREE
from tests.flow.running_network import RunningNetwork
from tests.hsm_endorser.custody_planting import Planter
from transport.problem import ProblemError

pytestmark = pytest.mark.slow  # a network of its own whose every token is audited, and one refusal that takes its time

PLANTED = "looks like node/C"


@pytest.fixture(scope="module")
def network(start: Callable[..., RunningNetwork]) -> RunningNetwork:
    """Three nodes, a device each; every token was audited when the network was made."""
    return start("--least-tier", "probed")


def custody(*words: str | Path) -> int:
    """The exit code of `hsm-endorser custody …`."""
    return main(["custody", *map(str, words)])


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The document of a command that succeeds."""
    capsys.readouterr()
    assert custody(*words, "--json") == exit_codes.OK
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def put(network: RunningNetwork, *entries: Entry) -> None:
    """A registry change by the administrators of the folder."""
    wanted = {"entries": [registry.builtins(entry) for entry in entries]}
    registry.change(Output(as_json=True), network.layout.folder, "put", wanted)


def submit(network: RunningNetwork, subject: str, seconds: float = 60) -> TransactionStatus:
    """The end of one transaction of the client."""
    wish = network.evidence(subject)
    with network.management() as management:
        management.submit(wish.raw)
    return network.ended(wish.id, seconds)


def asked(network: RunningNetwork, device: str, node: str, subject: str) -> Answer:
    """What a device says when it is asked directly."""
    with Device(network.layout.socket(device)) as door:
        return door.endorse(network.evidence(subject).raw, (node,))


def audit(network: RunningNetwork, device: str, out: Path, *options: str) -> int:
    """The exit code of an audit of a running device, its statement in `out`."""
    return custody("audit", "--config", network.layout.device(device) / "device.toml", "-o", out, *options)


@pytest.mark.requirement("K-5", "K-6")
def test_every_key_of_the_network_is_probed_and_called_software(
    network: RunningNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    """The genesis block holds a statement of each device, and transactions are endorsed."""
    shown = told(capsys, "show", "--network", network.layout.folder)
    assert {row["tier"] for row in shown["keys"]} == {"probed"}
    assert {row["software"] for row in shown["keys"]} == {True}
    assert (shown["least_tier"], len(shown["keys"])) == ("probed", 4)  # three nodes and the center
    assert submit(network, "first").code == "valid"


@pytest.mark.requirement("K-5")
def test_a_key_without_a_statement_is_not_enrolled(network: RunningNetwork) -> None:
    """One more key for node A, of which no statement speaks, is refused."""
    entry = registry.in_force(network.layout.folder).node("A")
    assert entry is not None
    fresh = NodeKey(software_keys.ecdsa("never audited").spki, "device-a", until=entry.keys[0].until)
    with pytest.raises(ProblemError) as refused:
        put(network, msgspec.structs.replace(entry, keys=(*entry.keys, fresh)))
    assert refused.value.problem.code == "tier-too-low"


@pytest.mark.requirement("K-5")
def test_a_policy_that_demands_attested_keys_is_not_met(network: RunningNetwork) -> None:
    """Software tokens are attested by nobody: nothing is endorsed under it, and the refusal says why."""
    put(network, EndorsementPolicy("evidence.record", TWO_OF_THREE, least_tier="attested"))
    status = submit(network, "attested")  # it is tried for ten seconds
    put(network, EndorsementPolicy("evidence.record", TWO_OF_THREE))
    assert (status.status, status.height) == ("failed", None)
    assert status.problem is not None
    said = {device["device"]: device["detail"] for device in status.problem.devices}
    why = "its key is below tier attested, which the policy asks for"
    assert said == dict.fromkeys(("device-a", "device-b", "device-c"), why)
    assert submit(network, "probed").code == "valid"


@pytest.mark.requirement("K-5", "K-6")
def test_a_weakened_key_signs_nothing_more_until_the_token_is_clean_again(
    network: RunningNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second public key is planted under its id: the audit finds it, and the statement ends what the device signs."""
    folder, worse, better = network.layout.folder, tmp_path / "worse.json", tmp_path / "better.json"
    config = load(network.layout.device("device-c") / "device.toml").token_config
    asyncio.run(plant(config, network))
    assert audit(network, "device-c", worse) == exit_codes.REFUSED
    assert "FAIL key.pair (high): node/C" in capsys.readouterr().out
    assert told(capsys, "verify", worse, "--genesis", network.layout.genesis)["verdict"] == "fail"
    assert asked(network, "device-c", "C", "not registered yet").votes
    assert custody("register", worse, "--network", folder) == exit_codes.OK
    assert "node/C: probed → claimed" in capsys.readouterr().out
    network.wait_level(height(network))
    failure = asked(network, "device-c", "C", "registered").failure
    assert failure is not None
    assert (failure.code, "claimed" in failure.detail) == ("tier-too-low", True)
    assert submit(network, "two of three go on").code == "valid"
    peers = registry.in_force(folder)  # what peers verify votes with
    (weak,) = peers.node("C").keys  # type: ignore[union-attr]
    with pytest.raises(RegistryError, match="claimed"):
        peers.node_key("C", PublicKey.load(weak.key).id, device="device-c", height=height(network), time=0)

    asyncio.run(clean(config))
    assert audit(network, "device-c", better) == exit_codes.OK
    assert custody("register", better, "--network", folder) == exit_codes.OK
    network.wait_level(height(network))
    assert asked(network, "device-c", "C", "clean again").votes
    capsys.readouterr()
    assert custody("register", worse, "--network", folder) == exit_codes.USAGE
    assert "this one is older" in capsys.readouterr().err


@pytest.mark.requirement("K-6")
def test_a_statement_of_another_device_is_not_taken(
    network: RunningNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The registered identity key of the device that it names must have signed it, and it is verified offline."""
    out = tmp_path / "b.json"
    assert audit(network, "device-b", out) == exit_codes.OK
    identity = registry.in_force(network.layout.folder).device("device-b")
    assert identity is not None
    document = told(capsys, "verify", out, "--genesis", network.layout.genesis)
    assert (document["key"], document["verdict"]) == (PublicKey.load(identity.identity).id, "pass")
    assert document["software_token"].startswith("a software token: it does not meet FIPS 140")
    out.write_bytes(out.read_bytes().replace(document["key"].encode(), b"0" * 64))
    assert custody("register", out, "--network", network.layout.folder) == exit_codes.VERIFICATION_FAILED


@pytest.mark.requirement("K-6")
def test_a_device_that_stands_still_is_audited_by_the_command(
    network: RunningNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the device's own guard, by the same identity key; the device starts again afterwards."""
    out = tmp_path / "still.json"
    network.supervisor.stop("device-b")
    assert audit(network, "device-b", out, "--read-only") == exit_codes.REFUSED
    document = told(capsys, "verify", out, "--network", network.layout.folder)
    assert (document["verdict"], document["statement"]["predicate"]["device"]) == ("not-tested", "device-b")
    network.supervisor.start("device-b")
    network.supervisor.wait_ready(60, ["device-b"])
    assert asked(network, "device-b", "B", "after the audit").votes


@pytest.mark.requirement("K-5")
def test_a_network_whose_tokens_do_not_reach_its_tier_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody attests a software token: no folder is left, and the refusal names the key and its tier."""
    words = ["network", "init", str(tmp_path / "net"), "--node", "A", "--peers", "1", "--least-tier", "attested"]
    assert main(words) == exit_codes.FAILED
    error = capsys.readouterr().err
    assert "tier-too-low: the network was not made: key " in error
    assert "of device-a is probed where attested is demanded" in error
    assert list(tmp_path.iterdir()) == []


def height(network: RunningNetwork) -> int:
    """The height of the chain now."""
    with network.management() as management:
        return management.network().height


async def plant(config: TokenConfig, network: RunningNetwork) -> None:
    """A published public key under the id of node C's key, as anybody who can log in might make one."""
    statement = registry.in_force(network.layout.folder).statement("device-c")
    assert statement is not None
    (key,) = [key for key in statement.predicate.keys if key.label == "node/C"]
    async with Probe.open(config) as probe:
        await probe.start()
        await probe.login()
        await Planter(probe).public(PLANTED, bytes.fromhex(key.id))


async def clean(config: TokenConfig) -> None:
    """Delete what was planted."""
    async with Probe.open(config) as probe:
        await probe.start()
        await probe.login()
        (planted,) = await find(probe, {Attribute.LABEL: PLANTED.encode()})
        await Planter(probe).destroy(planted)
