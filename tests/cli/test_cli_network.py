"""The commands against a running network of this module's own: real tokens, every service a process."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import keys, network
from cli.api import Management, Peer
from cli.keys import SoftwareKey
from cli.main import main
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from tests.chain_builder import Network
from tests.cli.conftest import Result

Run = Callable[..., Result]
DIGEST = "ab" * 32
ADVANCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network folder as `network init` makes it, with all policies at two of three."""
    path = tmp_path_factory.mktemp("live") / "net"
    assert main(["network", "init", str(path), "--policy", "assets.issue=OutOf(2,'A','B','C')", "--json"]) == 0
    return path


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Path]:
    """The network, running, with one client `alice`."""
    with Supervisor(folder, network.services(folder, read_network(folder)), print) as supervisor:
        supervisor.wait_ready(60)
        assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == 0
        yield folder


def record(subject: str) -> dict[str, Any]:
    """A wish for an evidence record."""
    return {
        "contract": "evidence",
        "operation": "record",
        "arguments": {"subject": subject, "digest": DIGEST, "attributes": {}},
    }


def submit(run: Run, folder: Path, subject: str, *more: object, client: str = "alice") -> Result:
    """Submit one evidence record."""
    given = [f"--argument=subject={subject}", f"--argument=digest={DIGEST}"]
    fixed = ["submit", "--network", folder, "--client", client, "--contract", "evidence", "--operation", "record"]
    return run(*fixed, *given, *more, "--json")


def wait_peers(folder: Path, height: int) -> None:
    """Wait until both peers have applied `height`."""
    deadline = time.monotonic() + ADVANCE_SECONDS
    for name in read_network(folder).peers:
        with Peer(Layout(folder).socket(name)) as peer:
            while peer.status().height < height:
                assert time.monotonic() < deadline, f"{name} does not reach height {height}"
                time.sleep(0.05)


# ---- the folder


def test_secrets_are_for_their_user_alone(folder: Path) -> None:
    """PINs and private keys have mode 0600; folders that hold them 0700."""
    secrets = [*folder.glob("devices/*/pin"), *folder.glob("devices/*/so-pin"), *folder.glob("administrators/*.key")]
    assert len(secrets) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in secrets} == {0o700}


def test_no_ceremony_is_said(run: Run, tmp_path: Path) -> None:
    """A network that one person made says so when it is made, and in its genesis block."""
    result = run("network", "init", tmp_path / "other", "--node", "X", "--peers", "1")
    assert result.code == 0
    assert "No ceremony: one person made this network" in result.out
    genesis = json.loads((tmp_path / "other" / "genesis.json").read_bytes())
    assert genesis["header"]["payloadType"].endswith("header.v1+json")
    assert read_network(tmp_path / "other").ceremony == "none"


def test_a_folder_that_exists_is_never_overwritten(run: Run, folder: Path) -> None:
    """`network init` refuses a folder that is there, and changes nothing in it."""
    before = (folder / "genesis.json").read_bytes()
    result = run("network", "init", folder, "--json")
    assert result.code == 2
    assert result.document["error"]["reason"].endswith("exists already")
    assert (folder / "genesis.json").read_bytes() == before


def test_a_policy_that_names_no_node_makes_no_network(run: Run, tmp_path: Path) -> None:
    """A set of entries that does not hold together leaves nothing behind, not even the scratch folder."""
    result = run("network", "init", tmp_path / "net", "--policy", "assets=AND('A','Q')", "--json")
    assert result.code == 2
    assert "unknown-node" in result.document["error"]["reason"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "more", "reason"),
    [
        ("net", ("--node", "A/../../../../evil"), "a node cannot be called"),
        ("net", ("--node", ""), "a node cannot be called"),
        ("net", ("--node", "N" * 60), "its device cannot be called"),
        ("net", ("--name", "../net"), "the network cannot be called"),
        ("my net", (), "the network cannot be called 'my net'"),
        ("net#1", ("--name", "net"), "SoftHSM cannot keep tokens in"),
    ],
)
def test_a_name_that_cannot_be_is_refused_at_once(
    run: Run, tmp_path: Path, folder: str, more: tuple[str, ...], reason: str
) -> None:
    """Names that no registry, no folder or no token store can take are refused before anything is made."""
    result = run("network", "init", tmp_path / folder, *more, "--json")
    assert result.code == 2
    assert result.document["error"]["reason"].startswith(reason)
    assert result.document["error"]["advice"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_too_deep_for_sockets_is_said_before_anything_starts(
    run: Run, built: tuple[Path, Network], tmp_path: Path
) -> None:
    """A Unix socket has 107 bytes for its path: `up` names the folder's length, in one line."""
    deep = tmp_path / ("d" * 110)
    built[0].rename(deep)
    result = run("network", "up", deep, "--json")
    assert result.code == 2
    assert "too long for a Unix socket; use a folder with a shorter name" in result.document["error"]["reason"]
    assert not (deep / "logs").exists()


# ---- clients


@pytest.mark.requirement("E-1")
def test_a_registered_client_has_key_and_certificate(live: Path) -> None:
    """Registering leaves a key (0600) and the CA's certificate, and the client is on the chain's whitelist."""
    layout = Layout(live)
    assert stat.S_IMODE(layout.client_key("alice").stat().st_mode) == 0o600
    assert layout.client_certificate("alice").read_text().startswith("-----BEGIN CERTIFICATE-----")
    with Management(layout.socket("management")) as management:
        wait_peers(live, management.network().height)
    with Peer(layout.socket("peer-1")) as peer:
        entry = json.loads(peer.state("registry/client/alice"))
    assert entry["name"] == "alice"


def test_a_name_is_registered_once(run: Run, live: Path) -> None:
    """Registering a name again is refused and keeps the key."""
    before = Layout(live).client_key("alice").read_bytes()
    result = run("client", "register", "alice", "--network", live, "--json")
    assert result.code == 2
    assert "has a certificate already" in result.document["error"]["reason"]
    assert Layout(live).client_key("alice").read_bytes() == before


def test_a_wrong_secret_is_refused(run: Run, live: Path, tmp_path: Path) -> None:
    """A secret that the operator did not give is refused with a stable reason."""
    secret = tmp_path / "secret"
    secret.write_text("not the secret\n")
    result = run("client", "register", "mallory", "--network", live, "--secret-file", secret, "--json")
    assert result.code == 1
    assert result.document["error"]["code"] == "bad-secret"
    assert not Layout(live).client_certificate("mallory").exists()


@pytest.mark.requirement("E-1", "S-2")
def test_a_client_can_wait_for_the_operators_approval(run: Run, live: Path) -> None:
    """Without a secret a client waits; after the operator's approval the same command registers the same key."""
    first = run("client", "register", "carol", "--ask", "--network", live, "--json")
    assert (first.code, first.document["registered"]) == (0, False)
    key = Layout(live).client_key("carol").read_bytes()
    waiting = run("client", "enrolments", "--network", live, "--json").document["enrolments"]
    assert [each["name"] for each in waiting] == ["carol"]
    assert run("client", "approve", "carol", "--network", live, "--json").code == 0
    second = run("client", "register", "carol", "--ask", "--network", live, "--json")
    assert (second.code, second.document["registered"]) == (0, True)
    assert Layout(live).client_key("carol").read_bytes() == key


def test_a_refused_client_is_not_registered(run: Run, live: Path) -> None:
    """After the operator's refusal the client gets no certificate, and the reason."""
    run("client", "register", "dave", "--ask", "--network", live, "--json")
    assert run("client", "refuse", "dave", "--network", live, "--json").code == 0
    result = run("client", "register", "dave", "--ask", "--network", live, "--json")
    assert result.code == 1
    assert result.document["error"]["code"] == "enrolment-refused"


@pytest.mark.requirement("E-2", "S-2")
def test_a_removed_client_is_refused(run: Run, live: Path) -> None:
    """Administrators take a client off the whitelist; from then on its transactions are refused."""
    assert run("client", "register", "erin", "--network", live, "--json").code == 0
    assert submit(run, live, "erin-1", client="erin").code == 0
    removed = run("client", "remove", "erin", "--network", live, "--json")
    assert (removed.code, removed.document["signers"]) == (0, ["admin-1", "admin-2"])
    result = submit(run, live, "erin-2", client="erin")
    assert result.code == 1
    assert result.document["error"]["code"] == "unknown-client"


# ---- transactions


def test_one_transaction_is_committed_and_proven(run: Run, live: Path, tmp_path: Path) -> None:
    """A record is committed; its receipt is exported from a peer and verifies offline."""
    result = submit(run, live, "pump-1", '--argument=attributes={"site":"north"}')
    assert (result.code, result.document["status"], result.document["code"]) == (0, "committed", "valid")
    wait_peers(live, result.document["height"])
    file = tmp_path / "receipt.json"
    identity = result.document["transaction"]
    assert run("receipt", "export", identity, "--network", live, "-o", file, "--json").code == 0
    report = run("receipt", "verify", file, "--genesis", Layout(live).genesis, "--json")
    assert (report.code, report.document["transaction"], report.document["code"]) == (0, identity, "valid")


def test_a_receipt_of_an_unknown_transaction_is_refused(run: Run, live: Path, tmp_path: Path) -> None:
    """There is no receipt of what is not on the chain."""
    result = run("receipt", "export", "0" * 64, "--network", live, "-o", tmp_path / "none.json", "--json")
    assert result.code == 1
    assert not (tmp_path / "none.json").exists()


def test_a_refusal_has_its_reason(run: Run, live: Path) -> None:
    """What the devices reject comes back with the code that they agree on, and every device that was tried."""
    assert submit(run, live, "pump-2").code == 0
    result = submit(run, live, "pump-2")
    assert result.code == 1
    error = result.document["error"]
    assert (error["agreed"], len(error["devices"]) >= 2) == ("already-recorded", True)
    assert error["advice"] == "the subject has its record; records are put once"


def test_a_file_is_submitted_in_batches(run: Run, live: Path, tmp_path: Path) -> None:
    """All lines of a file are handed in; committed and refused ones are counted, with reasons."""
    wishes = [record(f"batch-{number}") for number in range(600)]
    wishes[7] = {"contract": "assets", "operation": "issue", "arguments": {"symbol": "NO SPACE", "outputs": []}}
    file = tmp_path / "wishes.ndjson"
    file.write_text("\n".join(map(json.dumps, wishes)))
    result = run("submit", "--network", live, "--client", "alice", "--file", file, "--json")
    document = result.document
    assert result.code == 1
    assert (document["total"], document["committed"], document["pending"]) == (600, 599, 0)
    assert sum(document["refused"].values()) == 1
    assert document["reasons"]


def test_a_file_with_a_bad_line_is_not_begun(run: Run, live: Path, tmp_path: Path) -> None:
    """A line that is no wish is a usage error that names the line; nothing is handed in."""
    file = tmp_path / "wishes.ndjson"
    file.write_text(json.dumps(record("never")) + "\n{}\n")
    result = run("submit", "--network", live, "--client", "alice", "--file", file, "--json")
    assert result.code == 2
    assert "wishes.ndjson, line 2" in result.document["error"]["reason"]
    assert submit(run, live, "never").code == 0


def test_a_key_that_is_not_registered_is_refused(live: Path) -> None:
    """Signing in alice's name with another key is refused: bad-signature."""
    with Management(Layout(live).socket("management")) as management:
        name = management.network().network
        until = int(time.time() * 1000) + 60_000
        payload = keys.payload(name, "alice", "evidence.record", record("x")["arguments"], valid_until=until)
        _, raw = keys.sign(payload, [SoftwareKey.generate()])
        (result,) = management.submit_batch([raw])
    assert result.problem is not None
    assert result.problem.code == "bad-signature"


# ---- the network


@pytest.mark.requirement("E-5", "S-2")
def test_a_policy_is_set_by_administrators(run: Run, live: Path) -> None:
    """A new policy takes effect on the chain, signed by as many administrators as are needed."""
    result = run("policy", "set", "evidence.special", "AND('A', 'C')", "--network", live, "--json")
    assert (result.code, result.document["signers"]) == (0, ["admin-1", "admin-2"])
    wait_peers(live, result.document["height"])
    with Peer(Layout(live).socket("peer-1")) as peer:
        entry = json.loads(peer.state("registry/policy/evidence.special"))
    assert entry["expression"] == "AND('A', 'C')"


def test_the_chain_verifies_while_it_runs(run: Run, live: Path) -> None:
    """Both peers' chains verify from genesis on while the network runs."""
    result = run("chain", "verify", live, "--json")
    assert result.code == 0
    assert [chain["source"] for chain in result.document["chains"]] == ["peer-1", "peer-2"]


def test_status_shows_services_and_chains(run: Run, live: Path) -> None:
    """The status of a running network: every service ready, every chain with its height."""
    result = run("network", "status", live, "--json")
    assert result.code == 0
    document = result.document
    assert (document["ready"], document["supervised"]) == (True, True)
    assert [row["service"] for row in document["services"]] == [
        "device-a",
        "device-b",
        "device-c",
        "management",
        "peer-1",
        "peer-2",
    ]
    assert [chain["service"] for chain in document["chains"]] == ["management", "peer-1", "peer-2"]


def test_a_network_runs_once(run: Run, live: Path) -> None:
    """A second `network up` on the same folder is refused and names the process that holds it."""
    result = run("network", "up", live, "--json")
    assert result.code == 2
    assert f"process {os.getpid()}" in result.document["error"]["reason"]


def test_up_restarts_what_dies_and_stops_cleanly(run: Run, tmp_path: Path) -> None:
    """`network up` prints its table, restarts a killed service and says so, and leaves nothing after SIGTERM."""
    folder = tmp_path / "net"
    assert run("network", "init", folder, "--node", "A", "--peers", "1", "--json").code == 0
    command = subprocess.Popen(
        [sys.executable, "-m", "cli", "network", "up", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert command.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(command.stdout.readline())
            assert lines[-1], "network up ended early"
        services = json.loads("".join(lines))["services"]
        pids = [row["pid"] for row in services]
        os.kill(next(row["pid"] for row in services if row["service"] == "peer-1"), signal.SIGKILL)
        time.sleep(1.0)
        command.terminate()
        _, said = command.communicate(timeout=30)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0
    assert "peer-1 died (signal SIGKILL) and starts again" in said
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("kind", ["device", "management", "peer"])
def test_a_service_with_a_bad_file_says_which_field(run: Run, tmp_path: Path, kind: str) -> None:
    """A service alone refuses a wrong configuration file with the field's name and exit code 2."""
    file = tmp_path / "service.toml"
    file.write_text('name = "one"\nsurprise = 1\n')
    result = run(kind, "--config", file)
    assert result.code == 2
    assert "surprise" in result.err
