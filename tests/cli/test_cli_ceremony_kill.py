"""A ceremony that is killed at every point of its way, and taken up again each time: no key is made twice (K-11)."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.ceremony import plan as plans
from cli.ceremony import run as ceremonies
from cli.ceremony.record import Record
from cli.main import main
from hsm_endorser import dry_run
from hsm_endorser.errors import TokenRefusedError
from hsm_endorser.guard import Guard
from hsm_endorser.signing import GuardedToken
from protocol.ceremony import Generated
from protocol.transcript import Transcript
from tests.cli.ceremony_hall import Hall
from tests.cli.conftest import Result

Run = Callable[..., Result]

pytestmark = pytest.mark.requirement("K-11", "K-10")


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, when: Callable[..., bool]) -> Callable[[], None]:
    """Arrange to die after a call of `owner.name`, when its arguments are those."""

    def arrange() -> None:
        original = getattr(owner, name)
        if asyncio.iscoroutinefunction(original):

            async def late(*arguments: Any, **options: Any) -> Any:
                result = await original(*arguments, **options)
                if when(*arguments):
                    die()
                return result

            setattr(owner, name, late)
        else:

            def later(*arguments: Any, **options: Any) -> Any:
                result = original(*arguments, **options)
                if when(*arguments):
                    die()
                return result

            setattr(owner, name, later)

    return arrange


def torn(step: int) -> Callable[[], None]:
    """Arrange to die in the middle of writing a step."""

    def arrange() -> None:
        def half(record: Record, line: bytes) -> Any:
            if len(record.transcript.steps) + 1 == step:
                os.write(record._descriptor, line[: len(line) // 2])
                die()
            return original(record, line)

        original = Record.append
        Record.append = half  # type: ignore[method-assign]

    return arrange


def kept(step: int) -> Callable[[], None]:
    """Arrange to die right after a step is on the disk."""
    return after(Record, "append", lambda record, _line: len(record.transcript.steps) == step)


def killed(hall: Hall, arrange: Callable[[], None]) -> None:
    """Run the ceremony in a process that dies at the arranged point."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        arrange()
        main(["ceremony", "run", str(hall.plan), "--into", str(hall.network), "--holder", "anna", "--holder", "bert"])
        os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the ceremony was not killed where it should have been: status {status}"


POINTS = {
    "before the declaration is whole": torn(1),
    "while the generation is agreed upon": torn(2),
    "after the guard of the device was created": after(Guard, "create", lambda *_: True),
    "after the identity key was made": after(GuardedToken, "generate", lambda _self, label, *_: label == "identity"),
    "after the node's key was made": after(GuardedToken, "generate", lambda _self, label, *_: label == "node/A"),
    "after the CA's key was made": after(GuardedToken, "generate", lambda _self, label, *_: label == "ca/ca"),
    "while the keys are written down": torn(3),
    "after the keys were written down": kept(3),
    "while the certificate is written down": torn(4),
    "while the first set is written down": torn(5),
    "after the first set was written down": kept(5),
    "after the center signed block 0": after(GuardedToken, "sign", lambda _self, purpose, *_: purpose == "header"),
    "after block 0 was written": after(ceremonies, "_write", lambda path, _data: path.name == "genesis.json"),
    "while the end is written down": torn(6),
    "after the end was written down": kept(6),
}


def test_a_ceremony_survives_a_kill_at_every_point(run: Run, tmp_path: Path) -> None:
    """Killed fifteen times, each time elsewhere, it ends as if nothing had been: four keys, one block 0."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    headers = set()
    for point in POINTS.values():
        killed(hall, point)
        if hall.genesis.exists():
            headers.add(hall.genesis.read_bytes())
    done = run("ceremony", "run", hall.plan, "--into", hall.network, "--holder", "anna", "--holder", "bert", "--json")
    assert (done.code, done.document["steps"]) == (0, 6)
    assert run("ceremony", "verify", hall.transcript, "--genesis", hall.genesis, "--json").code == 0
    assert headers == {hall.genesis.read_bytes()}
    token = hall.tokens["device-a"]
    sight = asyncio.run(dry_run.look(plans.token_config(hall.plan, token.uri, token.environment)))
    assert (sight.objects, sight.labels) == (8, ("ca/ca", "center/center-1", "identity", "node/A"))
    (generated,) = [
        step.act for step in Transcript.read(hall.transcript.read_bytes()).steps if isinstance(step.act, Generated)
    ]
    assert [key.label for key in generated.keys] == ["identity", "node/A", "center/center-1", "ca/ca"]


def test_a_key_from_elsewhere_is_not_taken(run: Run, tmp_path: Path) -> None:
    """Whoever puts a key under a planned label onto the token during an interruption stops the ceremony."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    killed(hall, kept(2))
    planted = ["ceremony", "key", "--key", hall.tokens["device-a"].uri, "--public", tmp_path / "x.pub"]
    store = hall.tokens["device-a"].environment["SOFTHSM2_CONF"]
    assert run(*planted, "--label", "node/A", "--environment", f"SOFTHSM2_CONF={store}").code == 0
    result = run("ceremony", "run", hall.plan, "--into", hall.network, "--holder", "anna", "--holder", "bert", "--json")
    assert result.document["error"]["code"] == "foreign-key"
    assert hall.transcript.read_bytes().count(b"\n") == 2


def test_a_changed_transcript_stops_the_ceremony(run: Run, tmp_path: Path) -> None:
    """What somebody wrote into it meanwhile is refused, and not taken for a crash."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    killed(hall, kept(2))
    lines = hall.transcript.read_bytes().splitlines(keepends=True)
    hall.transcript.write_bytes(lines[0] + lines[1].replace(b"A", b"B", 1))
    result = run("ceremony", "run", hall.plan, "--into", hall.network, "--holder", "anna", "--holder", "bert", "--json")
    assert (result.code, result.document["error"]["code"]) == (4, "bad-transcript")
    assert "at step 2" in result.document["error"]["reason"]


def test_a_key_that_a_token_made_otherwise_is_never_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays on the token and looks like any other: the ceremony is spoilt, and does not go on by trying again."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    original = GuardedToken.generate

    async def otherwise(signer: GuardedToken, label: str, holder: str, scheme: Any) -> Any:
        made = await original(signer, label, holder, scheme)
        if label == "node/A":
            raise TokenRefusedError("TemplateIgnored", "the new key has SENSITIVE=False where True was asked for")
        return made

    monkeypatch.setattr(GuardedToken, "generate", otherwise)
    command = ["ceremony", "run", hall.plan, "--into", hall.network, "--holder", "anna", "--holder", "bert", "--json"]
    assert run(*command).document["error"]["code"] == "spoilt"
    monkeypatch.undo()
    again = run(*command)
    assert again.document["error"]["code"] == "spoilt"
    assert "SENSITIVE=False" in again.document["error"]["reason"]
    assert hall.transcript.read_bytes().count(b"\n") == 2


def test_a_guard_that_was_half_created_is_created_again(run: Run, tmp_path: Path) -> None:
    """No key was made behind it yet, so nothing can have been signed."""
    hall = Hall(tmp_path, devices={"device-a": "A"})
    killed(hall, kept(2))
    guard = hall.network / "devices/device-a/guard.db"
    guard.parent.mkdir(exist_ok=True)
    guard.write_bytes(b"SQLite format 3\0")
    command = ["ceremony", "run", hall.plan, "--into", hall.network, "--holder", "anna", "--holder", "bert", "--json"]
    assert run(*command).code == 0
    assert run("ceremony", "verify", hall.transcript, "--genesis", hall.genesis, "--json").code == 0
