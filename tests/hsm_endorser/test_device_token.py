import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from hsm_endorser import token as token_module
from hsm_endorser.errors import (
    PinFileError,
    PinRefusedError,
    TokenBusyError,
    TokenQuarantinedError,
    TokenRefusedError,
    TokenUnavailableError,
    UnknownKeyError,
)
from hsm_endorser.token import Pinned, Token
from hsm_endorser.token_key import normalise
from hsm_endorser.worker_messages import Failed, Open, Opened, Sign, Signatures
from protocol.errors import BadSignatureError
from protocol.keys import P256_ORDER, check_low_s, signing_input
from tests.hsm_endorser.device_world import SoftToken, eventually, new_token

DIGEST = hashlib.sha256(b"message").digest()
HERE = Path(__file__).parent


def run(token: SoftToken, *arguments: str) -> str:
    """What a Python program prints that uses the token's module by itself."""
    environment = {**os.environ, **token.config.environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def of_process(pid: int, name: str) -> bytes:
    """A file of /proc about a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def opened(token: SoftToken, **options) -> Token:
    """The token, opened as a device would."""
    return await Token.start(token.config, **options)


async def with_identity(token: SoftToken) -> Token:
    """The token, opened, with an identity key to which it is pinned."""
    started = await opened(token)
    await started.generate("identity", "ecdsa-p256-sha256")
    await started.restart()  # pins what is there now
    return started


def attack(token: SoftToken) -> dict:
    """What `attack_key.py` finds on the token."""
    uri = token.config.uri
    return json.loads(run(token, str(HERE / "attack_key.py"), str(uri.module), str(uri.pin_file)))


@pytest.mark.requirement("K-1")
async def test_a_key_is_generated_by_the_strict_template(token: SoftToken) -> None:
    """Read back through another session, every attribute is as K-1 demands, and the key was made on the token."""
    started = await opened(token)
    await started.generate("victim", "ecdsa-p256-sha256")
    await started.close()
    expected = dict.fromkeys(("TOKEN", "PRIVATE", "SENSITIVE", "SIGN"), True)
    expected |= dict.fromkeys(
        ("EXTRACTABLE", "MODIFIABLE", "COPYABLE", "DESTROYABLE", "DECRYPT", "UNWRAP", "DERIVE"), False
    )
    expected |= dict.fromkeys(("LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"), True)
    assert attack(token)["attributes"] == expected


@pytest.mark.requirement("K-1")
async def test_every_attack_on_a_key_is_refused_by_the_token(token: SoftToken) -> None:
    """Reading, copying, changing, deriving, wrapping and destroying all fail, each with the token's own reason."""
    started = await opened(token)
    await started.generate("victim", "ecdsa-p256-sha256")
    await started.close()
    assert attack(token)["attempts"] == {
        "read": "AttributeSensitive",
        "copy": "ActionProhibited",
        "plain copy": "ActionProhibited",
        "set EXTRACTABLE": "ActionProhibited",
        "set SENSITIVE": "ActionProhibited",
        "set DERIVE": "ActionProhibited",
        "set ID": "ActionProhibited",
        "set LABEL": "ActionProhibited",
        "derive": "KeyFunctionNotPermitted",
        "wrap": "KeyUnextractable",
        "destroy": "ActionProhibited",
    }


@pytest.mark.requirement("E-18")
@pytest.mark.parametrize("scheme", ["ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519"])
async def test_every_kind_of_key_signs(token: SoftToken, scheme) -> None:
    """ECDSA, RSA and Ed25519 keys are generated and sign; the public key alone verifies."""
    started = await opened(token)
    key = await started.generate("k", scheme)
    (signature,) = await started.sign(key.public_key.id, [signing_input(scheme, b"message")])
    key.public_key.verify(signature, b"message", low_s=True)
    await started.close()


async def test_keys_are_found_again_by_their_id(token: SoftToken) -> None:
    """After a restart the same key ids are there, with their labels."""
    started = await opened(token)
    for label in ("one", "two"):
        await started.generate(label, "ecdsa-p256-sha256")
    before = {key_id: key.label for key_id, key in started.keys.items()}
    await started.close()
    again = await opened(token)
    assert {key_id: key.label for key_id, key in again.keys.items()} == before
    await again.close()


async def test_a_signature_with_a_high_s_never_leaves(token: SoftToken) -> None:
    """The token itself makes about half of its signatures with a high s; all 64 that leave have the low one."""
    started = await opened(token)
    key = await started.generate("k", "ecdsa-p256-sha256")
    raw = await started._call(Sign(key.handle, [DIGEST] * 64))
    assert isinstance(raw, Signatures)
    assert any(int.from_bytes(each[32:], "big") > P256_ORDER // 2 for each in raw.signatures)
    for signature in await started.sign(key.public_key.id, [DIGEST] * 64):
        check_low_s(signature)
    await started.close()


@pytest.mark.parametrize("length", [0, 20, 31, 33, 64])
async def test_only_sha256_digests_are_signed(token: SoftToken, length: int) -> None:
    """CKM_ECDSA would sign any length; the worker insists on 32 bytes, and goes on."""
    started = await opened(token)
    key = await started.generate("k", "ecdsa-p256-sha256")
    with pytest.raises(TokenRefusedError, match="InputLength"):
        await started.sign(key.public_key.id, [bytes(length)])
    await started.sign(key.public_key.id, [DIGEST])
    assert started.restarts == 0
    await started.close()


async def test_an_unknown_key_is_not_asked_for(token: SoftToken) -> None:
    """A key that is not on the token is refused here."""
    started = await opened(token)
    with pytest.raises(UnknownKeyError, match="not on this token"):
        await started.sign("0" * 64, [DIGEST])
    await started.close()


async def test_two_keys_of_one_id_are_both_left_alone(token: SoftToken) -> None:
    """A planted public key beside the real one makes the key unusable, with a reason, and harms no other key."""
    started = await opened(token)
    victim = await started.generate("victim", "ecdsa-p256-sha256")
    other = await started.generate("other", "ecdsa-p256-sha256")
    await started.close()
    script = (
        "import sys, pkcs11\n"
        "from pkcs11 import Attribute as A, ObjectClass as O\n"
        "m, p, i = sys.argv[1:]\n"
        "s = next(iter(pkcs11.lib(m).get_tokens())).open(rw=True, user_pin=open(p).read().strip())\n"
        "k = [o for o in s.get_objects({A.CLASS: O.PUBLIC_KEY}) if bytes(o[A.ID]).hex() == i][0]\n"
        "s.create_object({A.CLASS: O.PUBLIC_KEY, A.KEY_TYPE: k[A.KEY_TYPE], A.TOKEN: True, A.ID: k[A.ID],\n"
        "  A.LABEL: k[A.LABEL], A.EC_PARAMS: k[A.EC_PARAMS], A.EC_POINT: k[A.EC_POINT], A.VERIFY: True})\n"
    )
    uri = token.config.uri
    run(token, "-c", script, str(uri.module), str(uri.pin_file), victim.handle.hex())
    again = await opened(token)
    assert other.public_key.id in again.keys
    assert victim.public_key.id not in again.keys
    assert "2 public objects share its id" in again.problems[0]
    await again.close()


@pytest.mark.requirement("E-20")
async def test_the_identity_key_is_made_once(token: SoftToken) -> None:
    """The identity key never changes: a second one is refused."""
    started = await opened(token)
    await started.generate("identity", "ecdsa-p256-sha256")
    with pytest.raises(TokenRefusedError, match="never changes"):
        await started.generate("identity", "ecdsa-p256-sha256")
    await started.close()


@pytest.mark.requirement("K-9")
async def test_a_killed_worker_is_replaced_within_a_second(token: SoftToken) -> None:
    """After SIGKILL the token is back in under a second, answers a challenge, and logged in once for it."""
    started = await with_identity(token)
    before, pid = started.restarts, started.worker_pid
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: started.worker_pid not in {None, pid} and started.restarts > before)
    await started.challenge(started.identity.public_key.id)
    assert time.monotonic() - began < 1.0
    assert started.restarts == before + 1
    await started.close()


async def test_a_worker_killed_during_a_call_fails_that_call_alone(token: SoftToken) -> None:
    """The call that was being made fails as unavailable; the next one succeeds."""
    started = await with_identity(token)
    key = started.identity.public_key.id
    os.kill(started.worker_pid, signal.SIGSTOP)
    call = asyncio.create_task(started.sign(key, [DIGEST]))
    await asyncio.sleep(0.05)
    os.kill(started.worker_pid, signal.SIGKILL)
    with pytest.raises(TokenUnavailableError, match="died during the call"):
        await call
    await started.sign(key, [DIGEST])
    await started.close()


async def test_a_hanging_worker_is_killed_at_the_deadline(token: SoftToken) -> None:
    """A stopped worker costs one deadline, is killed, and the token recovers."""
    config = msgspec.structs.replace(token.config, seconds=0.3)
    started = await Token.start(config)
    key = await started.generate("k", "ecdsa-p256-sha256")
    pid = started.worker_pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(TokenUnavailableError, match=r"within 0\.3 s"):
        await started.sign(key.public_key.id, [DIGEST])
    assert time.monotonic() - began < 1.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await started.sign(key.public_key.id, [DIGEST])
    await started.close()


async def test_the_worker_dies_with_its_parent(token: SoftToken) -> None:
    """When the process that started a worker is killed, the worker is gone too."""
    program = (
        "import asyncio, sys\n"
        "from hsm_endorser.token import Token, TokenConfig\n"
        "async def main():\n"
        "    t = await Token.start(TokenConfig.parse(sys.argv[1], {'SOFTHSM2_CONF': sys.argv[2]}))\n"
        "    print(t.worker_pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(  # noqa: ASYNC220  it is waited for below
        [sys.executable, "-c", program, token.created.uri, token.created.environment["SOFTHSM2_CONF"]],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone() -> bool:
        try:
            return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    await eventually(gone)


@pytest.mark.requirement("K-9")
async def test_a_swapped_token_is_quarantined(token: SoftToken, tmp_path: Path) -> None:
    """Another token of the same name in the reader: nothing is signed, and no restart changes that."""
    started = await with_identity(token)
    key = started.identity.public_key.id
    (token.folder / "tokens").rename(tmp_path / "taken away")
    new_token(token.folder)
    os.kill(started.worker_pid, signal.SIGKILL)
    await eventually(lambda: "is not the one that the URI names" in started.trouble)
    with pytest.raises(TokenQuarantinedError):
        await started.sign(key, [DIGEST])
    (token.folder / "tokens").rename(tmp_path / "the other")
    (tmp_path / "taken away").rename(token.folder / "tokens")
    with pytest.raises(TokenQuarantinedError):
        await started.restart()
    await started.close()


@pytest.mark.requirement("K-9")
async def test_a_token_that_is_not_the_enrolled_one_is_quarantined(token: SoftToken) -> None:
    """Where the URI does not name a serial, the pin still does."""
    started = await with_identity(token)
    info, identity = started.info, started.identity.public_key.id
    await started.close()
    no_serial = msgspec.structs.replace(token.config, uri=msgspec.structs.replace(token.config.uri, serial=None))
    other = msgspec.structs.replace(info, serial="0000000000000000")
    with pytest.raises(TokenQuarantinedError, match="serial 0000000000000000"):
        await Token.start(no_serial, pinned=Pinned(other, identity))
    with pytest.raises(TokenQuarantinedError, match="does not hold the enrolled identity key"):
        await Token.start(no_serial, pinned=Pinned(info, "0" * 64))


@pytest.mark.requirement("K-9")
async def test_a_member_of_an_enrolled_group_is_the_enrolled_token(token: SoftToken) -> None:
    """A group of tokens is enrolled as one, by all of its serials."""
    started = await with_identity(token)
    group = msgspec.structs.replace(started.info, serial="0000", group=("0000", started.info.serial))
    identity = started.identity.public_key.id
    await started.close()
    again = await Token.start(token.config, pinned=Pinned(group, identity))
    await again.challenge(identity)
    await again.close()


@pytest.mark.requirement("K-9")
async def test_a_wrong_signature_quarantines_the_token(token: SoftToken) -> None:
    """Two keys exchanged on the token: the first signature does not verify, and is the last one asked for."""
    started = await with_identity(token)
    one, two = [await started.generate(label, "ecdsa-p256-sha256") for label in ("one", "two")]
    started.keys[one.public_key.id] = msgspec.structs.replace(one, handle=two.handle)
    with pytest.raises(TokenQuarantinedError, match="wrong signature"):
        await started.sign(one.public_key.id, [DIGEST])
    with pytest.raises(TokenQuarantinedError):
        await started.sign(two.public_key.id, [DIGEST])
    await started.close()


async def test_a_token_that_is_away_comes_back(token: SoftToken, tmp_path: Path) -> None:
    """Without its token a device waits, and signs again when the token is back, without being told."""
    started = await with_identity(token)
    key = started.identity.public_key.id
    (token.folder / "tokens").rename(tmp_path / "away")
    (token.folder / "tokens").mkdir()
    os.kill(started.worker_pid, signal.SIGKILL)
    await eventually(lambda: "NoSuchToken" in started.trouble)
    with pytest.raises(TokenUnavailableError, match="NoSuchToken"):
        await started.sign(key, [DIGEST])
    (token.folder / "tokens").rmdir()
    (tmp_path / "away").rename(token.folder / "tokens")
    await eventually(lambda: not started.trouble, seconds=10)
    await started.sign(key, [DIGEST])
    await started.close()


async def test_a_patient_start_waits_for_the_token(token: SoftToken, tmp_path: Path) -> None:
    """A device may start before its token is there."""
    (token.folder / "tokens").rename(tmp_path / "away")
    (token.folder / "tokens").mkdir()
    with pytest.raises(TokenUnavailableError, match="NoSuchToken"):
        await opened(token)
    started = await opened(token, patient=True)
    assert "NoSuchToken" in started.trouble
    (token.folder / "tokens").rmdir()
    (tmp_path / "away").rename(token.folder / "tokens")
    await eventually(lambda: not started.trouble, seconds=10)
    await started.close()


@pytest.mark.requirement("S-6")
async def test_a_refused_pin_is_not_tried_again(token: SoftToken) -> None:
    """One wrong login and no more, whatever is asked afterwards; the operator's restart tries the corrected file."""
    right = (token.folder / "pin").read_text()
    (token.folder / "pin").write_text("wrong-pin-9876\n")
    started = await opened(token, patient=True)
    assert "PinIncorrect" in started.trouble
    assert "wrong-pin-9876" not in started.trouble
    before = started.restarts
    for _ in range(3):
        with pytest.raises(PinRefusedError, match="not tried again"):
            await started.generate("k", "ecdsa-p256-sha256")
    await asyncio.sleep(0.3)
    assert started.restarts == before
    (token.folder / "pin").write_text(right)
    await started.restart()
    await started.generate("k", "ecdsa-p256-sha256")
    await started.close()


@pytest.mark.requirement("S-6")
async def test_an_open_pin_file_stops_the_start(token: SoftToken) -> None:
    """With a PIN file that others can read, no worker is even started."""
    (token.folder / "pin").chmod(0o644)
    with pytest.raises(PinFileError, match="chmod 600"):
        await opened(token)


@pytest.mark.requirement("S-6")
async def test_the_pin_is_in_no_argument_and_no_environment(token: SoftToken, capfd) -> None:
    """Of this process, its worker and all their output, none shows the PIN."""
    started = await with_identity(token)
    for pid in (os.getpid(), started.worker_pid):
        for name in ("cmdline", "environ"):
            try:
                shown = of_process(pid, name)
            except PermissionError:
                assert (pid, name) == (started.worker_pid, "environ")  # a worker cannot be looked into
                continue
            assert token.pin.encode() not in shown
    os.kill(started.worker_pid, signal.SIGKILL)
    await started.close()
    out, err = capfd.readouterr()
    assert token.pin not in out + err


async def test_the_worker_leaves_no_core_and_has_the_given_environment_alone(token: SoftToken) -> None:
    """Core dumps are off, and nothing of this process's environment is inherited."""
    started = await opened(token)
    limits = of_process(started.worker_pid, "limits").decode()
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]
    environment = of_process(started.worker_pid, "environ").split(b"\0")
    names = {each.partition(b"=")[0].decode() for each in environment if each}
    assert names == {"PATH", "LC_ALL", "SOFTHSM2_CONF", "PYTHONPATH"}
    await started.close()


async def test_calls_beyond_the_bound_are_refused(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue before a token has an end."""
    monkeypatch.setattr(token_module, "MAX_WAITING", 2)
    started = await opened(token)
    key = await started.generate("k", "ecdsa-p256-sha256")
    os.kill(started.worker_pid, signal.SIGSTOP)
    calls = [asyncio.create_task(started.sign(key.public_key.id, [DIGEST])) for _ in range(3)]
    with pytest.raises(TokenBusyError):
        await calls[2]
    os.kill(started.worker_pid, signal.SIGCONT)
    await asyncio.gather(*calls[:2])
    await started.close()


async def test_a_caller_that_goes_away_disturbs_nobody(token: SoftToken) -> None:
    """A cancelled call does not put the next caller's answer out of step."""
    started = await opened(token)
    one, two = [await started.generate(label, "ecdsa-p256-sha256") for label in ("one", "two")]
    os.kill(started.worker_pid, signal.SIGSTOP)
    gone = asyncio.create_task(started.sign(one.public_key.id, [DIGEST]))
    await asyncio.sleep(0.02)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    os.kill(started.worker_pid, signal.SIGCONT)
    await started.sign(two.public_key.id, [DIGEST])
    assert started.restarts == 0
    await started.close()


async def test_many_workers_start_at_the_same_moment(token: SoftToken) -> None:
    """Eight workers on one store, started together, all log in at their first try."""
    first = await with_identity(token)
    workers = await asyncio.gather(*(opened(token) for _ in range(8)))
    assert [worker.restarts for worker in workers] == [0] * 8
    for worker in (first, *workers):
        await worker.close()


async def test_the_journal_hears_of_every_challenge(token: SoftToken) -> None:
    """What a key signs to prove itself is told before it is signed, also in a recovery."""
    heard: list[str] = []

    async def journal(key_id, _message) -> None:
        heard.append(key_id)

    started = await opened(token, journal=journal)
    identity = await started.generate("identity", "ecdsa-p256-sha256")
    assert heard == [identity.public_key.id]
    await started.restart()
    assert heard == [identity.public_key.id] * 2
    assert started.signatures == 2
    await started.close()


def test_a_worker_logs_in_once(token: SoftToken) -> None:
    """A second `Open` is refused by the worker itself, and an unopened worker signs nothing."""
    uri = token.config.uri
    request = Open(
        module=str(uri.module),
        pin_file=str(uri.pin_file),
        token=uri.token,
        manufacturer=None,
        model=None,
        serial=uri.serial,
        slot_id=None,
        lock_seconds=1,
    )
    script = (
        "import sys, msgspec\n"
        "from hsm_endorser.token_worker import Worker\n"
        "from hsm_endorser.worker_messages import *\n"
        "w = Worker()\n"
        "o = msgspec.json.decode(sys.argv[1], type=Open)\n"
        "print(msgspec.json.encode([w.handle(Sign(b'x', [])), w.handle(o), w.handle(o)]).decode())\n"
    )
    output = run(token, "-c", script, msgspec.json.encode(request).decode())
    first, second, third = msgspec.json.decode(output, type=list[Failed | Opened])
    assert (first.ckr, type(second), third.ckr) == ("NotOpen", Opened, "AlreadyOpen")


async def test_an_odd_answer_is_a_wrong_signature(token: SoftToken) -> None:
    """Whatever a broken module returns as a signature quarantines it: wrong length, zero, beyond the order."""
    started = await opened(token)
    key = await started.generate("k", "ecdsa-p256-sha256")
    for raw in (b"", bytes(64), b"\xff" * 64, bytes(63) + b"\x01"):
        with pytest.raises(BadSignatureError):
            normalise(key.public_key, [DIGEST], [raw])
    await started.close()
