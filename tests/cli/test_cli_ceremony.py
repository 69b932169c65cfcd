"""The ceremony's commands against real tokens: the dry run, the run by two people, and what verification refuses."""

import asyncio
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.ceremony import plan as plans
from cli.main import main
from hsm_endorser import dry_run
from hsm_endorser.guard import Guard
from hsm_endorser.journal import by_purpose, entries_of, rows
from ledger.contracts import registry as contract
from ledger.contracts.contract import Call
from ledger.errors import RejectedError
from ledger.genesis import check_genesis
from protocol.block import Block
from protocol.canonical import KeyId
from protocol.ceremony import PAYLOAD_TYPE, Generated
from protocol.envelope import Envelope
from protocol.transcript import Transcript
from softhsm.tokens import create_pin_file, create_token
from tests.cli.ceremony_hall import Hall
from tests.cli.conftest import Result
from tests.flow.founding_people import FirstToken, Founders

Run = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
TWO = ("--holder", "anna", "--holder", "carla")

pytestmark = pytest.mark.requirement("K-11")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    """A hall in which anna and carla have held the ceremony; tests only look at it."""
    hall = Hall(tmp_path_factory.mktemp("held"))
    assert main(["ceremony", "run", str(hall.plan), "--into", str(hall.network), *TWO, "--json"]) == 0
    return hall


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    """A hall with empty tokens, on which nothing is ever generated; tests write their own plan."""
    return Hall(tmp_path_factory.mktemp("empty"))


def objects(hall: Hall, device: str) -> int:
    """How many objects a device's token holds."""
    token = hall.tokens[device]
    return asyncio.run(dry_run.look(plans.token_config(hall.plan, token.uri, token.environment))).objects


# ---- plan


def test_a_plan_is_written_once_and_can_be_read(run: Run, tmp_path: Path, held: Hall) -> None:
    """The template is a plan as soon as the public keys are there; a file that is there is never overwritten."""
    path = tmp_path / "prod.toml"
    given = ["--administrator", f"anna={held.folder}/anna.pub", "--administrator", f"carla={held.folder}/carla.pub"]
    assert run("ceremony", "plan", path, *given, "--device", "hsm-1", "--json").code == 0
    plan = plans.read(path)
    assert (plan.file.network, plan.declaration.needed, plan.declaration.nodes) == ("prod", 2, ("A",))
    before = path.read_bytes()
    again = run("ceremony", "plan", path, "--json")
    assert (again.code, path.read_bytes()) == (2, before)
    assert "never overwritten" in again.document["error"]["advice"]


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        (['network = "prod"', "administrators_needed = 1"], "administrators_needed"),
        (['network = "prod"', "administrators_needed = 4"], "4 of 3 role holders can never sign"),
        (['network = "no way"', "administrators_needed = 2"], "network"),
        (['network = "prod"', "administrator_needed = 2"], "unknown field `administrator_needed`"),
        (['network = "prod"', 'peers = ["device-a"]'], "device-a is the name of two services"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(run: Run, empty: Hall, top: list[str], reason: str) -> None:
    """One person, more than there are, a bad name, a misspelt field: said before anything is touched."""
    empty.write(top=top)
    result = run("ceremony", "check", empty.plan, "--json")
    assert result.code == 2
    assert reason in result.document["error"]["reason"]


# ---- check


def findings(result: Result) -> dict[tuple[str, str], tuple[str, str]]:
    """Verdict and words by target and check."""
    return {(each["target"], each["check"]): (each["verdict"], each["said"]) for each in result.document["findings"]}


def test_a_dry_run_changes_nothing(run: Run, empty: Hall) -> None:
    """It logs in everywhere and passes, and every object on every token is as it was."""
    empty.write()
    before = empty.objects()
    result = run("ceremony", "check", empty.plan, "--json")
    assert result.code == 0
    found = findings(result)
    assert {verdict for verdict, _ in found.values()} == {"pass"}
    assert found["device-a", "nothing was changed"][1] == "0 objects before, 0 after"
    assert found["carla", "the key is where the plan says"][0] == "pass"
    assert "Each PIN is tried once" in result.err
    assert empty.objects() == before
    assert len(before) == 2, "carla's own key pair is there"
    assert not empty.network.exists()


def test_two_devices_on_one_token_are_refused(run: Run, tmp_path: Path) -> None:
    """By manufacturer, model, serial and label; some modules say the same serial of every token."""
    create_pin_file(tmp_path / "pin")
    create_pin_file(tmp_path / "so-pin")
    made = create_token(tmp_path, "one", tmp_path / "pin", tmp_path / "so-pin")
    token = FirstToken(made.uri, made.environment)
    result = run("ceremony", "check", Founders(tmp_path, {"device-a": token, "device-b": token}).plan, "--json")
    assert result.code == 4
    failed = {each: said for each, (verdict, said) in findings(result).items() if verdict == "fail"}
    assert failed.keys() == {("device-a", "a token of its own"), ("device-b", "a token of its own")}
    said = f"the token 'one', serial {made.serial}, is named for another device, too; if they are two"
    assert all(each.startswith(said) for each in failed.values())


def test_a_wrong_pin_is_tried_once_and_said(run: Run, empty: Hall) -> None:
    """The dry run goes on with the other tokens, and does not log in to that one a second time."""
    wrong = empty.folder / "wrong-pin"
    wrong.write_text("not the PIN\n")
    wrong.chmod(0o600)
    uri = empty.tokens["device-b"].uri.rpartition("&")[0] + f"&pin-source=file:{wrong}"
    empty.write(**{"uri_device-b": uri})
    result = run("ceremony", "check", empty.plan, "--json")
    found = findings(result)
    assert result.code == 4
    verdict, said = found["device-b", "module, token and PIN"]
    assert (verdict, "it was tried once, which cost a try" in said) == ("fail", True)
    assert ("device-b", "nothing was changed") not in found
    assert found["device-a", "nothing was changed"][0] == "pass"
    assert "not the PIN" not in result.out + result.err


@pytest.mark.parametrize(
    ("changes", "finding", "said"),
    [
        ({"policies": {"evidence": "'Z'"}}, ("registry", "the declared set holds together"), "who are no nodes"),
        ({"policies": {"evidence": "AND('A'"}}, ("registry", "the declared set holds together"), "policy evidence"),
        (
            {"uri_device-a": "pkcs11:token=device-a?module-path=/nowhere/p11.so&pin-source=file:tokens/device-a/pin"},
            ("device-a", "module, token and PIN"),
            "NoModule",
        ),
        (
            {"uri_device-a": "pkcs11:token=other?module-path=MODULE&pin-source=file:tokens/device-a/pin"},
            ("device-a", "module, token and PIN"),
            "NoSuchToken",
        ),
    ],
)
def test_a_dry_run_finds_what_would_stop_the_ceremony(
    run: Run, empty: Hall, changes: dict[str, Any], finding: tuple[str, str], said: str
) -> None:
    """A policy about nobody, one that cannot be read, a module and a token that are not there."""
    module = empty.tokens["device-a"].uri.partition("module-path=")[2].partition("&")[0]
    text = json.loads(json.dumps(changes).replace("MODULE", module))
    empty.write(**text)
    result = run("ceremony", "check", empty.plan, "--json")
    verdict, reason = findings(result)[finding]
    assert (result.code, verdict) == (4, "fail")
    assert said in reason


def test_taken_labels_are_found_and_never_used(run: Run, held: Hall) -> None:
    """A token that holds keys from before is refused by the dry run, and by the ceremony before it generates."""
    before = held.objects()
    result = run("ceremony", "check", held.plan, "--json")
    assert findings(result)["device-a", "labels are free"] == (
        "fail",
        "taken: ca/ca, center/center-1, identity, node/A",
    )
    again = run("ceremony", "run", held.plan, "--into", held.folder / "again", *TWO, "--json")
    assert again.document["error"]["code"] == "label-taken"
    assert (objects(held, "device-a"), held.objects()) == (8, before)


# ---- run


def test_two_people_make_a_network(run: Run, held: Hall) -> None:
    """Both signed every step; block 0 holds the generated keys and names the transcript; no private key lies there."""
    result = run("ceremony", "verify", held.transcript, "--genesis", held.genesis, "--json")
    assert result.code == 0
    document = result.document
    assert [step["kind"] for step in document["steps"]] == [
        "declared",
        "authorized",
        "generated",
        "authorized",
        "generated",
        "certified",
        "proposed",
        "founded",
    ]
    assert {tuple(step["present"]) for step in document["steps"]} == {("anna", "carla")}
    view = check_genesis(Block.decode(held.genesis.read_bytes())).registry
    assert view.channel.ceremony == document["ceremony"]
    generated = {key["key"] for key in document["keys"] if key["label"] == "node/B"}
    assert set(view.keys_on_device("device-b")) == generated
    assert list((held.network / "administrators").glob("*.key")) == []
    assert stat.S_IMODE(held.transcript.stat().st_mode) == 0o600
    secrets = [held.pin(name) for name in held.tokens] + [(held.folder / "anna.key").read_text()]
    for path in held.network.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in secrets), path


@pytest.mark.requirement("K-10")
def test_every_signature_of_a_device_stands_in_its_journal(held: Hall) -> None:
    """Each step under a device's identity key, each generation and block 0's header were recorded before."""
    transcript = Transcript.read(held.transcript.read_bytes())
    guard = Guard.open(held.network / "devices/device-a/guard.db", network="prod", device="device-a")
    try:
        journal = list(rows(guard))
    finally:
        guard.close()
    known = {row.entry for row in journal}
    purposes = by_purpose(journal)
    identity = transcript.key("device-a", "identity").id
    for line in transcript.lines:
        envelope = msgspec.json.decode(line, type=Envelope)
        assert envelope.payload_type == PAYLOAD_TYPE
        for entry in entries_of(envelope, "statement"):
            assert entry.key != identity or entry in known
    assert purposes["statement"] == sum("device-a" in step.devices for step in transcript.steps) == 6
    assert (purposes["generation"], purposes["header"], purposes["certificate"]) == (4, 1, 1)


def test_one_person_alone_makes_nothing(run: Run, empty: Hall) -> None:
    """No step is taken and no key generated; what is needed is said."""
    empty.write()
    into = empty.folder / "alone"
    result = run("ceremony", "run", empty.plan, "--into", into, "--holder", "anna", "--json")
    assert result.code == 2
    assert "nothing is generated by one person alone" in result.document["error"]["reason"]
    assert (into / "ceremony/transcript").read_bytes() == b""
    assert objects(empty, "device-a") == 0


def test_a_key_that_is_not_the_declared_one_is_refused(run: Run, empty: Hall) -> None:
    """Bert cannot sign as anna, and carla's token must hold carla's key."""
    empty.write()
    into = empty.folder / "impostor"
    bert = run("ceremony", "run", empty.plan, "--into", into, "--holder", "anna=bert.key", "--holder", "bert", "--json")
    assert "is not the key of anna" in bert.document["error"]["reason"]
    other = empty.tokens["device-b"].uri
    line = f"carla={other}"
    carla = run("ceremony", "run", empty.plan, "--into", into, "--holder", "anna", "--holder", line, "--json")
    assert carla.code != 0
    assert objects(empty, "device-b") == 0


def test_each_is_asked_in_turn_and_may_refuse(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role holder who says no stops the ceremony before the step; the same command goes on from there later."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    # who is there: anna where the plan says, bert at a path of his own, carla is away; then yes, yes, and bert's no
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\n{tmp_path}/bert.key\n-\nyes\nyes\nyes\nno\n"))
    refused = run("ceremony", "run", hall.plan, "--into", hall.network)
    assert refused.code == 1
    assert "bert does not sign step 2; it was not done" in refused.err
    assert "Administrator anna: where is your key [anna.key]?" in refused.out
    assert "are to be generated for device-a on the token SoftHSM" in refused.out.replace("\n", " ")
    assert hall.transcript.read_bytes().count(b"\n") == 1
    assert objects(hall, "device-a") == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n-\n" + "yes\n" * 10))
    done = run("ceremony", "run", hall.plan, "--into", hall.network)
    assert done.code == 0
    assert "Taking the ceremony up again after step 1." in done.out
    assert run("ceremony", "verify", hall.transcript, "--genesis", hall.genesis).code == 0
    again = run("ceremony", "run", hall.plan, "--into", hall.network, *TWO, "--json")
    assert (again.code, again.document["steps"]) == (0, 6)
    hall.write(policies={"evidence": "'A'", "assets": "'A'"})
    other = run("ceremony", "run", hall.plan, "--into", hall.network, *TWO, "--json")
    assert other.document["error"]["code"] == "other-plan"


@pytest.mark.requirement("S-6")
def test_pins_without_a_file_are_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device's token and of a role holder's, once each; they stand nowhere afterwards."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    without = {name: token.uri.rpartition("&pin-source")[0] for name, token in hall.tokens.items()}
    hall.write(**{"uri_device-a": without["device-a"]})
    answers = ["", "-", without["carla"], hall.pin("carla"), "yes", "yes", hall.pin("device-a"), *["yes"] * 10]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers) + "\n"))
    done = run("ceremony", "run", hall.plan, "--into", hall.network)
    assert (done.code, done.err) == (0, "")
    assert run("ceremony", "verify", hall.transcript, "--genesis", hall.genesis).code == 0
    files = [path.read_bytes() for path in hall.network.rglob("*") if path.is_file()]
    for pin in (hall.pin("carla"), hall.pin("device-a")):
        assert pin not in done.out
        assert not any(pin.encode() in data for data in files)
    unasked = run(
        "ceremony", "run", hall.plan, "--into", tmp_path / "x", "--holder", "anna", "--holder", "bert", "--json"
    )
    assert "nobody can be asked for the PIN" in unasked.document["error"]["reason"]


def test_a_folder_with_something_else_in_it_is_refused(run: Run, empty: Hall) -> None:
    """A ceremony begins in a folder of its own."""
    empty.write()
    result = run("ceremony", "run", empty.plan, "--into", empty.folder, *TWO, "--json")
    assert "is not empty, and no ceremony was begun in it" in result.document["error"]["reason"]


# ---- verify


def test_verification_needs_no_pkcs11(held: Hall, tmp_path: Path) -> None:
    """It runs where python-pkcs11 cannot be imported and no token is, and writes a page for people."""
    program = "import sys\nsys.modules['pkcs11'] = None\nfrom cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    page = tmp_path / "page.html"
    arguments = ["ceremony", "verify", str(held.transcript), "--genesis", str(held.genesis), "--html", str(page)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "SOFTHSM2_CONF": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "signed by anna, carla; no device has an identity key yet" in done.stdout
    assert "The ceremony of prod holds: 8 steps." in done.stdout
    html = page.read_text()
    digest = json.loads(held.genesis.read_bytes())["authentication"]
    assert digest in html
    assert "device-b, on the token SoftHSM project SoftHSM v2" in html
    assert "The tokens were not audited in this ceremony" in html


def test_a_tampered_transcript_is_refused_with_its_step(run: Run, held: Hall, tmp_path: Path) -> None:
    """One changed byte, one removed line, two exchanged lines."""
    lines = held.transcript.read_bytes().splitlines(keepends=True)
    changed = bytearray(lines[3])
    changed[len(changed) // 2] ^= 1
    for number, data in (
        (4, [*lines[:3], bytes(changed), *lines[4:]]),
        (3, [*lines[:2], *lines[3:]]),
        (6, [*lines[:5], lines[6], lines[5], lines[7]]),
        (8, lines[:7]),
    ):
        path = tmp_path / "transcript"
        path.write_bytes(b"".join(data))
        result = run("ceremony", "verify", path, "--genesis", held.genesis, "--json")
        assert result.code == 4
        assert f"at step {number}: " in result.document["error"]["reason"]


def test_block_0_must_be_the_ceremonys(run: Run, held: Hall, tmp_path: Path, built: tuple[Path, Any]) -> None:
    """A network that one person made says so for ever; another ceremony's block does not fit."""
    alone = run("ceremony", "verify", held.transcript, "--genesis", built[0] / "genesis.json", "--json")
    assert alone.document["error"]["code"] == "no-ceremony"
    assert "made without a ceremony: its genesis block says so for ever" in alone.document["error"]["reason"]
    broken = tmp_path / "genesis.json"
    broken.write_bytes(held.genesis.read_bytes()[:-40])
    assert run("ceremony", "verify", held.transcript, "--genesis", broken, "--json").document["error"]["code"] == (
        "bad-genesis"
    )


def test_status_says_whether_there_was_a_ceremony(run: Run, held: Hall, built: tuple[Path, Any]) -> None:
    """The digest of the transcript, or that there was none."""
    digest = check_genesis(Block.decode(held.genesis.read_bytes())).registry.channel.ceremony
    assert digest in run("network", "status", held.network).out.replace("\n", "")
    assert "no ceremony" in run("network", "status", built[0]).out


def test_keys_in_the_transcript_are_on_the_tokens(held: Hall) -> None:
    """As many objects as keys were generated, two halves each: nothing else was made."""
    transcript = Transcript.read(held.transcript.read_bytes())
    for step in transcript.steps:
        if isinstance(step.act, Generated):
            assert objects(held, step.act.device) == 2 * len(step.act.keys)


def test_no_ceremony_stays_no_ceremony(built: tuple[Path, Any]) -> None:
    """Not even all administrators together can say later that there was one."""
    view = check_genesis(Block.decode((built[0] / "genesis.json").read_bytes())).registry
    channel = msgspec.structs.replace(view.channel, ceremony="ab" * 32)
    call = Call(client="admin", transaction="0" * 64, registry=view, height=1, time=0)
    with pytest.raises(RejectedError, match="stays as block 0 says, for ever"):
        contract.CONTRACT["put"].run(contract.Put((channel,)), call, {})


@pytest.mark.requirement("K-5", "K-6")
def test_a_demanded_tier_is_audited_in_the_ceremony(run: Run, tmp_path: Path) -> None:
    """The token is attacked before block 0; the statement stands in the transcript and in the registry."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    hall.write(top=['network = "prod"', "administrators_needed = 2", 'least_tier = "probed"'])
    done = run("ceremony", "run", hall.plan, "--into", hall.network, *TWO, "--json")
    assert (done.code, done.document["steps"]) == (0, 7)
    verified = run("ceremony", "verify", hall.transcript, "--genesis", hall.genesis, "--json").document
    assert {key["tier"] for key in verified["keys"]} == {"probed"}
    assert "audited by profile strict: pass; a software token" in verified["steps"][4]["said"][0]
    view = check_genesis(Block.decode(hall.genesis.read_bytes())).registry
    (node,) = [key["key"] for key in verified["keys"] if key["label"] == "node/A"]
    assert (view.channel.least_tier, view.tier("device-a", KeyId(node))) == ("probed", "probed")
