"""A look at a real token: what is there, and that looking changes nothing and spends no more than one try of a PIN."""

import msgspec
import pytest

from hsm_endorser import dry_run
from hsm_endorser.errors import PinFileError, PinRefusedError, TokenLockedError, TokenStoppedError
from hsm_endorser.token import Token
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.worker_messages import Pin
from tests.hsm_endorser.device_world import SoftToken

pytestmark = pytest.mark.requirement("K-11")


def locked(token: SoftToken) -> TokenConfig:
    """The token's configuration without a PIN file."""
    return msgspec.structs.replace(token.config, uri=msgspec.structs.replace(token.config.uri, pin_file=None))


async def test_it_tells_what_is_on_a_token(token: SoftToken) -> None:
    """Which token it is, its mechanisms, the labels of its private keys, and how many objects there are."""
    before = await dry_run.look(token.config)
    assert (before.objects, before.labels, before.token.serial) == (0, (), token.created.serial)
    opened = await Token.start(token.config)
    await opened.generate("node/A", "ecdsa-p256-sha256")
    await opened.close()
    after = await dry_run.look(token.config)
    assert (after.objects, after.labels) == (2, ("node/A",))
    assert after == await dry_run.look(token.config)


async def test_it_knows_which_schemes_a_token_can_serve(token: SoftToken) -> None:
    """By the mechanisms that generate a key and sign with it."""
    sight = await dry_run.look(token.config)
    assert [sight.lacks(scheme) for scheme in ("ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519")] == [(), (), ()]
    weak = msgspec.structs.replace(sight, mechanisms=sight.mechanisms - {"EDDSA", "EC_KEY_PAIR_GEN"})
    assert (weak.lacks("ed25519"), weak.lacks("ecdsa-p256-sha256")) == (("EDDSA",), ("EC_KEY_PAIR_GEN",))


@pytest.mark.requirement("S-6")
async def test_a_wrong_pin_is_said_and_not_shown(token: SoftToken) -> None:
    """One try, entered or from a file; without any PIN none."""
    with pytest.raises(PinRefusedError, match="it was tried once, which cost a try") as caught:
        await dry_run.look(locked(token), Pin("wrong-pin"))
    assert "wrong-pin" not in str(caught.value)
    with pytest.raises(TokenLockedError, match="no PIN was entered"):
        await dry_run.look(locked(token))
    assert (await dry_run.look(locked(token), Pin(token.pin))).objects == 0
    (token.folder / "pin").chmod(0o644)
    with pytest.raises(PinFileError, match="others could read it"):
        await dry_run.look(token.config)


async def test_a_token_that_is_not_there_is_named(token: SoftToken) -> None:
    """By the reason that the module gave."""
    other = msgspec.structs.replace(token.config.uri, token="other", serial=None)
    with pytest.raises(TokenStoppedError, match="NoSuchToken"):
        await dry_run.look(msgspec.structs.replace(token.config, uri=other))
