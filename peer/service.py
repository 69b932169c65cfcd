"""Wires a peer together: its chain, the follower, the listener."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ledger import expiring
from ledger.errors import GenesisError
from ledger.opening import open_or_begin
from ledger.replica import Replica
from peer.activity import Activity
from peer.app import create_app
from peer.config import Config
from peer.errors import ConfigError
from peer.follower import Follower
from peer.metrics import Metrics
from peer.queries import Queries
from transport import listen
from transport.expiry import KeyExpiry
from transport.service import run_together


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run a peer until `stop` is set; raises `PeerError`, `LedgerError` or `AddressError` when it cannot start."""
    loop = asyncio.get_running_loop()
    ledger = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
    try:
        replica = await loop.run_in_executor(ledger, open_replica, config)
        try:
            activity = await loop.run_in_executor(ledger, Activity.open, replica.store)
            await _run(config, replica, activity, ledger, stop)
        finally:
            await loop.run_in_executor(ledger, replica.store.close)
    finally:
        ledger.shutdown()


def open_replica(config: Config) -> Replica:
    """The stored chain, or a new one from the genesis block; raises `ConfigError` for another chain's."""
    try:
        return open_or_begin(config.database, config.genesis)
    except GenesisError as error:
        raise ConfigError(str(error)) from None


async def _run(
    config: Config, replica: Replica, activity: Activity, ledger: ThreadPoolExecutor, stop: asyncio.Event
) -> None:
    metrics = Metrics()
    left = KeyExpiry("hsm_endorser_peer", lambda: expiring.seconds_left(replica.registry, replica.time))
    metrics.registry.register(left)
    follower = Follower(replica, ledger, config.sources, metrics, activity)
    app = create_app(config.name, replica.network, follower, Queries(replica.store, activity), metrics)
    ending = asyncio.Event()
    parts = (listen.serve(app, list(config.listen), ending), _follow(follower, ending))
    await run_together(parts, stop, ending)


async def _follow(follower: Follower, ending: asyncio.Event) -> None:
    await follower.run(ending)
    await ending.wait()  # a halted peer goes on answering
