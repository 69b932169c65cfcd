"""The whole life of keys on a TPM 2.0 (tpm2-pkcs11): ceremony, load, rotation, revocation, a lost and a replaced token.

Three TPMs, each with a resource manager of its own: two in the plan of the ceremony, one that takes a lost one's place.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cli import exit_codes, registry
from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from protocol.ceremony import Generated
from protocol.transcript import Transcript
from tests.flow.founding_people import FirstToken, Founders
from tests.flow.running_network import Load, RunningNetwork
from tests.modules.module_token import ModuleToken
from tests.modules.tokens import tpm

pytestmark = [pytest.mark.modules, pytest.mark.timeout(240)]
MODEL = "SW   TPM"
DEADLINE_MS = 5000
"""Other tests share the machine."""
DEVICES = ("device-a", "device-b")
Command = Callable[..., Any]


class Tpms:
    """TPMs that can be lost one by one."""

    def __init__(self, place: Callable[[], Path]) -> None:
        self._place = place
        self._running: dict[str, ExitStack] = {}

    def begin(self, name: str) -> ModuleToken:
        """A new one with an initialised, empty token; by its label alone it differs from the others."""
        self._running[name] = ExitStack()
        return self._running[name].enter_context(tpm(self._place(), name))

    def end(self, name: str) -> None:
        """Switch one off, with all that it holds."""
        self._running.pop(name).close()

    def close(self) -> None:
        """Switch all off."""
        for name in tuple(self._running):
            self.end(name)


@pytest.fixture(scope="module")
def tpms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpms]:
    """None at first; those of the ceremony and of the replacement are begun where they are needed."""
    tpms = Tpms(lambda: tmp_path_factory.mktemp("m"))  # sockets must have short paths
    yield tpms
    tpms.close()


@pytest.fixture(scope="module")
def founders(tmp_path_factory: pytest.TempPathFactory, tpms: Tpms) -> Founders:
    """Two of three role holders have founded a network of two nodes, each on a TPM of its own."""
    tokens = {name: tpms.begin(name) for name in DEVICES}
    founders = Founders(
        tmp_path_factory.mktemp("c"),
        {name: FirstToken(token.uri, token.environment, DEADLINE_MS) for name, token in tokens.items()},
    )
    founders.found()
    return founders


class Life:
    """The network as it runs now, and what one part of the story leaves to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: list[str] = []
        self.told: dict[str, Any] = {}
        self.network = self._up()
        assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == exit_codes.OK

    def again(self) -> None:
        """Stop all services, and start those that the folder names now."""
        self.network.supervisor.close()
        self.network = self._up()

    def load(self, label: str, during: Callable[[], Any] = lambda: None) -> Any:
        """Do something while transactions come in; all that is acknowledged must be committed."""
        loading = Load(self.network, label, batch=10, pause=0.1)
        loading.start()
        try:
            done = during()
        finally:
            loading.stop()
        assert loading.refused == []
        ends = [self.network.ended(transaction) for transaction in loading.acknowledged]
        assert {(end.status, end.code) for end in ends} == {("committed", "valid")}
        self.acknowledged += loading.acknowledged
        self.network.wait_level(max(end.height or 0 for end in ends))
        return done

    def _up(self) -> RunningNetwork:
        supervisor = Supervisor(self.folder, services(self.folder, read_network(self.folder)), print)
        supervisor.__enter__()
        supervisor.wait_ready(60)
        return RunningNetwork(Layout(self.folder), supervisor)


@pytest.fixture(scope="module")
def life(founders: Founders) -> Iterator[Life]:
    """The network that the ceremony has founded, running."""
    life = Life(founders.network)
    yield life
    life.network.supervisor.close()


@pytest.fixture
def run(founders: Founders, capsys: pytest.CaptureFixture[str]) -> Command:
    """The document of a command on the network, with the exit code that is expected."""

    def run(*words: str, code: int = exit_codes.OK) -> Any:
        capsys.readouterr()
        got = main([*words, "--network", str(founders.network), "--json"])
        out = capsys.readouterr().out
        assert got == code, out
        return json.loads(out)

    return run


@pytest.mark.requirement("K-11", "E-18")
def test_a_ceremony_founds_it(life: Life, founders: Founders) -> None:
    """All keys are generated on the TPMs that the plan names by URI and environment; block 0 names the transcript."""
    transcript = Transcript.read(founders.transcript.read_bytes())
    made = [step.act for step in transcript.steps if isinstance(step.act, Generated)]
    assert {each.device: each.token.model for each in made} == dict.fromkeys(DEVICES, MODEL)
    assert sorted(key.label for each in made for key in each.keys) == [
        "ca/ca",
        "center/center-1",
        "identity",
        "identity",
        "node/A",
        "node/B",
    ]
    _verify_ceremony(founders)
    life.load("founded")


@pytest.mark.requirement("K-12", "E-18")
def test_keys_are_rotated_under_load(life: Life, run: Command) -> None:
    """A node's, the center's and the CA's, each announced by old and new key on the TPM; nothing is lost."""

    def rotate() -> list[dict[str, Any]]:
        holders = ("node/B", "center/center-1", "registrar/ca")
        return [run("key", "rotate", holder, "--overlap", "2")["rotated"][0] for holder in holders]

    rotated = life.load("rotate", rotate)
    while registry.head(life.folder)[0] < rotated[0]["last"]:  # each load is a block at least
        life.load(f"overlap-{registry.head(life.folder)[0]}")
    states = {row["key"]: row["state"] for row in run("key", "list")["keys"]}
    assert [states[each["new"]] for each in rotated] == ["in force"] * 3
    life.told["rotated"] = rotated[0]


@pytest.mark.requirement("K-14", "E-18")
def test_a_key_is_revoked_under_load(life: Life, run: Command) -> None:
    """Node B's key is refused from the next block on; its TPM makes another, which the administrators vouch for."""
    key = life.told["rotated"]["new"]
    revoked = life.load("revoke", lambda: run("key", "revoke", key, "--reason", "key-compromise"))
    assert (revoked["holder"], revoked["key"]) == ("node/B", key)
    (fresh,) = life.load("after", lambda: run("key", "rotate", "B", "--unannounced"))["rotated"]
    assert fresh["old"] == key
    states = {row["key"]: row["state"] for row in run("key", "list")["keys"]}
    assert (states[key], states[fresh["new"]]) == ("revoked: key-compromise", "in force")
    life.told["revoked"] = revoked


@pytest.mark.requirement("K-14", "E-18")
def test_a_lost_tpm_is_replaced_by_another(life: Life, run: Command, tpms: Tpms, founders: Founders) -> None:
    """The TPM of device B is off for good: its nodes get new keys on a third one, named by URI and environment."""
    tpms.end("device-b")
    token = tpms.begin("device-c")
    words = ["--new", "device-c", "--uri", token.uri, "--deadline-ms", str(DEADLINE_MS), "--reason", "key-compromise"]
    words += [word for name, value in token.environment.items() for word in ("--environment", f"{name}={value}")]
    done = life.load("lost", lambda: run("device", "replace", "device-b", *words))
    assert (done["nodes"], done["centers"], done["registrars"]) == (["B"], [], [])
    life.again()
    life.load("replaced")
    assert read_network(founders.network).devices == ("device-a", "device-c")
    device = registry.in_force(founders.network).device("device-c")
    assert device is not None
    assert device.token.model == MODEL
    assert done["keys"].keys() == {"identity", "node/B"}
    with life.network.management() as management:
        told = {each["device"]: each for each in management.devices()}
    assert (told["device-c"]["ready"], told["device-c"]["status"]["nodes"]) == (True, ["B"])
    life.told["replaced"] = done


@pytest.mark.requirement("K-12", "K-14")
def test_the_replaced_keys_are_traced(life: Life, run: Command) -> None:
    """All that each ever signed, up to what the replacement said, and nothing after its end."""
    replaced, revoked = life.told["replaced"], life.told["revoked"]
    last = {each["key"]: each["height"] for each in replaced["signed_last"]}
    assert {life.told["rotated"]["old"], revoked["key"]} < last.keys()
    for key, height in last.items():
        (found,) = run("key", "trace", key)["traces"]
        assert max((each["height"] for each in found["proven"]), default=None) == height
        assert height is None or height <= replaced["height"]
    assert last[revoked["key"]] < revoked["since"]
    assert any(last.values())
    (found,) = run("key", "trace", replaced["keys"]["node/B"])["traces"]
    touched = {each for signing in found["proven"] for each in signing["transactions"]}
    assert touched & set(life.acknowledged), "the new key on the third TPM endorses"


@pytest.mark.requirement("K-11", "K-12", "K-14")
def test_both_ends_are_verified_offline(life: Life, founders: Founders, tpms: Tpms) -> None:
    """With every service and every TPM off: the ceremony against block 0, and each peer's chain from block 0 on."""
    life.network.supervisor.close()
    tpms.close()
    _verify_ceremony(founders)
    assert main(["chain", "verify", str(founders.network), "--json"]) == exit_codes.OK


def _verify_ceremony(founders: Founders) -> None:
    words = ["ceremony", "verify", str(founders.transcript), "--genesis", str(founders.network / "genesis.json")]
    assert main([*words, "--json"]) == exit_codes.OK
    digest = Transcript.read(founders.transcript.read_bytes()).steps[-2].previous
    assert registry.founding(founders.network).channel.ceremony == digest
