"""Wires a peer together: its chain, the follower, the listener."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ledger.replica import Replica
from ledger.store import ChainStore
from peer.app import create_app
from peer.config import Config
from peer.errors import ConfigError, GenesisMismatchError
from peer.follower import Follower
from peer.metrics import Metrics
from peer.queries import Queries
from transport import listen


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run a peer until `stop` is set; raises `PeerError`, `LedgerError` or `AddressError` when it cannot start."""
    loop = asyncio.get_running_loop()
    ledger = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
    try:
        replica = await loop.run_in_executor(ledger, open_replica, config)
        try:
            await _run(config, replica, ledger, stop)
        finally:
            await loop.run_in_executor(ledger, replica.store.close)
    finally:
        ledger.shutdown()


def open_replica(config: Config) -> Replica:
    """The stored chain, or a new one from the genesis block; raises `GenesisMismatchError` for another chain's."""
    try:
        genesis = config.genesis.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the genesis block {config.genesis}: {error.strerror}") from None
    url = config.database_url
    store = ChainStore.open(url) if config.database.exists() else ChainStore.create(url)
    first = store.block(0)
    if first is None:  # new, or the process was killed before block 0 was written
        return Replica.create(store, genesis)
    if first != genesis:
        store.close()
        raise GenesisMismatchError(
            f"{config.database} holds a chain that does not begin with {config.genesis}; "
            "name the right genesis file, or move the database away and start again to fetch the chain anew"
        )
    return Replica.open(store)


async def _run(config: Config, replica: Replica, ledger: ThreadPoolExecutor, stop: asyncio.Event) -> None:
    metrics = Metrics()
    follower = Follower(replica, ledger, config.sources, metrics)
    app = create_app(config.name, replica.network, follower, Queries(replica.store), metrics)
    ending = asyncio.Event()  # set by `stop`, or when either part fails
    parts = {
        asyncio.create_task(listen.serve(app, list(config.listen), ending)),
        asyncio.create_task(_follow(follower, ending)),
    }
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        ending.set()
        results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _follow(follower: Follower, ending: asyncio.Event) -> None:
    await follower.run(ending)
    await ending.wait()  # a halted peer goes on answering
