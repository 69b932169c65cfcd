"""A token at the end of a connection: frozen, cut off, gone for a while.

The times: `./test.sh tests/hsm_endorser/test_device_remote.py -o log_cli=true -o log_cli_level=INFO`.
"""

import asyncio
import hashlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from hsm_endorser.errors import TokenUnavailableError
from hsm_endorser.token import Token
from hsm_endorser.token_key import TokenKey
from softhsm.shim import Control
from tests.hsm_endorser.device_world import eventually
from tests.hsm_endorser.remote_token import Server, serving
from tests.hsm_endorser.shimmed_token import shimmed, with_keys

figures = logging.getLogger("figures")
DIGEST = hashlib.sha256(b"message").digest()


class Remote(msgspec.Struct, frozen=True):
    """A device's token behind a server."""

    server: Server
    control: Control
    token: Token
    node: TokenKey

    async def sign(self) -> None:
        """One signature by the node's key, verified."""
        (signature,) = await self.token.sign(self.node.public_key.id, [DIGEST])
        self.node.public_key.verify(signature, b"message", low_s=True)

    async def not_ready_within(self, seconds: float) -> float:
        """Wait until the token says that it cannot sign; how long that took."""
        began = time.monotonic()
        await eventually(lambda: bool(self.token.trouble), seconds=seconds)
        return time.monotonic() - began


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[Remote]:
    """An open token at the end of a connection."""
    made = shimmed(tmp_path / "token")
    pinned, _, node = await with_keys(made)
    with serving(made, tmp_path / "server") as server:
        token = await Token.start(server.config, pinned=pinned)
        yield Remote(server, made.control, token, node)
        await token.close()


@pytest.mark.requirement("K-9")
async def test_a_frozen_connection_costs_one_deadline(remote: Remote) -> None:
    """The server's child is stopped in the middle of a signature: an answer in two seconds, then a new connection."""
    logins = remote.control.calls("login")
    remote.server.signal_children(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(TokenUnavailableError, match="did not answer within 1"):
        await remote.sign()
    answered = time.monotonic() - began
    await eventually(lambda: not remote.token.trouble, seconds=10)
    recovered = time.monotonic() - began
    await remote.sign()
    assert answered < 2.0
    assert recovered < 10.0
    assert remote.control.calls("login") == logins + 1
    figures.info("frozen: answered after s: %s", round(answered, 2))
    figures.info("frozen: signs again after s: %s", round(recovered, 2))


@pytest.mark.requirement("K-9")
async def test_death_in_the_middle_of_a_signature(remote: Remote) -> None:
    """The child is killed while C_Sign is under way: not ready within a second, back with one login."""
    logins = remote.control.calls("login")
    remote.control.set("sign", "delay", milliseconds=800, times=1)
    before = remote.control.calls("sign")
    call = asyncio.create_task(remote.sign())
    await eventually(lambda: remote.control.calls("sign") > before)
    remote.server.signal_children(signal.SIGKILL)
    noticed = await remote.not_ready_within(1.0)
    with pytest.raises(TokenUnavailableError):
        await call
    await eventually(lambda: not remote.token.trouble, seconds=10)
    await remote.sign()
    assert remote.control.calls("login") == logins + 1
    figures.info("killed: not ready after s: %s", round(noticed, 3))


@pytest.mark.requirement("K-9")
async def test_a_server_that_was_away_is_back(remote: Remote) -> None:
    """Gone for three seconds: no login while it is away, one when it returns, and ready within ten seconds."""
    logins = remote.control.calls("login")
    remote.server.kill()
    with pytest.raises(TokenUnavailableError):
        await remote.sign()
    noticed = await remote.not_ready_within(1.0)
    await asyncio.sleep(3)
    assert remote.token.trouble
    began = time.monotonic()
    with pytest.raises(TokenUnavailableError):  # who asks meanwhile has an answer at once
        await remote.token.usable()
    assert time.monotonic() - began < 1.0
    remote.server.start()
    back = time.monotonic()
    await eventually(lambda: not remote.token.trouble, seconds=10)
    took = time.monotonic() - back
    await remote.sign()
    assert remote.control.calls("login") == logins + 1
    figures.info("away: not ready after s: %s", round(noticed, 3))
    figures.info("away: signs again, s after its return: %s", round(took, 2))
