"""The audit of a device as a signed statement: journalled before, one at a time, over the operator's listener."""

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from hsm_endorser import journal
from hsm_endorser.custody import profile, statement
from hsm_endorser.custody.statement import Auditor, AuditOrder
from hsm_endorser.errors import GuardInUseError, RefusedError, TokenUnavailableError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalRow
from protocol import canonical, custody
from protocol.custody import Statement
from protocol.envelope import Envelope
from tests import custody_samples
from tests.hsm_endorser.device_world import NAME, Enrolled, RunningDevice, World, running
from tests.hsm_endorser.test_device_operator import operated
from transport.address import Address

STRICT = profile.load("strict")


def order(**changes: object) -> bytes:
    """The body of an order to audit."""
    return canonical.encode(msgspec.structs.replace(AuditOrder(STRICT.text, "strict.toml"), **changes))


def verified(world: World, body: bytes) -> Statement:
    """The statement in an answer, under the device's identity key."""
    return custody.verify(canonical.decode(body, msgspec.json.Decoder(Envelope)), world.keys["identity"])


class Audited(msgspec.Struct):
    """What an audit of a running device came to."""

    world: World
    answer: bytes
    meanwhile: list[str]
    """The verdicts of votes that the device was asked for during the audit."""
    before: list[JournalRow]
    after: list[JournalRow]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, enrolled: Enrolled) -> Audited:
    """One audit of a device that endorses meanwhile; the tests look at it from several sides."""
    world = World(tmp_path_factory.mktemp("audited"), enrolled)

    async def run() -> Audited:
        async with running(world.config) as device, operated(device) as operator:
            before = list(journal.rows(device.parts.guard))
            asking = asyncio.create_task(operator.post("/v1/audit", content=order(), timeout=120))
            response = await device.endorse((world.network.evidence("meanwhile"), ["A"]))
            answered = await asking
            assert answered.status_code == 200, answered.text
            votes = [vote.verdict for vote in response.answers[0].votes]
            return Audited(world, answered.content, votes, before, list(journal.rows(device.parts.guard)))

    return asyncio.run(run())


@pytest.mark.requirement("K-5", "K-6")
def test_a_running_device_audits_its_own_token(audited: Audited) -> None:
    """Every key that challenges prove is probed, the statement is signed, and the device goes on endorsing."""
    made = verified(audited.world, audited.answer).predicate
    assert (made.device, made.network, made.profile, made.read_only) == (NAME, "test", STRICT.reference, False)
    assert (made.verdict, made.token.software) == ("pass", True)
    assert {key.label: key.tier for key in made.keys} == dict.fromkeys(audited.world.keys, "probed")
    assert {key.key for key in made.keys} == {key.id for key in audited.world.keys.values()}
    assert audited.meanwhile == ["approve"]


@pytest.mark.requirement("K-3", "K-6")
def test_what_the_keys_sign_for_an_audit_stands_in_the_journal(audited: Audited) -> None:
    """A challenge of every key, and at last the statement; the device's own vote beside it, and nothing else."""
    envelope = canonical.decode(audited.answer, msgspec.json.Decoder(Envelope))
    rows = audited.after[len(audited.before) :]
    made = Counter(row.entry.purpose for row in rows)
    assert (made["statement"], made["head"], set(made)) == (1, 1, {"challenge", "statement", "head"})
    assert rows[-1].entry == next(journal.entries_of(envelope, "statement"))
    challenged = {row.entry.key for row in rows if row.entry.purpose == "challenge"}
    assert challenged == {key.id for key in audited.world.keys.values()}


@pytest.mark.requirement("K-3")
async def test_a_read_only_audit_is_no_pass(world: World, device: RunningDevice) -> None:
    """What was not tried leaves the keys read back, and the verdict open."""
    async with operated(device) as operator:
        answered = await operator.post("/v1/audit", content=order(read_only=True), timeout=120)
    made = verified(world, answered.content).predicate
    assert (made.read_only, made.verdict) == (True, "not-tested")
    assert {key.tier for key in made.keys} == {"read-back"}


async def test_there_is_one_audit_at_a_time_and_a_wrong_profile_is_refused(device: RunningDevice) -> None:
    """A second one is told to wait; a profile that cannot be used is named with its line."""
    async with operated(device) as operator:
        first = asyncio.create_task(operator.post("/v1/audit", content=order(read_only=True), timeout=120))
        await asyncio.sleep(0.05)
        second = await operator.post("/v1/audit", content=order())
        assert (second.status_code, second.json()["type"].rpartition(":")[2]) == (503, "busy")
        assert (await first).status_code == 200
        wrong = await operator.post("/v1/audit", content=order(profile=STRICT.text.replace("critical", "grave", 1)))
        assert (wrong.status_code, wrong.json()["type"].rpartition(":")[2]) == (422, "bad-profile")
        assert "strict.toml:" in wrong.json()["detail"]


async def test_an_audit_ends_at_its_deadline(device: RunningDevice) -> None:
    """It is given up, its worker is ended, and the next one can run."""
    auditor = Auditor(NAME, "test", device.parts.signer)
    with pytest.raises(TokenUnavailableError, match=r"did not end within 0\.05 s"):
        await auditor.audit(STRICT, seconds=0.05)
    assert (await auditor.audit(STRICT, read_only=True)).signatures


@pytest.mark.requirement("S-6")
async def test_a_device_whose_pin_was_entered_audits_with_that(world: World, tmp_path: Path) -> None:
    """Locked, it cannot; unlocked, its audit logs in with the PIN that the operator entered."""
    uri = msgspec.structs.replace(world.config.token.uri, pin_file=None)
    token = world.config.token.model_copy(update={"uri": uri})
    config = world.config.model_copy(update={"token": token, "control": Address(path=tmp_path / "control.sock")})
    async with running(config) as device, operated(device) as operator:
        locked = await operator.post("/v1/audit", content=order(read_only=True))
        assert (locked.status_code, locked.json()["type"].rpartition(":")[2]) == (503, "token-locked")
        assert (await operator.post("/v1/unlock", content=world.enrolled.token.pin)).status_code == 200
        answered = await operator.post("/v1/audit", content=order(read_only=True), timeout=120)
        assert {key.tier for key in verified(world, answered.content).predicate.keys} == {"read-back"}


async def test_an_audit_of_a_device_that_stands_still(world: World) -> None:
    """Its guard and its token are opened for it, and closed again; a guard that another process holds is left alone."""
    guard = Guard.open(world.config.guard, network="test", device=NAME)
    envelope = await statement.audit_device(world.config, guard, "test", STRICT, read_only=True)
    assert custody.verify(envelope, world.keys["identity"]).predicate.device == NAME
    guard = Guard.open(world.config.guard, network="test", device=NAME)
    assert list(journal.rows(guard))[-1].entry.purpose == "statement"
    with pytest.raises(GuardInUseError):
        Guard.open(world.config.guard, network="test", device=NAME)
    guard.close()


def test_a_statement_that_nobody_would_take_is_not_signed() -> None:
    """Beyond the limit of a statement, the refusal names both sizes."""
    row = custody_samples.predicate().rows[0]
    wide = msgspec.structs.replace(row, answer="x" * 900)
    with pytest.raises(RefusedError, match="where a statement has at most 524288") as refused:
        statement.encode(custody_samples.predicate(rows=(wide,) * 600))
    assert refused.value.reason == "statement-too-large"
