"""The compliance run from beginning to end (requirement K-7).

Everything that it makes has a label and an id by which it is known for its own, and is removed: at the end, when it is
interrupted, and when even that was not possible, by the next run.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from typing import Final

import msgspec

from hsm_endorser.compliance import object_checks, process_checks, session_checks, signing_checks
from hsm_endorser.compliance.bench import Bench, Effort
from hsm_endorser.compliance.loss import CommandFailedError, Rehearsal, loss
from hsm_endorser.compliance.made import destroy, leftovers
from hsm_endorser.compliance.pin_check import lockout
from hsm_endorser.compliance.result import Report, Row
from hsm_endorser.custody.errors import ProbeLostError
from hsm_endorser.custody.inventory import BadPublicKeyError, find
from hsm_endorser.custody.probe import Probe
from hsm_endorser.custody.software import nature
from hsm_endorser.custody.verdicts import listed
from hsm_endorser.errors import DeviceError
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.worker_messages import Pin

TOOL: Final = f"hsm-endorser {metadata.version('hsm-endorser')}"
CLEANING_SECONDS: Final = 60.0


class Wishes(msgspec.Struct, frozen=True):
    """What the operator allows beyond the ordinary."""

    rehearsal: Rehearsal | None = None
    sacrificial: bool = False
    effort: Effort = Effort()


class Step(msgspec.Struct, frozen=True):
    """Some checks that are made together."""

    checks: tuple[str, ...]
    make: Callable[[Bench], Awaitable[None]]


STEPS: Final = (
    Step(("mechanisms.offered",), signing_checks.mechanisms),
    Step(("algorithm.works", "algorithm.any"), signing_checks.algorithms),
    Step(("rate.single", "rate.list"), signing_checks.rates),
    Step(("sessions.parallel", "sessions.limit", "sessions.given-back"), session_checks.sessions),
    Step(("processes.parallel",), process_checks.parallel),
    Step(("visible.made", "visible.destroyed"), process_checks.visibility),
    Step(("labels.kept",), object_checks.labels),
    Step(("duplicates.label", "duplicates.id"), object_checks.duplicates),
    Step(("lookup.cost",), object_checks.lookups),
)


async def run(
    config: TokenConfig,
    wishes: Wishes,
    *,
    pin: Pin | None = None,
    tell: Callable[[str], None] | None = None,
    steps: Sequence[Step] = STEPS,
) -> Report:
    """Examine the module and the token that `config` names; `tell` is told of each step before it;
    `steps` are made besides the loss, the PIN, and the count of what is left.

    Raises `PinFileError`, `ProbeRefusedError` when the token cannot be opened or the PIN is refused, `ProbeLostError`
    when the module hangs or crashes before anything could be tried.
    """
    async with Probe.open(config, pin=pin, seconds=wishes.effort.call_seconds) as probe:
        bench = Bench(config, pin, probe, wishes.effort)
        running = _Run(bench, wishes, tell or (lambda _: None), steps, time.monotonic() + wishes.effort.run_seconds)
        try:
            return await running.all()
        except BaseException:
            await running.clean_up()
            raise


class _Run:
    """One run under way."""

    def __init__(
        self, bench: Bench, wishes: Wishes, tell: Callable[[str], None], steps: Sequence[Step], deadline: float
    ) -> None:
        self.bench = bench
        self.wishes = wishes
        self.tell = tell
        self.steps = steps
        self.deadline = deadline
        self.wrote = False
        """Whether something of ours may be on the token."""
        self.gone = ""
        """Why nothing more can be tried; empty while it can."""

    async def all(self) -> Report:
        started, began = time.time_ns() // 1_000_000, time.monotonic()
        bench = self.bench
        info = await bench.begin()
        self.tell("what an earlier run left")
        await self._leftovers()
        before = len(await find(bench.probe))
        self.wrote = True
        for step in (*self.steps, Step(("loss.noticed", "loss.return"), self._loss)):
            await self._step(step)
        self.tell("remove everything, and count")
        after = await self._count(before)
        await self._step(Step(("pin.lockout",), self._lockout))
        kind = nature(info)
        return Report(
            module=str(bench.config.uri.module),
            token=info,
            software=kind.software,
            why_software=kind.why,
            tool=TOOL,
            time=started,
            seconds=time.monotonic() - began,
            objects_before=before,
            objects_after=after,
            rows=tuple(bench.rows.all),
        )

    async def _step(self, step: Step) -> None:
        rows = self.bench.rows
        why = self.gone or ("" if time.monotonic() < self.deadline else "the run had no time left: the token is slow")
        if not why:
            self.tell(step.checks[0].partition(".")[0])
            rows.begin(step.checks[0])
            try:
                await step.make(self.bench)
            except (DeviceError, BadPublicKeyError) as error:
                why = await self._broke(error)
        for check in step.checks:
            if not rows.tried(check):
                rows.add(check, "not-tested", "nothing", why or "it came to nothing")

    async def _broke(self, error: DeviceError | BadPublicKeyError) -> str:
        """A check that ended before its end: put down why, and go on with a new worker if there can be one."""
        bench = self.bench
        check, subject = bench.rows.current
        if isinstance(error, CommandFailedError):
            means = "bring the token back by hand, then run this again: it removes what is left"
        elif isinstance(error, ProbeLostError):
            means = "the module hung or died: a device loses what is under way, and starts a new worker"
        else:
            means = "the module refused what every device needs"
        if not (bench.rows.tried(check, subject) and bench.rows.all[-1].verdict == "fail"):
            bench.rows.add(check, "fail", str(error), means, subject=subject)
        try:
            await bench.begin()
        except DeviceError as again:
            self.gone = f"the token could not be opened again: {again}"
        return f"{check} had an end to it: {error}"

    async def _leftovers(self) -> None:
        rows = self.bench.rows
        rows.begin("token.leftovers")
        found = await leftovers(self.bench.probe)
        if not found:
            rows.add("token.leftovers", "pass", "none", "no run before this one was cut short")
        elif stuck := await destroy(self.bench.probe, found):
            means = "an interrupted run left them, and the token does not let them go: remove them by its own tools"
            rows.add("token.leftovers", "fail", listed(stuck), means)
        else:
            means = "a run before this one was cut short; its objects are gone now"
            rows.add("token.leftovers", "info", f"{len(found)} found, and removed", means)

    async def _loss(self, bench: Bench) -> None:
        await loss(bench, self.wishes.rehearsal)

    async def _lockout(self, bench: Bench) -> None:
        await lockout(bench, sacrificial=self.wishes.sacrificial)

    async def _count(self, before: int) -> int | None:
        """Remove everything with a fresh worker, and count what is there then."""
        rows = self.bench.rows
        rows.begin("token.objects")
        figures = {"before": float(before)}
        try:
            await self.bench.begin()
            stuck = await destroy(self.bench.probe, await leftovers(self.bench.probe))
            after = len(await find(self.bench.probe))
        except DeviceError as error:
            means = "objects of this run may be left; the next run removes them"
            rows.add("token.objects", "fail", f"{before} before, then {error}", means, figures=figures)
            return None
        self.wrote = False
        figures["after"] = float(after)
        measured = f"{before} before, {after} after"
        if stuck:
            rows.add("token.objects", "fail", f"{measured}; {listed(stuck)}", "not everything could be removed",
                     figures=figures)  # fmt: skip
        elif after != before:
            means = "objects came or went during the run: by another program, or the module keeps what it refused"
            rows.add("token.objects", "fail", measured, means, figures=figures)
        else:
            rows.add("token.objects", "pass", measured, "the run left nothing behind", figures=figures)
        return after

    async def clean_up(self) -> None:
        """Remove what was made, when the run did not come to its end. Never with a PIN that was refused."""
        if not self.wrote or self.bench.pin_refused:
            return
        with contextlib.suppress(DeviceError, TimeoutError):
            await asyncio.shield(asyncio.wait_for(clean(self.bench.config, self.bench.pin), CLEANING_SECONDS))


async def clean(config: TokenConfig, pin: Pin | None = None) -> list[str]:
    """Remove what runs left on a token; what could not be removed."""
    async with Probe.open(config, pin=pin) as probe:
        await probe.start()
        await probe.login()
        return await destroy(probe, await leftovers(probe))


def row_of(report: Report, check: str, subject: str = "") -> Row:
    """The one row of a check on a subject; raises `KeyError`."""
    for row in report.rows:
        if (row.check, row.subject) == (check, subject):
            return row
    raise KeyError(check, subject)
