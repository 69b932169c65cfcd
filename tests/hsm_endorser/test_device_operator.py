"""What an operator does with a running device: drain, unlock, release, change the PIN. The token is real."""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from hsm_endorser.app import create_control_app
from hsm_endorser.errors import PinFileError, PinRefusedError, TokenError, TokenRefusedError, TokenStoppedError
from hsm_endorser.service import serve
from hsm_endorser.token import Token
from hsm_endorser.worker_messages import Open, Pin
from softhsm.shim import Control
from tests.hsm_endorser.device_world import RunningDevice, World, eventually, running
from tests.hsm_endorser.shimmed_token import Shimmed, shimmed, shimmed_config, with_keys
from transport.address import Address
from transport.connect import connect

figures = logging.getLogger("figures")
DIGEST = hashlib.sha256(b"message").digest()
NEW_PIN = "another-pin-4711"


@contextlib.asynccontextmanager
async def operated(device: RunningDevice) -> AsyncIterator[httpx2.AsyncClient]:
    """The operator's listener of a device."""
    parts = device.parts
    app = create_control_app(parts.operator, parts.health, parts.metrics)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://operator") as http:
        yield http


# --- drain and resume ----------------------------------------------------------------------------------------


async def test_draining_finishes_what_is_there_and_takes_nothing_new(world: World, tmp_path: Path) -> None:
    """A request under way gets its votes; a new one is refused as draining; the answer comes when all is done."""
    control = Control.create(tmp_path / "control")
    async with running(shimmed_config(world, control)) as device, operated(device) as operator:
        control.set("sign", "delay", milliseconds=500, times=1)
        asked = asyncio.create_task(device.endorse((world.network.evidence("x"), ["A"])))
        await eventually(lambda: device.parts.device.queued == 1)
        drained = asyncio.create_task(operator.post("/v1/drain"))
        await eventually(lambda: bool(device.parts.device.gate.closed_because))
        refused = await device.http.post("/v1/sign-header", content=b"{}")
        assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (503, "draining")
        assert not drained.done()
        status = (await drained).json()
        assert (status["ready"], status["reason"]) == (False, "gate: draining")
        assert asked.done()
        assert [vote.verdict for vote in asked.result().answers[0].votes] == ["approve"]
        assert (await device.http.get("/health/ready")).status_code == 503
        status = (await operator.post("/v1/resume")).json()
        assert (status["ready"], status["reason"]) == (True, "")


async def test_a_drain_that_takes_too_long_says_so(world: World, tmp_path: Path) -> None:
    """The gate stays closed, and the answer says what is still under way."""
    control = Control.create(tmp_path / "control")
    async with running(shimmed_config(world, control)) as device, operated(device) as operator:
        control.set("sign", "delay", milliseconds=800, times=1)
        asked = asyncio.create_task(device.endorse((world.network.evidence("x"), ["A"])))
        await eventually(lambda: device.parts.device.queued == 1)
        answer = await operator.post("/v1/drain?wait=0.1")
        assert answer.status_code == 503
        assert "1 requests were still under way" in answer.json()["detail"]
        await asked
        assert device.parts.device.gate.closed_because == "draining"


# --- unlock --------------------------------------------------------------------------------------------------


def locked(made: Shimmed) -> Shimmed:
    """The same token, its PIN in nobody's file."""
    uri = msgspec.structs.replace(made.config.uri, pin_file=None)
    return msgspec.structs.replace(made, config=msgspec.structs.replace(made.config, uri=uri))


@pytest.mark.requirement("S-6", "K-9")
async def test_a_locked_token_waits_for_its_pin(tmp_path: Path) -> None:
    """Without a PIN file no login is made until an operator enters the PIN, which also serves later recoveries."""
    made = locked(shimmed(tmp_path / "token"))
    pinned, _, node = await with_keys(made)
    token = await Token.start(made.config, pinned=pinned, patient=True)
    logins = made.control.calls("login")
    assert "hsm-endorser device unlock" in token.trouble
    with pytest.raises(TokenError, match="nobody has entered the PIN"):
        await token.sign(node.public_key.id, [DIGEST])
    assert made.control.calls("login") == logins
    await token.unlock(Pin(made.soft.pin))
    await token.sign(node.public_key.id, [DIGEST])
    assert token.worker_pid is not None
    os.kill(token.worker_pid, signal.SIGKILL)
    await eventually(lambda: bool(token.trouble))
    await eventually(lambda: not token.trouble, seconds=10)
    assert made.control.calls("login") == logins + 2
    await token.close()


@pytest.mark.requirement("S-6")
async def test_a_wrong_pin_is_entered_once(tmp_path: Path) -> None:
    """The token refuses it: one login, the PIN is forgotten, and the operator may enter another."""
    made = locked(shimmed(tmp_path / "token"))
    pinned, _, node = await with_keys(made)
    token = await Token.start(made.config, pinned=pinned, patient=True)
    logins = made.control.calls("login")
    with pytest.raises(PinRefusedError, match="that was entered"):
        await token.unlock(Pin("wrong-pin-9876"))
    await asyncio.sleep(0.3)
    assert made.control.calls("login") == logins + 1
    assert "wrong-pin-9876" not in token.trouble
    await token.unlock(Pin(made.soft.pin))
    await token.sign(node.public_key.id, [DIGEST])
    assert made.control.calls("login") == logins + 2
    await token.close()


@pytest.mark.requirement("S-6")
async def test_a_device_is_unlocked_over_its_control_socket(world: World, capfd) -> None:
    """Not ready as locked, then ready; the PIN shows up nowhere, and the public listener has no such door."""
    soft = world.enrolled.token
    uri = msgspec.structs.replace(world.config.token.uri, pin_file=None)
    control = Address(path=world.folder / "control.sock")
    config = world.config.model_copy(
        update={"token": world.config.token.model_copy(update={"uri": uri}), "control": control}
    )
    stop = asyncio.Event()
    service = asyncio.create_task(serve(config, stop))
    try:
        await eventually(lambda: bool(control.path and control.path.exists()) or service.done(), seconds=10)
        assert control.path
        assert control.path.stat().st_mode & 0o777 == 0o600
        async with connect(control, timeout=10) as operator, connect(config.listen[0], timeout=10) as public:
            before = (await operator.get("/v1/status")).json()
            assert (before["ready"], "device unlock" in before["reason"]) == (False, True)
            assert (await public.post("/v1/unlock", content=soft.pin)).status_code == 404
            short = await operator.post("/v1/unlock", content=b"123")
            assert (short.status_code, short.json()["type"].rpartition(":")[2]) == (422, "bad-pin-file")
            assert (await operator.post("/v1/unlock", content=soft.pin + "\n")).json()["ready"]
    finally:
        stop.set()
        await service
    out, err = capfd.readouterr()
    assert soft.pin not in out + err


def test_a_pin_does_not_show_itself() -> None:
    """The messages that carry a PIN print as something else."""
    request = Open(
        module="m", pin_file=None, pin=Pin(NEW_PIN), token=None, manufacturer=None, model=None, serial=None,
        slot_id=None, lock_seconds=1,
    )  # fmt: skip
    assert NEW_PIN not in f"{request} {request!r} {Pin(NEW_PIN)!r}"


# --- a change of the PIN -------------------------------------------------------------------------------------


class Changing(msgspec.Struct, frozen=True):
    """An open token whose PIN is to be changed."""

    made: Shimmed
    token: Token

    @property
    def pin_file(self) -> Path:
        """Where the PIN stands."""
        return self.made.soft.folder / "pin"

    @property
    def staged(self) -> Path:
        """Where the new one stands during the change."""
        return self.made.soft.folder / "pin.new"

    async def again(self) -> Token:
        """Another process opens the same token."""
        return await Token.start(self.made.config, pinned=self.token._pinned, patient=True)


@pytest.fixture
async def changing(tmp_path: Path) -> AsyncIterator[Changing]:
    """An open token with keys."""
    made = shimmed(tmp_path / "token")
    pinned, _, _ = await with_keys(made)
    token = await Token.start(made.config, pinned=pinned)
    yield Changing(made, token)
    await token.close()


@pytest.mark.requirement("S-6")
async def test_a_pin_is_changed(changing: Changing) -> None:
    """The file has the new PIN (0600), the token takes it and no longer the old one; one login for the change."""
    old, logins = changing.made.soft.pin, changing.made.control.calls("login")
    await changing.token.change_pin(None, Pin(NEW_PIN))
    assert changing.pin_file.read_text().strip() == NEW_PIN
    assert changing.pin_file.stat().st_mode & 0o777 == 0o600
    assert not changing.staged.exists()
    assert changing.made.control.calls("login") == logins + 1
    await changing.token.challenge(changing.token.identity.public_key.id)  # type: ignore[union-attr]
    changing.pin_file.write_text(old)
    with pytest.raises(PinRefusedError):
        await changing.token.restart()


@pytest.mark.requirement("S-6")
async def test_a_change_over_http_drains_first(world: World) -> None:
    """What is under way ends, the PIN changes, and the gate is open again; a drained device stays drained."""
    async with running(world.config) as device, operated(device) as operator:
        old = world.enrolled.token.pin
        body = msgspec.json.encode({"new": NEW_PIN, "old": old})
        try:
            answer = await operator.post("/v1/change-pin", content=body)
            assert (answer.status_code, answer.json()["ready"]) == (200, True)
            await operator.post("/v1/drain")
        finally:
            back = await operator.post("/v1/change-pin", content=msgspec.json.encode({"new": old}))
        assert back.json()["reason"] == "gate: draining"
        assert world.enrolled.token.pin == old


async def test_a_wrong_old_pin_changes_nothing(changing: Changing) -> None:
    """The token refuses; the old PIN stays everywhere, and the token in service."""
    old = changing.made.soft.pin
    with pytest.raises(TokenRefusedError, match="PinIncorrect"):
        await changing.token.change_pin(Pin("wrong-pin-9876"), Pin(NEW_PIN))
    assert (changing.made.soft.pin, changing.staged.exists(), changing.token.trouble) == (old, False, "")


async def test_a_pin_that_cannot_be_kept_is_not_set(changing: Changing) -> None:
    """When the new PIN cannot be written, the token is not even asked."""
    changing.staged.mkdir()
    with pytest.raises(PinFileError, match="cannot be written"):
        await changing.token.change_pin(None, Pin(NEW_PIN))
    changing.staged.rmdir()
    await changing.token.restart()


async def test_a_crash_after_the_token_changed_loses_nothing(changing: Changing) -> None:
    """Step 4 done, step 5 not: the next start opens the token with `pin.new`, and finishes the change."""
    await changing.token.change_pin(None, Pin(NEW_PIN))
    await changing.token.close()
    changing.pin_file.rename(changing.staged)
    changing.pin_file.write_text("the-old-one-1234\n")
    changing.pin_file.chmod(0o600)
    logins = changing.made.control.calls("login")
    again = await changing.again()
    assert again.trouble == ""
    assert changing.made.control.calls("login") == logins + 1
    assert (changing.made.soft.pin, changing.staged.exists()) == (NEW_PIN, False)
    await again.close()


async def test_a_crash_before_the_token_changed_loses_nothing(changing: Changing) -> None:
    """Step 3 done, step 4 not: one try with `pin.new`, refused with what to do; without the file, all is as before."""
    await changing.token.close()
    changing.staged.write_text(NEW_PIN + "\n")
    changing.staged.chmod(0o600)
    logins = changing.made.control.calls("login")
    again = await changing.again()
    assert f"remove {changing.staged}" in again.trouble
    await asyncio.sleep(0.3)
    assert changing.made.control.calls("login") == logins + 1
    await again.close()
    changing.staged.unlink()
    after = await changing.again()
    assert (after.trouble, changing.made.control.calls("login")) == ("", logins + 2)
    await after.close()


async def test_a_token_that_dies_in_the_change_keeps_both_pins(changing: Changing) -> None:
    """Nobody knows whether the token heard of it: both PINs stay, nothing is tried, the operator decides."""
    old, token = changing.made.soft.pin, changing.token
    assert token.worker_pid is not None
    logins = changing.made.control.calls("login")
    os.kill(token.worker_pid, signal.SIGSTOP)
    change = asyncio.create_task(token.change_pin(None, Pin(NEW_PIN)))
    await eventually(changing.staged.exists)
    await asyncio.sleep(0.05)
    os.kill(token.worker_pid, signal.SIGKILL)
    with pytest.raises(TokenStoppedError, match="both PINs are kept"):
        await change
    assert (changing.made.soft.pin, changing.staged.read_text().strip()) == (old, NEW_PIN)
    assert changing.made.control.calls("login") == logins
    with pytest.raises(PinRefusedError, match="remove"):  # it had not heard of it: one try says so
        await token.release()
    changing.staged.unlink()
    await token.release()


# --- hangs, as the device's callers see them -----------------------------------------------------------------


@pytest.mark.requirement("K-9", "K-10")
async def test_a_hanging_token_costs_the_devices_callers_two_seconds(world: World, tmp_path: Path) -> None:
    """C_Sign hangs for 60 s: everybody who waits is told why in time, and only what is recorded is signed later."""
    control = Control.create(tmp_path / "control")
    async with running(shimmed_config(world, control)) as device:
        control.set("sign", "delay", milliseconds=60_000, times=1)
        signed = control.successes("sign")
        wishes = [world.network.evidence(f"x{index}") for index in range(5)]
        began = time.monotonic()
        answers = await asyncio.gather(*(device.endorse((wish, ["A"])) for wish in wishes))
        took = time.monotonic() - began
        assert took < 2.0
        figures.info("hang of 60 s: all callers answered after s: %s", round(took, 2))
        failures = [answer.answers[0].failure for answer in answers]
        assert {failure.code for failure in failures if failure} == {"token-unavailable"}
        assert any("within 1" in failure.detail for failure in failures if failure)
        await eventually(lambda: not device.parts.signer.token.trouble, seconds=15)
        rows = device.parts.guard.journal()
        again = await device.endorse((wishes[0], ["A"]))
        assert [vote.verdict for vote in again.answers[0].votes] == ["approve"]
        # one call was interrupted; every other signature stands in the journal, and no more than those
        recorded = len(device.parts.guard.journal())
        assert recorded - len(rows) == 1
        assert control.successes("sign") == recorded - 1
        assert control.successes("sign") > signed
