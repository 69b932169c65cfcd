"""The demo, small: all of its steps on real tokens, and the parts that it is made of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo import inventory
from cli.demo.checks import Checks
from cli.demo.load import COINS_PER_ISSUE, Identity, Lanes
from cli.keys import SoftwareKey
from cli.output import Output
from protocol.transaction import Transaction

EXPECTED_REFUSALS = {
    "unknown client": "unknown-client",
    "wrong reference signature": "bad-signature",
    "replay": "already-executed",
    "expired": "expired",
    "double spending": "already-spent",
    "too few endorsements": "endorsement-unavailable",
}


@pytest.mark.slow
@pytest.mark.requirement("E-1", "E-2", "E-3", "E-4", "E-13", "E-14", "E-16", "M-5", "M-7")
def test_the_demo_holds(tmp_path: Path) -> None:
    """The whole demo, with few transfers: every check held, every refusal has its reason, one JSON document."""
    arguments = ["--transfers", "300", "--seconds", "1", "--records", "20", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(
        [sys.executable, "-m", "cli", "demo", "--json", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["held"] is True
    assert [check for check in document["checks"] if not check["held"]] == []
    refused = {attempt["name"]: attempt["got"] for attempt in document["attempts"]}
    assert EXPECTED_REFUSALS.items() <= refused.items()
    assert document["records"] == 20
    assert document["load"]["committed"] >= 300
    first, second = document["chains"]
    assert (first["height"], first["authentication"], first["state_digest"]) == (
        second["height"],
        second["authentication"],
        second["state_digest"],
    )
    assert document["receipt"]["code"] == "valid"
    assert not [line for line in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(line)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_a_claim_that_does_not_hold_fails_the_demo(tmp_path: Path) -> None:
    """One claim that cannot hold makes the exit code 4, and is named; all others are still tried."""
    arguments = ["--transfers", "1", "--seconds", "0", "--records", "1", "--least-rate", "1e9"]
    done = subprocess.run(
        [sys.executable, "-m", "cli", "demo", "--json", *arguments, "--folder", str(tmp_path / "demo")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 4, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["held"] is False
    assert [check["name"] for check in document["checks"] if not check["held"]] == ["transactions per second"]
    assert "DID NOT HOLD: transactions per second: expected at least 1e+09" in done.stderr


def test_the_demo_removes_only_its_own_networks(tmp_path: Path) -> None:
    """A folder that holds something else is refused and left as it is."""
    (tmp_path / "precious").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "cli", "demo", "--json", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "is no network folder" in json.loads(done.stdout)["error"]["reason"]
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_does_not_hold_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Checks compare: what differs is kept with what was expected and what came, and said at once."""
    checks = Checks(Output(as_json=True))
    checks.equal("same height", 7, 7)
    checks.equal("same head", "aa", "bb")
    checks.at_least("per second", 1500, 1499.0)
    checks.at_most("operations", 0.1, 0.1)
    assert [(check.name, check.expected, check.got) for check in checks.failed] == [
        ("same head", "aa", "bb"),
        ("per second", "at least 1500", 1499.0),
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert "DID NOT HOLD: same head: expected aa, got bb" in said.err


def test_the_inventory_is_this_machines_own() -> None:
    """The inventory has real packages, each once, with a version and a digest of its own files."""
    packages = inventory.packages()
    assert packages
    assert len({(package.name, package.version) for package in packages}) == len(packages)
    assert all(package.version and len(package.digest) == 64 for package in packages)
    assert len({package.digest for package in packages}) > len(packages) // 2
    assert all(len(package.wish()["subject"]) <= 256 for package in packages)


def test_each_round_spends_what_the_round_before_made() -> None:
    """A lane's transfers hang together: each round spends the coins of the one before, owners taking turns."""
    clients = [Identity(name, SoftwareKey.generate().pem()) for name in ("alice", "bob")]
    public = {client.name: SoftwareKey.from_pem(client.pem).public for client in clients}
    lanes = Lanes("net", clients, 3 * COINS_PER_ISSUE, valid_until=1)
    issues = [Transaction.decode(raw) for _, raw in lanes.issues()]
    reported: list[int] = []
    lanes.sign_ahead(2 * lanes.size, reported.append)
    assert reported == [lanes.size, 2 * lanes.size]
    rounds = [[Transaction.decode(raw) for batch in batches for _, raw in batch] for batches in lanes._rounds]
    coins = [f"{issue.id}:{index}" for issue in issues for index in range(COINS_PER_ISSUE)]
    for number, transfers in enumerate(rounds):
        owner, receiver = ("alice", "bob") if number % 2 == 0 else ("bob", "alice")
        assert [transfer.payload.arguments["inputs"] for transfer in transfers] == [[coin] for coin in coins]
        assert {transfer.payload.client for transfer in transfers} == {owner}
        assert {transfer.payload.arguments["outputs"][0]["owner"] for transfer in transfers} == {receiver}
        transfers[0].verify(public[owner])
        coins = [f"{transfer.id}:0" for transfer in transfers]
