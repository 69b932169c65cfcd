"""A network of software keys, its chain, two sources that can lie, and a running peer."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from peer.config import Config
from tests.chain_builder import Network
from tests.peer.surroundings import Chain, RunningPeer, Source
from transport.address import Address


@pytest.fixture
def network() -> Network:
    """A network of three nodes and two clients, with software keys."""
    return Network()


@pytest.fixture
def chain(tmp_path: Path, network: Network) -> Iterator[Chain]:
    """A chain at height 0."""
    made = Chain(tmp_path, network)
    yield made
    made.replica.store.close()


@pytest.fixture
async def source(tmp_path: Path, chain: Chain) -> AsyncIterator[Source]:
    """A running source of the chain."""
    made = Source(Address(path=tmp_path / "source.sock"), chain)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def other_source(tmp_path: Path, chain: Chain) -> AsyncIterator[Source]:
    """Another running source of the same chain."""
    made = Source(Address(path=tmp_path / "other.sock"), chain)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def config(tmp_path: Path, chain: Chain, source: Source) -> Config:
    """The configuration of a peer that follows `source`."""
    genesis = tmp_path / "genesis.json"
    genesis.write_bytes(chain.genesis)
    return Config(
        name="peer-1",
        listen=(Address(path=tmp_path / "peer.sock"),),
        sources=(source.address,),
        genesis=genesis,
        database=tmp_path / "peer.db",
    )


@pytest.fixture
async def peer(config: Config) -> AsyncIterator[RunningPeer]:
    """A running peer that follows `source`."""
    running = RunningPeer(config)
    await running.start()
    yield running
    await running.stop()
