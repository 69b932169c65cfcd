"""A SoftHSM token behind the misbehaving module, with the keys that tests sign with."""

import tempfile
from functools import cache
from pathlib import Path

import msgspec

from hsm_endorser.config import Config
from hsm_endorser.token import Pinned, Token, TokenConfig
from hsm_endorser.token_key import TokenKey
from hsm_endorser.uri import TokenUri
from softhsm.installation import find
from softhsm.shim import Control, build
from tests.hsm_endorser.device_world import SoftToken, World, new_token


@cache
def shim() -> Path:
    """The compiled module; one for the whole run."""
    return build(Path(tempfile.mkdtemp(prefix="shim-")))


class Shimmed(msgspec.Struct, frozen=True):
    """A token, the module that stands before it, and how to make that misbehave."""

    soft: SoftToken
    control: Control
    config: TokenConfig

    def provisioning(self) -> TokenConfig:
        """The token without the module: what is set up is not counted."""
        return self.soft.config


def shimmed(folder: Path, *, seconds: float = 1.0, control: Control | None = None) -> Shimmed:
    """A fresh, empty token behind the module."""
    soft = new_token(folder)
    return before(soft, control or Control.create(folder / "control"), seconds=seconds)


def before(soft: SoftToken, control: Control, *, seconds: float = 1.0) -> Shimmed:
    """The misbehaving module before a token that is there."""
    uri = msgspec.structs.replace(TokenUri.parse(soft.created.uri), module=shim())
    environment = {**soft.created.environment, **control.environment(find().module)}
    config = TokenConfig(uri=uri, environment=environment, seconds=seconds, note=soft.folder / "out-of-service")
    return Shimmed(soft, control, config)


async def with_keys(token: Shimmed) -> tuple[Pinned, TokenKey, TokenKey]:
    """Generate an identity key and a node's key, past the module; the pin, and both keys."""
    started = await Token.start(token.provisioning())
    identity = await started.generate("identity", "ecdsa-p256-sha256")
    node = await started.generate("node/A", "ecdsa-p256-sha256")
    assert started.info is not None
    pinned = Pinned(started.info, identity.public_key.id)
    await started.close()
    return pinned, identity, node


def shimmed_config(world: World, control: Control, *, deadline_ms: int = 1000, **more: object) -> Config:
    """The configuration of the world's device, with the misbehaving module before its token."""
    created = world.enrolled.token.created
    uri = msgspec.structs.replace(TokenUri.parse(created.uri), module=shim())
    settings = world.config.token.model_copy(
        update={
            "uri": uri,
            "environment": {**created.environment, **control.environment(find().module)},
            "deadline_ms": deadline_ms,
        }
    )
    return world.config.model_copy(update={"token": settings, **more})
