"""How a peer starts: with nothing, with what it had, with what is not its own, and how it stops."""

import asyncio

import pytest

from ledger.errors import LedgerError, StoreError
from ledger.store import ChainStore, url_of
from peer.config import Config
from peer.errors import ConfigError
from peer.service import open_replica, serve
from protocol.block import Block
from tests import software_keys
from tests.chain_builder import Network
from tests.peer.surroundings import Chain, RunningPeer
from transport.address import AddressError


def test_a_missing_chain_is_begun_from_the_genesis_block(chain: Chain, config: Config) -> None:
    """The new chain holds block 0, byte for byte."""
    replica = open_replica(config)
    assert (replica.height, replica.store.block(0)) == (0, chain.genesis)
    replica.store.close()


def test_a_chain_that_was_left_empty_is_begun_again(chain: Chain, config: Config) -> None:
    """A peer that was killed between making the database and writing block 0 starts like a new one."""
    ChainStore.create(url_of(config.database)).close()
    replica = open_replica(config)
    assert (replica.height, replica.store.block(0)) == (0, chain.genesis)
    replica.store.close()


async def test_a_chain_of_another_genesis_is_refused(config: Config) -> None:
    """Nothing is overwritten, and the message says what to do."""
    open_replica(config).store.close()
    before = config.database.read_bytes()
    config.genesis.write_bytes(Network("other").genesis())
    with pytest.raises(ConfigError, match=r"does not begin with .*name the right genesis file, or move"):
        await serve(config, asyncio.Event())
    assert config.database.read_bytes() == before


async def test_a_damaged_database_is_refused(config: Config) -> None:
    """A file that is no database is named, and left as it is."""
    config.database.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=str(config.database)):
        await serve(config, asyncio.Event())
    assert config.database.read_bytes() == b"no database" * 1000


async def test_a_missing_genesis_block_is_named(config: Config) -> None:
    """The path stands in the message."""
    config.genesis.unlink()
    with pytest.raises(ConfigError, match=r"cannot read the genesis block .*genesis\.json: No such file"):
        await serve(config, asyncio.Event())


async def test_a_genesis_block_that_its_center_did_not_sign_is_refused(chain: Chain, config: Config) -> None:
    """A genesis file that does not verify makes no chain, and says why."""
    forged = chain.network.sign(Block.decode(chain.genesis), by=[software_keys.ecdsa("a stranger")])
    config.genesis.write_bytes(forged.encode())
    with pytest.raises(LedgerError, match="which is no center's"):
        await serve(config, asyncio.Event())


async def test_a_second_peer_at_the_same_address_is_refused(peer: RunningPeer) -> None:
    """The reason is the address, and the first peer goes on."""
    with pytest.raises(AddressError, match="a service is already running at"):
        await serve(peer.config, asyncio.Event())
    assert (await peer.status())["height"] == 0


@pytest.mark.requirement("E-17")
async def test_a_peer_starts_and_answers_without_any_source(chain: Chain, config: Config) -> None:
    """What it has verified, it answers from, whoever else runs."""
    lonely = config.model_copy(update={"sources": (config.sources[0].__class__(path=config.database / "nobody"),)})
    peer = RunningPeer(lonely)
    await peer.start()
    assert (await peer.get("/v1/blocks/0")).content == chain.genesis
    ready = await peer.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["checks"]["source"].startswith("nothing heard since the start")
    await peer.stop()
