"""The operations guide, followed against a running network: drain, resume, change the PIN, unlock, quarantine."""

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import exit_codes
from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network, write_settings
from cli.supervisor import ServiceSpec, Supervisor
from tests.flow.running_network import RunningNetwork

NEW_PIN = "another-pin-4711"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A network of three devices, and a client."""
    folder = tmp_path_factory.mktemp("device") / "net"
    assert main(["network", "init", str(folder), "--json"]) == 0
    with Supervisor(folder, services(folder, read_network(folder)), print) as supervisor:
        supervisor.wait_ready(60)
        assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == 0
        yield RunningNetwork(Layout(folder.absolute()), supervisor)


def config_of(network: RunningNetwork, name: str = "device-c") -> Path:
    """A device's configuration file."""
    return network.layout.device(name) / "device.toml"


def device(network: RunningNetwork, *words: str, stdin: str = "", name: str = "device-c") -> tuple[int, dict]:
    """The exit code and the document of `hsm-endorser device …`."""
    program = [sys.executable, "-m", "cli", "device", *words, "--config", str(config_of(network, name)), "--json"]
    done = subprocess.run(program, input=stdin, capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, json.loads(done.stdout)


def commit(network: RunningNetwork, subject: str) -> str:
    """Hand in one transaction; its final code."""
    wish = network.evidence(subject)
    with network.management() as management:
        management.submit(wish.raw)
    return network.ended(wish.id).code or ""


@pytest.mark.slow
@pytest.mark.requirement("E-7")
def test_a_drained_device_is_left_alone_until_it_is_resumed(network: RunningNetwork) -> None:
    """The network goes on without it; it says why it is not ready; resumed, it is ready again."""
    code, status = device(network, "drain")
    assert (code, status["ready"], status["reason"]) == (exit_codes.OK, False, "gate: draining")
    assert commit(network, "without-device-c") == "valid"
    assert device(network, "status")[1]["reason"] == "gate: draining"
    code, status = device(network, "resume")
    assert (code, status["ready"]) == (exit_codes.OK, True)


@pytest.mark.requirement("S-6")
def test_a_pin_is_changed_while_the_network_runs(network: RunningNetwork) -> None:
    """The PIN comes from standard input; afterwards the device restarts with the new file."""
    pin = network.layout.device("device-c") / "pin"
    old = pin.read_text()
    code, status = device(network, "change-pin", stdin=f"{NEW_PIN}\n")
    assert (code, status["ready"]) == (exit_codes.OK, True)
    assert (pin.read_text(), pin.stat().st_mode & 0o777) == (f"{NEW_PIN}\n", 0o600)
    network.supervisor.stop("device-c")
    network.supervisor.start("device-c")
    network.supervisor.wait_ready(60, ["device-c"])
    code, document = device(network, "change-pin", "--ask-old", stdin=f"{old}{old}")
    assert (code, document["error"]["code"]) == (exit_codes.REFUSED, "token-refused")
    assert "PinIncorrect" in document["error"]["reason"]
    assert pin.read_text() == f"{NEW_PIN}\n"


@pytest.mark.slow
@pytest.mark.requirement("S-6")
def test_a_device_without_a_pin_file_is_unlocked(network: RunningNetwork) -> None:
    """After a restart it is locked; a wrong PIN is refused with the reason; the right one opens it."""
    path = config_of(network)
    settings = tomllib.loads(path.read_text())
    settings["token"]["uri"] = settings["token"]["uri"].replace("&pin-source=file:pin", "")
    network.supervisor.stop("device-c")
    write_settings(path, settings)
    pin = (network.layout.device("device-c") / "pin").read_text()
    network.supervisor.start("device-c")
    until(lambda: "device unlock" in device(network, "status")[1].get("reason", ""))
    code, document = device(network, "unlock", stdin="wrong-pin-9876\n")
    assert (code, document["error"]["code"]) == (exit_codes.REFUSED, "pin-refused")
    assert "wrong-pin-9876" not in str(document)
    code, status = device(network, "unlock", stdin=pin)
    assert (code, status["ready"]) == (exit_codes.OK, True)
    logs = (network.layout.folder / "logs" / "device-c.log").read_text()
    assert pin.strip() not in logs
    assert "wrong-pin-9876" not in logs


@pytest.mark.slow
@pytest.mark.requirement("K-9")
def test_a_swapped_token_stays_out_until_an_operator_has_looked(network: RunningNetwork) -> None:
    """Another token of the same name: quarantined over restarts; the right one back and released: ready."""
    folder = network.layout.device("device-b")
    tokens, away, other = folder / "tokens", folder / "away", folder / "other"
    network.supervisor.stop("device-b")
    tokens.rename(away)
    tokens.mkdir()
    swap(folder)
    network.supervisor.start("device-b")
    until(lambda: "not the one that the URI names" in device(network, "status", name="device-b")[1].get("reason", ""))
    assert commit(network, "without-device-b") == "valid"
    network.supervisor.stop("device-b")
    tokens.rename(other)
    away.rename(tokens)
    network.supervisor.start("device-b")
    until(lambda: "not the one that the URI names" in device(network, "status", name="device-b")[1].get("reason", ""))
    code, status = device(network, "release", name="device-b")
    assert (code, status["ready"]) == (exit_codes.OK, True)


def test_wrong_use_says_what_to_do(network: RunningNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --config, with it in the wrong place, and where no device listens."""
    assert main(["device"]) == exit_codes.USAGE
    assert "--config" in capsys.readouterr().err
    assert main(["device", "--config", str(config_of(network)), "drain"]) == exit_codes.USAGE
    assert "after the command" in capsys.readouterr().err
    network.supervisor.stop("device-a")
    code, document = device(network, "status", name="device-a")
    assert (code, document["error"]["code"]) == (exit_codes.UNREACHABLE, "unreachable")
    assert "start the device first" in document["error"]["advice"]


def test_a_wrong_configuration_ends_with_the_exit_code_for_it(network: RunningNetwork) -> None:
    """A PIN file that others can read: exit code 2, which no supervisor restarts in a hurry."""
    network.supervisor.stop("device-a")
    pin = network.layout.device("device-a") / "pin"
    pin.chmod(0o644)
    program = [sys.executable, "-m", "cli", "device", "--config", str(config_of(network, "device-a"))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "chmod 600" in done.stderr) == (exit_codes.USAGE, True)


def test_a_wrong_configuration_is_not_started_in_a_hurry(tmp_path: Path) -> None:
    """A service that ends with exit code 2 is tried again after ten seconds, not after 0.2."""
    said: list[str] = []
    spec = ServiceSpec("one", (sys.executable, "-c", "raise SystemExit(2)"), None)
    with Supervisor(tmp_path, [spec], said.append):
        until(lambda: bool(said))
    assert "one died (exit code 2) and starts again in 10.0 s" in said[0]


def swap(folder: Path) -> None:
    """Initialise another token of the same label in the device's own store."""
    from softhsm.tokens import create_token  # noqa: PLC0415  this test alone makes a token

    create_token(folder, folder.name, folder / "pin", folder / "so-pin")


def until(holds, seconds: float = 30.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
