"""The command line itself: help, usage errors, exit codes, `--json`."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import exit_codes
from cli.errors import RefusedError, UsageError
from cli.network import services
from cli.output import Output
from cli.plan import (
    default_plan,
    device_settings,
    management_settings,
    network_settings,
    peer_settings,
    read_network,
    write_settings,
)
from management import config as management_config
from peer import config as peer_config
from tests.chain_builder import Network
from tests.cli.conftest import Result
from transport.problem import Problem

Run = Callable[..., Result]

COMMANDS = [
    ("network", "init"),
    ("network", "up"),
    ("network", "status"),
    ("device",),
    ("management",),
    ("peer",),
    ("client", "register"),
    ("client", "enrolments"),
    ("client", "approve"),
    ("client", "refuse"),
    ("client", "remove"),
    ("submit",),
    ("receipt", "export"),
    ("receipt", "verify"),
    ("chain", "verify"),
    ("policy", "check"),
    ("policy", "set"),
    ("demo",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(run: Run, command: tuple[str, ...]) -> None:
    """Each command explains itself and exits with 0."""
    result = run(*command, "--help")
    assert result.code == exit_codes.OK
    assert "Usage: hsm-endorser " + " ".join(command) in result.out


def test_without_a_command_help_is_shown(run: Run) -> None:
    """The bare command shows its help; nothing was done, so the exit code is that of usage."""
    result = run()
    assert result.code == exit_codes.USAGE
    assert "hsm-endorser demo" in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("network", "status"), "FOLDER"),
        (("submit", "--client", "alice"), "--network"),
        (("nonsense",), "nonsense"),
        (("policy", "check", "'A'", "--wrong"), "--wrong"),
    ],
)
def test_wrong_arguments_are_usage_errors(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    """Wrong arguments exit with 2 and name what is wrong; with --json as the one document."""
    shown = run(*arguments)
    assert (shown.code, shown.out) == (exit_codes.USAGE, "")
    assert reason.lower() in shown.err.lower()
    result = run(*arguments, "--json")
    assert result.code == exit_codes.USAGE
    assert result.document["error"]["code"] == "usage"
    assert reason.lower() in result.document["error"]["reason"].lower()


def test_a_refusal_shows_every_device_that_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """A problem is shown as its reason, the devices that were tried with what they said, and what to do."""
    problem = Problem(
        type="urn:hsm-endorser:problem:expired",
        title="Expired",
        status=422,
        detail="valid until [1]",
        devices=({"device": "device-a", "nodes": ["A"], "said": "not-ready"},),
    )
    Output(as_json=False).error(RefusedError(problem))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "expired: valid until [1]" in shown.err
    assert "device device-a tried: nodes: ['A'], said: not-ready" in shown.err
    assert "What to do: sign a new transaction with a later valid_until" in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("client", "register", "alice"),
        ("client", "enrolments"),
        ("client", "approve", "alice"),
        ("client", "refuse", "alice"),
    ],
)
def test_commands_that_need_a_running_network_say_so(
    run: Run, built: tuple[Path, Network], arguments: tuple[str, ...]
) -> None:
    """Without a management service, commands that need it exit with 3 and say how to start one."""
    result = run(*arguments, "--network", built[0], "--json")
    assert result.code == exit_codes.UNREACHABLE
    assert "network up" in result.document["error"]["advice"]


def test_status_of_a_network_that_does_not_run(run: Run, built: tuple[Path, Network]) -> None:
    """The status of a stopped network lists its services as not answering and exits with 3."""
    result = run("network", "status", built[0], "--json")
    assert result.code == exit_codes.UNREACHABLE
    assert result.document["supervised"] is False
    assert {row["ready"] for row in result.document["services"]} == {"does not answer"}
    assert "start it: hsm-endorser network up" in run("network", "status", built[0]).out


def test_no_key_no_submission(run: Run, built: tuple[Path, Network]) -> None:
    """Who has no key in the folder cannot submit; the missing file is named."""
    result = run("submit", "--network", built[0], "--client", "eve", "--contract", "evidence", "--operation", "record")
    assert result.code == exit_codes.USAGE
    assert "clients/eve.key" in result.err


@pytest.mark.parametrize("given", ["noequals", "=value"])
def test_a_policy_option_must_be_an_assignment(run: Run, tmp_path: Path, given: str) -> None:
    """--policy takes TYPE=EXPRESSION and refuses anything else before a folder is made."""
    result = run("network", "init", tmp_path / "net", "--policy", given, "--json")
    assert result.code == exit_codes.USAGE
    assert "TYPE=EXPRESSION" in result.document["error"]["reason"]
    assert not (tmp_path / "net").exists()


def test_the_services_read_the_files_that_are_written(tmp_path: Path) -> None:
    """The written configuration files are what management and peer load, paths resolved beside the file."""
    plan = default_plan("net", ("A", "B", "C"), 1, {})
    for kind in ("management", "peers/peer-1"):
        (tmp_path / kind).mkdir(parents=True)
    write_settings(tmp_path / "management" / "management.toml", management_settings(plan))
    write_settings(tmp_path / "peers/peer-1/peer.toml", peer_settings("peer-1"))
    management = management_config.load(tmp_path / "management" / "management.toml")
    assert [device.name for device in management.devices] == ["device-a", "device-b", "device-c"]
    assert management.database.resolve() == tmp_path / "management" / "chain.db"
    peer = peer_config.load(tmp_path / "peers/peer-1/peer.toml")
    assert peer.genesis.resolve() == tmp_path / "genesis.json"


def test_toml_comes_back_as_it_was(tmp_path: Path) -> None:
    """Written settings, with awkward text in them, are read back as the same values."""
    settings = device_settings("device-a", 'pkcs11:token=a"b\\c;serial=ü', {"SOFTHSM2_CONF": "soft hsm.conf"})
    write_settings(tmp_path / "device.toml", settings)
    assert tomllib.loads((tmp_path / "device.toml").read_text()) == settings


def test_the_default_policies_follow_the_nodes() -> None:
    """By default two thirds of the nodes endorse, and all of them where value is made."""
    plan = default_plan("net", ("A", "B", "C"), 2, {"evidence": "ANY"})
    assert plan.policies == {
        "assets": "OutOf(2, 'A', 'B', 'C')",
        "evidence": "ANY",
        "assets.issue": "AND('A', 'B', 'C')",
    }
    assert plan.devices == {"device-a": ("A",), "device-b": ("B",), "device-c": ("C",)}


def test_a_moved_network_is_refused_with_what_to_write(tmp_path: Path) -> None:
    """A token's configuration that names another folder is said before anything starts."""
    device = tmp_path / "net" / "devices" / "device-a"
    device.mkdir(parents=True)
    (device / "softhsm2.conf").write_text("directories.tokendir = /elsewhere/net/devices/device-a/tokens\n")
    plan = default_plan("net", ("A",), 1, {})
    write_settings(tmp_path / "net" / "network.toml", network_settings(plan))
    with pytest.raises(UsageError, match="moved or copied") as refusal:
        services(tmp_path / "net", read_network(tmp_path / "net"))
    assert str(device / "tokens") in (refusal.value.advice or "")


def test_what_a_token_says_is_no_part_of_the_answer() -> None:
    """A warning that is logged on the way goes to standard error: standard output is one JSON document."""
    code = "import structlog\nfrom cli.main import main\nmain(['network', 'status', '/absent', '--json'])\n"
    code += "structlog.get_logger().warning('left out')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert json.loads(done.stdout)["error"]["reason"].startswith("/absent is no network folder")
    assert "left out" in done.stderr
