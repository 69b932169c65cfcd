"""Fixtures: a token of its own for each test, or the network whose one real device is `device-a`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm_endorser.provision import issue_ca_certificate, provision
from tests.hsm_endorser.device_world import (
    WANTED,
    Enrolled,
    RunningDevice,
    SoftToken,
    World,
    device_config,
    new_token,
    running,
)


@pytest.fixture
def token(tmp_path: Path) -> SoftToken:
    """A fresh, empty token for one test."""
    return new_token(tmp_path / "token")


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    """The device's token; shared, since no test changes what is on it."""
    folder = tmp_path_factory.mktemp("enrolled")
    token = new_token(folder / "token")
    config = device_config(folder, token)

    async def set_up() -> Enrolled:
        provisioned = await provision(config, "test", WANTED)
        return Enrolled(token, provisioned, await issue_ca_certificate(config, "test", "ca/ca", "ca"))

    return asyncio.run(set_up())


@pytest.fixture
def world(tmp_path: Path, enrolled: Enrolled) -> World:
    """A network at block 0, and the folder of the device in it."""
    return World(tmp_path, enrolled)


@pytest.fixture
async def device(world: World) -> AsyncIterator[RunningDevice]:
    """The device of the world, running."""
    async with running(world.config) as started:
        yield started
