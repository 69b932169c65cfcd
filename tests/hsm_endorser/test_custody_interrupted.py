"""An audit that is interrupted, whichever way, leaves nothing on the token for good."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm_endorser.custody import profile
from hsm_endorser.custody.audit import audit
from hsm_endorser.custody.errors import ProbeRefusedError
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe import Probe
from protocol.custody import Predicate, Row
from tests.hsm_endorser.custody_planting import good_keys
from tests.hsm_endorser.device_world import SoftToken, eventually
from tests.hsm_endorser.shimmed_token import Shimmed, shimmed

ROOT = Path(__file__).resolve().parents[2]
STRICT = profile.load("strict")
OBJECTS = 4
"""Of the two key pairs that are on each token here."""
PIN_INCORRECT = 0xA0


@pytest.fixture
async def audited(token: SoftToken) -> SoftToken:
    """A token with two good keys."""
    await good_keys(token.config, [("identity", "ecdsa-p256-sha256"), ("node/A", "ecdsa-p256-sha256")])
    return token


async def objects(token: SoftToken) -> int:
    """How many objects are on the token."""
    async with Probe.open(token.config) as probe:
        await probe.start()
        await probe.login()
        return len(await find(probe))


def files(token: SoftToken) -> int:
    """How many objects are in the store; looking disturbs nobody."""
    return len(list((token.folder / "tokens").glob("*/*.object")))


def row(predicate: Predicate, check: str, target: str = "token") -> Row:
    """The one row of a check."""
    (found,) = [row for row in predicate.rows if (row.check, row.target) == (check, target)]
    return found


@contextlib.asynccontextmanager
async def auditing(token: SoftToken) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process that was stopped in the middle of an audit: its probe key is on the token."""
    before = files(token)
    program = "tests.hsm_endorser.custody_audit_program"
    store = token.created.environment["SOFTHSM2_CONF"]
    process = subprocess.Popen([sys.executable, "-m", program, token.created.uri, store], cwd=ROOT)  # noqa: ASYNC220  starts at once
    try:
        await eventually(lambda: files(token) > before + 1, seconds=30)
        process.send_signal(signal.SIGSTOP)  # its worker ends the call that it is in: SoftHSM writes in many steps
        async with asyncio.timeout(30):
            while await objects(token) < OBJECTS + 2:  # noqa: ASYNC110  what is waited for sets no event
                await asyncio.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.requirement("K-3")
async def test_a_killed_audit_is_cleaned_up_by_the_next(audited: SoftToken) -> None:
    """SIGKILL leaves probe keys on the token; the next audit knows them, removes them, and says so."""
    async with auditing(audited) as process:
        process.kill()
        process.wait()
    assert await objects(audited) > OBJECTS
    predicate = await audit(audited.config, profile=STRICT)
    left = row(predicate, "token.leftovers")
    assert (left.verdict, left.answer) == ("pass", "2 found, and removed")
    assert row(predicate, "token.objects").answer == f"{OBJECTS} before, {OBJECTS} after"
    assert await objects(audited) == OBJECTS


@pytest.mark.requirement("K-3")
async def test_an_audit_that_is_told_to_stop_cleans_up_at_once(audited: SoftToken) -> None:
    """After SIGINT nothing is left for anybody to remove."""
    async with auditing(audited) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        process.wait()
    assert await objects(audited) == OBJECTS


@pytest.mark.requirement("K-3")
async def test_leftovers_are_shown_and_kept_when_nothing_may_be_written(audited: SoftToken) -> None:
    """`read_only` removes nothing, not even what is its own; and nothing else is touched."""
    async with auditing(audited) as process:
        process.kill()
        process.wait()
    before = await objects(audited)
    predicate = await audit(audited.config, profile=STRICT, read_only=True)
    assert row(predicate, "token.leftovers").verdict == "fail"
    assert await objects(audited) == before


@pytest.fixture
async def faulty(tmp_path: Path) -> Shimmed:
    """A token with two good keys behind the misbehaving module."""
    token = shimmed(tmp_path / "faulty")
    await good_keys(token.provisioning(), [("identity", "ecdsa-p256-sha256"), ("node/A", "ecdsa-p256-sha256")])
    return token


@pytest.mark.requirement("K-3")
async def test_a_module_that_crashes_under_attack_is_reported(faulty: Shimmed) -> None:
    """A crash in the thousand signatures costs that row, and no other attack; the key is not `probed`."""
    faulty.control.set("sign", "crash", skip=100, times=1)
    predicate = await audit(faulty.config, profile=STRICT)
    lost = [(row.check, row.target, row.verdict) for row in predicate.rows if "did not survive" in row.reason]
    assert lost == [("attack.nonces", "probe-1", "not-tested")]
    assert {row.check for row in predicate.rows if row.target == "probe-1" and row.verdict == "pass"} >= {
        "attack.flip",
        "attack.wrap",
        "attack.destroy",
        "attack.sign-after-logout",
    }
    assert {key.tier for key in predicate.keys} == {"read-back"}


@pytest.mark.requirement("K-3")
async def test_token_objects_of_a_worker_that_died_are_removed(faulty: Shimmed) -> None:
    """The worker dies with its probe key on the token; the same audit removes it, and goes on with another one."""
    faulty.control.set("sign", "crash", skip=100, times=1)
    predicate = await audit(faulty.config, profile=STRICT, on_token=True)
    assert [row.check for row in predicate.rows if "did not survive" in row.reason] == ["attack.nonces"]
    assert row(predicate, "token.objects").answer == f"{OBJECTS} before, {OBJECTS} after"
    assert await objects(faulty.soft) == OBJECTS


@pytest.mark.requirement("K-3", "K-4")
async def test_a_node_key_signs_one_challenge_and_nothing_else(faulty: Shimmed) -> None:
    """An audit that only looks makes one signature for each key, each told before, and generates nothing."""
    told: list[tuple[str, bytes]] = []

    async def record(key_id: str, message: bytes) -> None:
        assert faulty.control.calls("sign") == len(told), "told before it signs"
        told.append((key_id, message))

    predicate = await audit(faulty.config, profile=STRICT, read_only=True, record=record)
    assert faulty.control.successes("sign") == len(predicate.keys) == 2
    assert faulty.control.calls("generate_key_pair") == 0
    assert {key_id for key_id, _ in told} == {key.key for key in predicate.keys}
    assert all(b"challenge.v1+json" in message for _, message in told)
    assert {row.verdict for row in predicate.rows if row.check == "attack.flip"} == {"not-tested"}
    assert {key.tier for key in predicate.keys} == {"read-back"}


async def test_a_refused_pin_is_given_once(faulty: Shimmed) -> None:
    """The audit ends; nothing tries the PIN again, not even the cleaning."""
    faulty.control.set("login", "fail", code=PIN_INCORRECT)
    with pytest.raises(ProbeRefusedError, match="PinIncorrect") as caught:
        await audit(faulty.config, profile=STRICT)
    assert (caught.value.ckr, faulty.control.calls("login")) == ("PinIncorrect", 1)
