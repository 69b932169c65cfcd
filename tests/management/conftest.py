"""Fixtures of the management tests."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.management.simulated_network import RunningCenter, SimulatedNetwork, running


@contextlib.asynccontextmanager
async def _network(policy: str) -> AsyncIterator[SimulatedNetwork]:
    with tempfile.TemporaryDirectory(prefix="hsm-") as folder:  # a name short enough for sockets
        made = SimulatedNetwork(Path(folder), policy)
        for device in made.devices.values():
            await device.start()
        yield made
        for device in made.devices.values():
            await device.stop()


@pytest.fixture
async def network() -> AsyncIterator[SimulatedNetwork]:
    """Everybody else: devices that listen, keys, a genesis block. Two of three nodes must approve."""
    async with _network("OutOf(2, 'A', 'B', 'C')") as made:
        yield made


@pytest.fixture
async def strict_network() -> AsyncIterator[SimulatedNetwork]:
    """The same network under a policy that needs all three nodes."""
    async with _network("AND('A', 'B', 'C')") as made:
        yield made


@pytest.fixture
async def center(network: SimulatedNetwork) -> AsyncIterator[RunningCenter]:
    """A management service that is ready."""
    async with running(network) as started:
        yield started
