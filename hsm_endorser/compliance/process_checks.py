"""Several processes on one token: do they sign at once, and what does one see of what another does?"""

import asyncio
import contextlib
import secrets
from typing import Final

from hsm_endorser.compliance.bench import Bench, Burst
from hsm_endorser.compliance.made import Key, half
from hsm_endorser.compliance.result import LIST
from hsm_endorser.custody.challenge import verifies
from hsm_endorser.custody.cryptoki import Attribute, ObjectClass, code
from hsm_endorser.custody.errors import ProbeLostError, ProbeRefusedError
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_messages import Destroy, Done
from hsm_endorser.worker_messages import Failed

PROCESSES: Final = (1, 2, 4)
ONE_CALL_SECONDS: Final = 0.25
"""Lists are made no longer than what takes about this."""


async def parallel(bench: Bench) -> None:
    """One, two and four processes sign with one key."""
    key = bench.best
    if key is None:
        bench.rows.add("processes.parallel", "not-tested", "nothing", "there is no key that signs")
        return
    each = bench.single_seconds.get(key.algorithm.name, 0.0)
    size = max(1, min(LIST, int(ONE_CALL_SECONDS / each))) if each else LIST
    async with contextlib.AsyncExitStack() as stack:
        workers: list[Probe] = [bench.probe]
        alone = 0.0
        for count in PROCESSES:
            subject = f"{count} process{'es' if count > 1 else ''}"
            bench.rows.begin("processes.parallel", subject)
            try:
                while len(workers) < count:
                    workers.append(await stack.enter_async_context(bench.beside()))
            except (ProbeRefusedError, ProbeLostError) as error:
                means = "a second program cannot use this token beside a device, not even an audit"
                bench.rows.add("processes.parallel", "fail", f"process {len(workers) + 1}: {error}", means,
                               subject=subject)  # fmt: skip
                return
            bursts = await _together(bench, key, workers[:count], size)
            alone = _judge(bench, subject, bursts, alone)


async def _together(bench: Bench, key: Key, workers: list[Probe], size: int) -> list[Burst | BaseException]:
    async def one(worker: Probe) -> Burst:
        return await bench.burst(key, seconds=bench.effort.process_seconds, size=size, probe=worker)

    return await asyncio.gather(*(one(worker) for worker in workers), return_exceptions=True)


def _judge(bench: Bench, subject: str, bursts: list[Burst | BaseException], alone: float) -> float:
    lost = [each for each in bursts if isinstance(each, BaseException)]
    for error in lost:
        if not isinstance(error, (ProbeLostError, ProbeRefusedError)):
            raise error
    done = [each for each in bursts if isinstance(each, Burst)]
    rate = sum(each.rate for each in done)
    trouble = [each.trouble for each in done if each.trouble] + [str(error) for error in lost]
    figures = {"per_second": rate, "errors": float(len(lost) + sum(each.refused.total() + each.wrong for each in done))}
    if trouble:
        means = "programs disturb each other on this token: let nothing run beside a device"
        bench.rows.add("processes.parallel", "fail", "; ".join(dict.fromkeys(trouble)), means,
                       subject=subject, figures=figures)  # fmt: skip
        if isinstance(bursts[0], ProbeLostError):
            raise bursts[0]
        return alone or rate
    times = f", {rate / alone:.1f} times that of one" if alone else ""
    means = "an audit can run beside a device" if alone else "the measure for those below"
    bench.rows.add("processes.parallel", "pass", f"{rate:,.0f} a second{times}, no errors", means,
                   subject=subject, figures=figures)  # fmt: skip
    return alone or rate


async def visibility(bench: Bench) -> None:
    """A key that another process makes, and destroys."""
    bench.rows.begin("visible.made")
    if bench.best is None:
        for check in ("visible.made", "visible.destroyed"):
            bench.rows.add(check, "not-tested", "nothing", "there is no key that signs")
        return
    async with bench.beside() as other:
        key = await bench.make(bench.best.algorithm, probe=other)
        if isinstance(key, Failed):
            measured = f"the other process: {code(key)}"
            bench.rows.add("visible.made", "fail", measured, "a second process cannot make keys beside a device")
            bench.rows.add("visible.destroyed", "not-tested", "nothing", "the other process made no key")
            return
        number = await bench.private(key)
        message = secrets.token_bytes(32)
        if number is None:
            means = "start a device anew after a key was made for it by another program"
            bench.rows.add("visible.made", "info", "not found without starting anew", means)
            number = await _in_view(bench, key)
        else:
            signed = await bench.sign(key, [message], number=number)
            if isinstance(signed, Failed):
                means = "start a device anew after a key was made for it by another program"
                bench.rows.add("visible.made", "info", f"found, and does not sign: {code(signed)}", means)
            elif not verifies(key.public, signed[0], message):
                means = "the handle means another key here: keep other programs away from this token"
                bench.rows.add("visible.made", "fail", "found, and another key signs", means)
            else:
                means = "keys made beside a running device are there for it at once"
                bench.rows.add("visible.made", "pass", "found at once, and it signs", means)
        bench.rows.begin("visible.destroyed")
        await _destroyed(bench, other, key, number)


async def _in_view(bench: Bench, key: Key) -> int | None:
    """The key's number in a worker that started after it was made."""
    await bench.begin()
    return await bench.private(key)


async def _destroyed(bench: Bench, other: Probe, key: Key, number: int | None) -> None:
    rows = bench.rows
    message = secrets.token_bytes(32)
    if isinstance(await bench.sign(key, [message], number=number), Failed):
        rows.add("visible.destroyed", "not-tested", "nothing", "the key did not sign before")
        return
    for each in await find(other, {int(Attribute.ID): key.id}):
        reply = expect(await other.call(Destroy(each)), Done)
        if isinstance(reply, Failed):
            rows.add("visible.destroyed", "not-tested", code(reply), "the other process could not destroy it")
            return
    left = await find(other, half(ObjectClass.PRIVATE_KEY, key.id))
    signed = await bench.sign(key, [message], number=number)
    if left:
        means = "destroyed keys are still there: never say that a key is gone"
        rows.add("visible.destroyed", "fail", "CKR_OK, and the key is still found", means)
    elif isinstance(signed, Failed):
        means = "a destroyed key is gone for every process at once; the device notices and says so"
        rows.add("visible.destroyed", "pass", code(signed), means)
    elif verifies(key.public, signed[0], message):
        means = "it signs on until its process ends: after a key was destroyed, start every device on the token anew"
        rows.add("visible.destroyed", "fail", "CKR_OK: it still signs", means)
    else:
        means = "its handle means another key now: a stale handle signs with a wrong key"
        rows.add("visible.destroyed", "fail", "CKR_OK: another key signs in its place", means)
