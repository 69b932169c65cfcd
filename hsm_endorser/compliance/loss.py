"""Loss and return of the token, rehearsed by two commands of the operator's: one takes it away, one brings it back."""

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import time
from typing import Final

import msgspec

from hsm_endorser.compliance.bench import Bench
from hsm_endorser.compliance.made import Key
from hsm_endorser.custody.challenge import verifies
from hsm_endorser.custody.cryptoki import code
from hsm_endorser.custody.errors import CustodyError, ProbeLostError, ProbeRefusedError
from hsm_endorser.worker_messages import Failed

COMMAND_SECONDS: Final = 60.0
RETURN_SECONDS: Final = 30.0
"""How long the token may take until it answers again after its return."""
POLL_SECONDS: Final = 0.5
SIGN_SECONDS: Final = 5.0


class Rehearsal(msgspec.Struct, frozen=True):
    """How the token is taken away and brought back."""

    lose: str
    back: str


class CommandFailedError(CustodyError):
    """A command of the rehearsal did not do its work."""


async def loss(bench: Bench, rehearsal: Rehearsal | None) -> None:
    """Take the token away, sign, bring it back, sign. Whatever happens after the loss, it is brought back."""
    rows, key = bench.rows, bench.best
    if rehearsal is None or key is None:
        why = (
            "no command takes the token away and brings it back: give --lose-command and --return-command"
            if rehearsal is None
            else "there is no key that signs"
        )
        for check in ("loss.noticed", "loss.return"):
            rows.add(check, "not-tested", "nothing", why)
        return
    rows.begin("loss.noticed")
    number = await bench.private(key)
    if isinstance(await bench.sign(key, [secrets.token_bytes(32)], number=number), Failed):
        for check in ("loss.noticed", "loss.return"):
            rows.add(check, "not-tested", "nothing", "the key did not sign before")
        return
    try:
        await command(rehearsal.lose, bench)
        await _away(bench, key, number)
    except CommandFailedError as error:
        rows.add("loss.noticed", "not-tested", str(error), "correct --lose-command; the token was not seen to go")
    finally:
        rows.begin("loss.return")
        # Not to be cut short by an interruption: a token that stays away keeps everything that was made on it.
        returning = asyncio.ensure_future(command(rehearsal.back, bench))
        try:
            await asyncio.shield(returning)
        except asyncio.CancelledError:
            with contextlib.suppress(CommandFailedError):
                await returning
            raise
    await _returned(bench, key, number)


async def _away(bench: Bench, key: Key, number: int | None) -> None:
    rows, message = bench.rows, secrets.token_bytes(32)
    start = time.monotonic()
    try:
        async with asyncio.timeout(SIGN_SECONDS):
            signed = await bench.sign(key, [message], number=number)
    except (TimeoutError, ProbeLostError):
        measured = f"no answer within {time.monotonic() - start:.1f} s"
        rows.add("loss.noticed", "info", measured, "a device ends the worker after its deadline, and starts another")
        return
    if isinstance(signed, Failed):
        rows.add("loss.noticed", "pass", code(signed), "a device notices by this code that the token is away")
    elif verifies(key.public, signed[0], message):
        means = "the key goes on signing: either it was not taken away, or the module keeps it in memory"
        rows.add("loss.noticed", "info", "CKR_OK: not noticed", means)
    else:
        means = "it answers with something that is no signature: a device notices only because it verifies"
        rows.add("loss.noticed", "fail", "CKR_OK, and the signature does not verify", means)


async def _returned(bench: Bench, key: Key, number: int | None) -> None:
    rows = bench.rows
    sticky = await _still_works(bench, key, number)
    start = time.monotonic()
    while True:
        try:
            await bench.begin()
            break
        except (ProbeRefusedError, ProbeLostError) as error:
            if bench.pin_refused or time.monotonic() - start > RETURN_SECONDS:
                means = "the token does not come back by itself: an operator must see to it after each loss"
                rows.add("loss.return", "fail", str(error), means)
                raise
            await asyncio.sleep(POLL_SECONDS)
    seconds = time.monotonic() - start
    message = secrets.token_bytes(32)
    signed = await bench.sign(key, [message], number=await bench.private(key))
    if isinstance(signed, Failed):
        rows.add("loss.return", "fail", code(signed), "the token is back, and its key does not sign any more")
    elif not verifies(key.public, signed[0], message):
        rows.add("loss.return", "fail", "another key signs", "after its return the token has another key by this id")
    else:
        measured = f"a new worker signs after {seconds:.1f} s; {sticky}"
        means = "a device recovers by itself: it starts a new worker and proves its identity key"
        rows.add("loss.return", "pass", measured, means, figures={"seconds": seconds})


async def _still_works(bench: Bench, key: Key, number: int | None) -> str:
    """What the worker from before the loss does after the return."""
    message = secrets.token_bytes(32)
    try:
        async with asyncio.timeout(SIGN_SECONDS):
            signed = await bench.sign(key, [message], number=number)
    except (TimeoutError, ProbeLostError):
        return "the old one is gone"
    if isinstance(signed, Failed):
        return f"the old one stays broken ({code(signed)})"
    return "the old one signs, too" if verifies(key.public, signed[0], message) else "the old one signs WRONGLY"


async def command(words: str, bench: Bench) -> None:
    """Run one command, without a shell, in the token's environment; raises `CommandFailedError`."""
    arguments = shlex.split(words)
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **bench.config.environment},
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailedError(f"{arguments[0]} cannot be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        raise CommandFailedError(f"{arguments[0]} did not end within {COMMAND_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        last = said.decode(errors="replace").strip()[-200:]
        raise CommandFailedError(f"{arguments[0]} ended with status {process.returncode}: {last}")
