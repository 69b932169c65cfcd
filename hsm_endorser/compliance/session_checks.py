"""Sessions of one process: signatures under way in several, how many there can be, and whether they are given back."""

import secrets
from typing import Final

from hsm_endorser.compliance.bench import Bench
from hsm_endorser.custody.challenge import verifies
from hsm_endorser.custody.cryptoki import code
from hsm_endorser.custody.probe import expect
from hsm_endorser.custody.probe_messages import (
    BeginSign,
    Bytes,
    CloseSession,
    Done,
    FinishSign,
    Number,
    OpenSession,
    Several,
    SignEach,
)
from hsm_endorser.worker_messages import Failed

OWN: Final = 2
"""Sessions that the worker has open all the time."""
PARALLEL: Final = 8
NOT_INITIALIZED: Final = "CKR_CRYPTOKI_NOT_INITIALIZED"
"""What p11-kit's modules say when their functions are asked for a second time: each who asks has a state of his own."""
FEWEST: Final = 4
"""A device's worker has two, and an audit beside it two more."""


async def sessions(bench: Bench) -> None:
    """All three; every session that was opened is closed again."""
    bench.rows.begin("sessions.limit")
    opened, refusal = await _open(bench, bench.effort.sessions - OWN)
    count = len(opened) + OWN
    try:
        await _parallel(bench, opened[:PARALLEL])
    finally:
        stuck = await _close(bench, opened)
    bench.rows.begin("sessions.limit")
    figures = {"sessions": float(count)}
    if refusal is None:
        means = "more than a device ever needs"
        bench.rows.add("sessions.limit", "pass", f"{count} opened, no limit met", means, figures=figures)
    elif count >= FEWEST:
        means = "enough: a device uses two, and an audit beside it two more; count them when several share the token"
        bench.rows.add("sessions.limit", "pass", f"{count} opened, then {code(refusal)}", means, figures=figures)
    else:
        means = "a device and an audit beside it need four: keep other programs away from this token"
        bench.rows.add("sessions.limit", "fail", f"{count} opened, then {code(refusal)}", means, figures=figures)
    bench.rows.begin("sessions.given-back")
    again, refused = await _open(bench, min(len(opened), PARALLEL) or 1)
    await _close(bench, again)
    if stuck:
        means = "sessions pile up until the token takes no more"
        bench.rows.add("sessions.given-back", "fail", f"{len(stuck)} could not be closed: {stuck[0]}", means)
    elif refused and opened:
        means = "closed sessions still count: the token takes no more after a while, until its device starts anew"
        bench.rows.add("sessions.given-back", "fail", f"{len(again)} opened again, then {code(refused)}", means)
    elif not opened:
        bench.rows.add("sessions.given-back", "not-tested", "nothing", "no further session could be opened at all")
    else:
        means = "sessions do not pile up"
        bench.rows.add("sessions.given-back", "pass", f"{len(opened)} closed, {len(again)} opened again", means)


async def _open(bench: Bench, count: int) -> tuple[list[int], Failed | None]:
    opened: list[int] = []
    for _ in range(count):
        reply = expect(await bench.probe.call(OpenSession()), Number)
        if isinstance(reply, Failed):
            return opened, reply
        opened.append(reply.number)
    return opened, None


async def _close(bench: Bench, opened: list[int]) -> list[str]:
    stuck = []
    for each in opened:
        reply = expect(await bench.probe.call(CloseSession(each)), Done)
        if isinstance(reply, Failed):
            stuck.append(code(reply))
    return stuck


async def _parallel(bench: Bench, opened: list[int]) -> None:
    """Begin a signature in every session, then end them all, the last one first."""
    bench.rows.begin("sessions.parallel")
    key = bench.best
    if key is None or len(opened) < 2:  # noqa: PLR2004  one session is not several
        why = "there is no key that signs" if key is None else "no two further sessions could be opened"
        bench.rows.add("sessions.parallel", "not-tested", "nothing", why)
        return
    number = await bench.private(key)
    messages = {session: secrets.token_bytes(32) for session in opened}
    trouble: list[str] = []
    begun = []
    for session in opened:
        reply = expect(await bench.probe.call(BeginSign(key.algorithm.signs_by, number or 0, session)), Done)
        if isinstance(reply, Failed):
            trouble.append(f"C_SignInit: {code(reply)}")
        else:
            begun.append(session)
    for session in reversed(begun):
        signed = expect(await bench.probe.call(FinishSign(key.input(messages[session]), session)), Bytes)
        if isinstance(signed, Failed):
            trouble.append(f"C_Sign: {code(signed)}")
        elif not verifies(key.public, signed.value, messages[session]):
            trouble.append("a signature does not verify")
    if not begun and set(trouble) == {f"C_SignInit: {NOT_INITIALIZED}"}:
        await _one_by_one(bench, opened, number)
    elif trouble:
        measured = f"{len(trouble)} of {len(opened)} failed: {', '.join(dict.fromkeys(trouble))}"
        means = "sessions disturb each other: let one device alone use this token"
        bench.rows.add("sessions.parallel", "fail", measured, means)
    else:
        means = "a signature in one session does not disturb another"
        bench.rows.add("sessions.parallel", "pass", f"{len(opened)} signatures under way at once, all verify", means)


async def _one_by_one(bench: Bench, opened: list[int], number: int | None) -> None:
    """Whole signatures in each session, where the halves of a signature cannot be asked for."""
    rows, key = bench.rows, bench.best
    if key is None:
        return
    for session in opened:
        message = secrets.token_bytes(32)
        request = SignEach(key.algorithm.signs_by, number or 0, [key.input(message)], session)
        reply = expect(await bench.probe.call(request), Several)
        if isinstance(reply, Failed) or not verifies(key.public, reply.values[0], message):
            said = code(reply) if isinstance(reply, Failed) else "a signature does not verify"
            means = "sessions disturb each other: let one device alone use this token"
            rows.add("sessions.parallel", "fail", f"one session after another: {said}", means)
            return
    means = "C_SignInit and C_Sign cannot be called one by one here: the module has another state for who asks twice"
    rows.add("sessions.parallel", "not-tested", f"{len(opened)} sessions sign one after another", means)
