"""The compliance run finds on SoftHSM what is known of SoftHSM, and on a module that misbehaves what it does (K-7)."""

import asyncio
import secrets
import shlex
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm_endorser.compliance import signing_checks
from hsm_endorser.compliance.bench import QUICK, Bench, Effort
from hsm_endorser.compliance.catalogue import CATALOGUE, PARTS
from hsm_endorser.compliance.loss import Rehearsal, loss
from hsm_endorser.compliance.made import ALGORITHMS, fresh_label
from hsm_endorser.compliance.pin_check import lockout
from hsm_endorser.compliance.result import Report
from hsm_endorser.compliance.run import STEPS, Step, Wishes, row_of, run
from hsm_endorser.custody.errors import ProbeRefusedError
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe import Probe
from hsm_endorser.custody.probe_messages import Numbers
from hsm_endorser.worker_messages import Failed, Pin
from tests.hsm_endorser.device_world import SoftToken, eventually
from tests.hsm_endorser.shimmed_token import Shimmed, shimmed

SHORT = Effort(rate_seconds=0.02, process_seconds=0.05, keys=(1, 3), making_seconds=5.0, sessions=16, call_seconds=1.0)
WISHES = Wishes(effort=SHORT)


def steps(*checks: str) -> list[Step]:
    """The algorithms, and further steps by a check of theirs."""
    return [step for step in STEPS if {"mechanisms.offered", "algorithm.works", *checks} & set(step.checks)]


DEVICE_ERROR, PIN_INCORRECT, PIN_LOCKED, SESSION_COUNT = 0x30, 0xA0, 0xA4, 0xB1


@pytest.fixture
def faulty(tmp_path: Path) -> Shimmed:
    """An empty token behind the misbehaving module."""
    return shimmed(tmp_path / "faulty")


@pytest.fixture
async def bench(faulty: Shimmed) -> AsyncIterator[Bench]:
    """That token on the bench, with one ECDSA key."""
    async with Probe.open(faulty.config, seconds=SHORT.call_seconds) as probe:
        bench = Bench(faulty.config, None, probe, SHORT)
        await bench.begin()
        key = await bench.make(ALGORITHMS[0])
        assert not isinstance(key, Failed)
        bench.keys[key.algorithm.name] = key
        yield bench


def said(report: Report, check: str, subject: str = "") -> tuple[str, str]:
    """Verdict and measure of the one row."""
    row = row_of(report, check, subject)
    return row.verdict, row.measured


async def objects(token: SoftToken) -> int:
    """How many objects are on it."""
    async with Probe.open(token.config) as probe:
        await probe.start()
        await probe.login()
        return len(await find(probe))


def script(folder: Path, name: str, line: str) -> str:
    """A command for the rehearsal."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return shlex.quote(str(path))


@pytest.mark.requirement("K-7")
async def test_softhsm_is_what_it_is_known_to_be(token: SoftToken, tmp_path: Path) -> None:
    """Everything is tried, nothing fails, and what SoftHSM does otherwise than hardware is told."""
    store, away = (shlex.quote(str(token.folder / name)) for name in ("tokens", "tokens.away"))
    rehearsal = Rehearsal(
        script(tmp_path, "lose", f"mv {store} {away}"), script(tmp_path, "back", f"mv {away} {store}")
    )
    report = await run(token.config, Wishes(rehearsal, sacrificial=True, effort=SHORT))
    assert [row for row in report.rows if row.verdict in {"fail", "not-tested"}] == []
    assert {row.check for row in report.rows} == set(CATALOGUE)
    assert (report.verdict, report.software) == ("pass", True)
    assert said(report, "algorithm.any") == ("pass", "ecdsa-p256, rsa-2048, ed25519")
    assert said(report, "algorithm.variants", "ecdsa-p256") == ("info", "ECDSA_SHA256 CKR_MECHANISM_INVALID")
    assert said(report, "visible.made") == ("pass", "found at once, and it signs")
    assert said(report, "visible.destroyed") == ("pass", "CKR_OBJECT_HANDLE_INVALID")
    assert said(report, "duplicates.label") == ("info", "accepted: 2 private keys are found by it")
    assert said(report, "duplicates.id") == ("info", "accepted: 2 private keys are found by it")
    assert said(report, "sessions.limit") == ("pass", "16 opened, no limit met")
    assert said(report, "loss.noticed") == ("pass", "CKR_OBJECT_HANDLE_INVALID")
    assert "the old one stays broken" in row_of(report, "loss.return").measured
    assert said(report, "pin.lockout") == (
        "info",
        "not locked after 12 wrong PINs (it counts them: USER_PIN_COUNT_LOW)",
    )
    assert Counter(row.check for row in report.rows)["labels.kept"] == 5
    assert row_of(report, "processes.parallel", "4 processes").figures["errors"] == 0
    assert row_of(report, "lookup.cost", "3 keys").figures["objects"] == 6
    assert said(report, "token.objects") == ("pass", "0 before, 0 after")
    assert await objects(token) == 0


@pytest.mark.requirement("K-7")
async def test_no_wrong_pin_is_given_unless_the_token_is_sacrificed(faulty: Shimmed) -> None:
    """Every login of a run succeeds; loss and lockout are not tested, and say what would let them be."""
    report = await run(faulty.config, WISHES, steps=steps("processes.parallel", "visible.made"))
    assert faulty.control.calls("login") == faulty.control.successes("login") > 0
    assert {row.check for row in report.rows if row.verdict == "not-tested"} == {
        "loss.noticed",
        "loss.return",
        "pin.lockout",
    }
    assert "--sacrificial" in row_of(report, "pin.lockout").means
    assert "--lose-command" in row_of(report, "loss.return").means


@pytest.mark.requirement("K-7", "S-6")
async def test_a_refused_pin_is_given_once(faulty: Shimmed) -> None:
    """The run ends; nothing tries the PIN again, not even the cleaning."""
    with pytest.raises(ProbeRefusedError, match="PinIncorrect") as caught:
        await run(faulty.config, WISHES, pin=Pin("wrong-pin-1234"))
    assert (caught.value.ckr, faulty.control.calls("login")) == ("PinIncorrect", 1)


async def test_a_pin_that_is_refused_midway_ends_all_logins(faulty: Shimmed) -> None:
    """Somebody changed it meanwhile: one refusal, and the run says that objects may be left."""
    faulty.control.set("login", "fail", code=PIN_INCORRECT, skip=1)
    report = await run(faulty.config, WISHES, steps=steps("processes.parallel"))
    assert faulty.control.calls("login") - faulty.control.successes("login") == 1
    assert report.verdict == "fail"
    assert "the next run removes them" in row_of(report, "token.objects").means
    faulty.control.behave()
    again = await run(faulty.config, WISHES, steps=())
    assert row_of(again, "token.leftovers").verdict == "info"
    assert said(again, "token.objects") == ("pass", "0 before, 0 after")


@pytest.mark.requirement("K-7")
async def test_wrong_signatures_are_a_finding(faulty: Shimmed) -> None:
    """No algorithm works then, and what needs a key is not tested, never passed."""
    faulty.control.set("sign", "corrupt")
    report = await run(faulty.config, WISHES)
    assert said(report, "algorithm.works", "ecdsa-p256") == ("fail", "the signature does not verify")
    assert said(report, "algorithm.any") == ("fail", "none")
    needs_a_key = {"rate.single", "sessions.parallel", "processes.parallel", "visible.made", "lookup.cost"}
    assert {row.verdict for row in report.rows if row.check in needs_a_key} == {"not-tested"}
    assert said(report, "token.objects") == ("pass", "0 before, 0 after")


@pytest.mark.requirement("K-7")
async def test_a_slow_token_is_a_finding(bench: Bench, faulty: Shimmed) -> None:
    """Slower than a device's deadline; and what to do. A list of them is not even tried."""
    bench.probe.seconds = 5.0
    faulty.control.set("sign", "delay", milliseconds=1100)
    await signing_checks.rates(bench)
    single, listed = bench.rows.all
    assert (single.check, single.verdict, listed.check, listed.verdict) == (
        "rate.single",
        "fail",
        "rate.list",
        "not-tested",
    )
    assert "raise deadline_ms" in single.means
    assert single.figures["median_seconds"] > 1.1


@pytest.mark.requirement("K-7")
async def test_failing_signatures_are_a_finding(bench: Bench, faulty: Shimmed) -> None:
    """With the return code, and how often."""
    faulty.control.set("sign", "fail", code=DEVICE_ERROR, skip=5)
    await signing_checks.rates(bench)
    assert [row.verdict for row in bench.rows.all] == ["fail", "fail"]
    assert "6 times CKR_DEVICE_ERROR, 5 good ones" in bench.rows.all[0].measured


@pytest.mark.requirement("K-7")
@pytest.mark.parametrize("fault", ["crash", "hang"])
async def test_the_run_goes_on_without_the_module_that_died(faulty: Shimmed, fault: str) -> None:
    """What it was at fails, the rest is tried by a new worker, and nothing is left."""
    faulty.control.set("sign", "crash" if fault == "crash" else "hang", skip=6, times=1)  # the first of the rates
    report = await run(faulty.config, WISHES, steps=steps("rate.single", "visible.made"))
    assert [row.check for row in report.findings] == ["rate.single"]
    assert "module hung or died" in report.findings[0].means
    assert row_of(report, "visible.destroyed").verdict == "pass"
    assert said(report, "token.objects") == ("pass", "0 before, 0 after")


@pytest.mark.requirement("K-7")
async def test_a_session_limit_is_measured(faulty: Shimmed) -> None:
    """The count at which the token refuses, and that closed sessions still count."""
    faulty.control.set("open_session", "fail", code=SESSION_COUNT, skip=2 + 6)
    report = await run(faulty.config, WISHES, steps=steps("sessions.limit", "processes.parallel"))
    assert said(report, "sessions.limit") == ("pass", "8 opened, then CKR_SESSION_COUNT")
    assert said(report, "sessions.given-back") == ("fail", "0 opened again, then CKR_SESSION_COUNT")
    assert row_of(report, "processes.parallel", "2 processes").verdict == "fail"


@pytest.mark.requirement("K-7")
async def test_the_margin_to_the_lock_is_counted(bench: Bench, faulty: Shimmed) -> None:
    """Wrong PINs are given until the token says that it is locked, and none after that."""
    before = faulty.control.calls("login")
    faulty.control.set("login", "fail", code=PIN_LOCKED, skip=3)
    await lockout(bench, sacrificial=True)
    (row,) = bench.rows.all
    assert (row.verdict, row.measured) == ("info", "locked after 3 wrong PINs")
    assert faulty.control.calls("login") - before == 4


@pytest.mark.requirement("K-7")
async def test_a_token_that_takes_any_pin_fails(bench: Bench, faulty: Shimmed) -> None:
    """The first wrong PIN that is accepted is the finding."""
    faulty.control.set("login", "fail", code=0)
    await lockout(bench, sacrificial=True)
    (row,) = bench.rows.all
    assert (row.verdict, row.measured) == ("fail", "wrong PIN 1 was accepted")


@pytest.mark.requirement("K-7")
async def test_a_token_that_is_not_brought_back_fails(token: SoftToken) -> None:
    """The command's own words are in the report."""
    report = await run(token.config, Wishes(Rehearsal("true", "cat /no-such-token"), effort=SHORT), steps=steps())
    assert said(report, "loss.noticed") == ("info", "CKR_OK: not noticed")
    verdict, measured = said(report, "loss.return")
    assert (verdict, "No such file" in measured) == ("fail", True)
    assert said(report, "token.objects") == ("pass", "0 before, 0 after")


@pytest.mark.requirement("K-7")
async def test_keys_of_others_stay(bench: Bench, faulty: Shimmed) -> None:
    """Even one whose label looks like the run's: its id does not. Nor one whose id only begins so."""
    for label, id_ in (
        (fresh_label(), secrets.token_bytes(16)),
        (b"node/A", b"hsm-endorser-compliance:12345678"),
        (b"", b"hsm-endorser-compliance:another"),
    ):
        made = await bench.maker.pair(bench.probe, ALGORITHMS[0], label=label, id_=id_)
        assert isinstance(made, Numbers)
    await bench.probe.kill()
    report = await run(faulty.config, WISHES, steps=steps())
    assert said(report, "token.leftovers") == ("info", "2 found, and removed")  # the bench's own key
    assert said(report, "token.objects") == ("pass", "6 before, 6 after")


def test_every_check_has_a_part() -> None:
    """So that no row is left out of the page."""
    assert {check.partition(".")[0] for check in CATALOGUE} == set(PARTS)
    assert QUICK.run_seconds == Effort().run_seconds


async def test_a_run_without_time_begins_no_check(token: SoftToken) -> None:
    """What comes too late is not tested, with the reason, and what was made is counted all the same."""
    report = await run(token.config, Wishes(effort=Effort(run_seconds=0.0)))
    late = {row.check for row in report.rows if "no time left" in row.means}
    assert late == set(CATALOGUE) - {"token.leftovers", "token.objects", "algorithm.variants"}
    assert said(report, "token.objects") == ("pass", "0 before, 0 after")


@pytest.mark.requirement("K-7")
async def test_the_token_comes_back_when_the_run_is_interrupted(bench: Bench, tmp_path: Path) -> None:
    """Cancelled while the token is away, the return command is run to its end before anything else."""
    gone, back = tmp_path / "gone", tmp_path / "back"
    rehearsal = Rehearsal(
        script(tmp_path, "lose", f"touch {shlex.quote(str(gone))}; exec sleep 60"),
        script(tmp_path, "return", f"sleep 0.3; touch {shlex.quote(str(back))}"),
    )
    running = asyncio.create_task(loss(bench, rehearsal))
    await eventually(gone.exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert back.exists()


async def test_a_pin_file_that_goes_midway_ends_the_run_in_order(token: SoftToken) -> None:
    """The check that needed a further login fails with the reason, and the report is made all the same."""
    pin = token.folder / "pin"

    def tell(step: str) -> None:
        if step == "processes":
            pin.rename(pin.with_name("away"))

    report = await run(token.config, WISHES, steps=steps("processes.parallel"), tell=tell)
    assert "cannot be opened" in row_of(report, "processes.parallel", "2 processes").measured
    assert report.objects_after is None
    pin.with_name("away").rename(pin)
    again = await run(token.config, WISHES, steps=())
    assert said(again, "token.objects") == ("pass", "0 before, 0 after")
