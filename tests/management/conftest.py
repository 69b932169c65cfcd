"""Fixtures of the management tests."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from protocol.registry import Replicated, Rotation
from tests.management.simulated_network import RunningCenter, SimulatedNetwork, running


@contextlib.asynccontextmanager
async def _network(policy: str, **options: Any) -> AsyncIterator[SimulatedNetwork]:
    with tempfile.TemporaryDirectory(prefix="hsm-") as folder:  # a name short enough for sockets
        made = SimulatedNetwork(Path(folder), policy, **options)
        await asyncio.gather(*(device.start() for device in made.devices.values()))
        yield made
        await asyncio.gather(*(device.stop() for device in made.devices.values()))


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
async def replicated_network() -> AsyncIterator[SimulatedNetwork]:
    """Every device has a key of its own for every node, and evidence goes to the quickest; two of three nodes."""
    async with _network("OutOf(2, 'A', 'B', 'C')", routing=Replicated(), replicated=True) as made:
        yield made


@pytest.fixture
async def rotating_network() -> AsyncIterator[SimulatedNetwork]:
    """Replicated keys; device-c alone takes turns with the two others together; all three nodes must approve."""
    rotation = Rotation((("device-c",), ("device-a", "device-b")))
    async with _network("AND('A', 'B', 'C')", routing=rotation, replicated=True) as made:
        yield made


@pytest.fixture
async def distinct_network() -> AsyncIterator[SimulatedNetwork]:
    """Replicated keys, the quickest devices, and a device of its own for each of two nodes."""
    async with _network("OutOf(2, 'A', 'B', 'C')", routing=Replicated(), replicated=True, distinct=True) as made:
        yield made


@pytest.fixture
async def center(network: SimulatedNetwork) -> AsyncIterator[RunningCenter]:
    """A management service that is ready."""
    async with running(network) as started:
        yield started
