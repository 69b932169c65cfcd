"""A compliance run that is stopped leaves nothing, or what the next one removes (K-7)."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hsm_endorser.compliance.run import Wishes, row_of, run
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe import Probe
from hsm_endorser.uri import TokenUri
from tests.hsm_endorser.device_world import SoftToken, eventually

ROOT = Path(__file__).resolve().parents[2]


def files(token: SoftToken) -> int:
    """How many objects there are in the store; looking disturbs nobody."""
    return len(list((token.folder / "tokens").glob("*/*.object")))


async def objects(token: SoftToken) -> int:
    """How many objects are on the token."""
    async with Probe.open(token.config) as probe:
        await probe.start()
        await probe.login()
        return len(await find(probe))


async def stopped(token: SoftToken) -> subprocess.Popen[bytes]:
    """A run that is stopped in its middle, after the call that its worker was in."""
    before = files(token)
    module = str(TokenUri.parse(token.created.uri).module)
    words = ["compliance", "run", "--module", module, "--pin-file", str(token.folder / "pin")]
    process = subprocess.Popen(  # noqa: ASYNC220  starts at once
        [sys.executable, "-m", "cli", *words],
        cwd=ROOT,
        env={**os.environ, **token.created.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: files(token) > before + 1, seconds=30)
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(30):
            while await objects(token) < 2:  # noqa: ASYNC110  what is waited for sets no event
                await asyncio.sleep(0.05)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@pytest.mark.requirement("K-7")
async def test_a_killed_run_is_cleaned_up_by_the_next(token: SoftToken) -> None:
    """SIGKILL leaves keys on the token; the next run removes them, and says so."""
    process = await stopped(token)
    process.kill()
    process.wait()
    left = await objects(token)
    assert left >= 2
    report = await run(token.config, Wishes(), steps=())
    row = row_of(report, "token.leftovers")
    assert (row.verdict, row.measured) == ("info", f"{left} found, and removed")
    assert row_of(report, "token.objects").measured == "0 before, 0 after"
    assert await objects(token) == 0


@pytest.mark.requirement("K-7")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_told_to_stop_cleans_up_at_once(token: SoftToken, number: signal.Signals) -> None:
    """Its exit code is that of an interrupted command, and nothing is left for anybody to remove."""
    process = await stopped(token)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(process.wait, 30) == 130
    assert await objects(token) == 0
