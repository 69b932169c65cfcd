"""Wires a device together: its copy of the chain, its guard, its token, the doors, the listener."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import structlog

from hsm_endorser import guard_chain
from hsm_endorser.app import create_app, create_control_app
from hsm_endorser.chain import Chain
from hsm_endorser.config import Config
from hsm_endorser.custody.statement import Auditor
from hsm_endorser.device import Device
from hsm_endorser.doors import Doors
from hsm_endorser.errors import ConfigError, GuardDamagedError, NotReadyError
from hsm_endorser.guard import Guard
from hsm_endorser.lifetimes import Lifetimes
from hsm_endorser.metrics import Metrics
from hsm_endorser.operator import Operator
from hsm_endorser.readiness import Health
from hsm_endorser.rotation import Rotations
from hsm_endorser.signing import GuardedToken
from hsm_endorser.token import Pinned
from ledger.errors import GenesisError
from ledger.opening import open_or_begin
from ledger.replica import CheckedBlock, Replica
from protocol.keys import PublicKey
from transport import listen
from transport.expiry import KeyExpiry
from transport.service import run_together

ENROLMENT_SECONDS: Final = 3.0
"""How long a device that is not enrolled yet waits for a further block."""

log = structlog.get_logger()


class Parts(msgspec.Struct, frozen=True):
    """The parts of a running device."""

    metrics: Metrics
    chain: Chain
    guard: Guard
    signer: GuardedToken
    device: Device
    doors: Doors
    lifetimes: Lifetimes
    health: Health
    operator: Operator

    def applied(self, checked: CheckedBlock) -> None:
        """After each block: the chain may show what this device signed and a restored guard does not know."""
        self.metrics.height.set(checked.block.header.height)
        guard_chain.compare(self.guard, self.device.name, checked)


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run a device until `stop` is set.

    Raises `DeviceError`, `LedgerError` or `AddressError` when it cannot start. A token that is away for the moment
    is no reason: the device then says that it is not ready, and recovers when the token is back.
    """
    async with assemble(config) as parts:
        app = create_app(parts.device, parts.doors, parts.health, parts.metrics)
        control = create_control_app(parts.operator, parts.health, parts.metrics)
        ending = asyncio.Event()  # set by `stop`, or when one part fails
        running = [
            listen.serve(app, list(config.listen), ending),
            *([listen.serve(control, [config.control], ending)] if config.control else []),
            parts.device.run(ending),
            parts.lifetimes.run(ending),
            _follow(parts, config, ending),
        ]
        await run_together(running, stop, ending)


@contextlib.asynccontextmanager
async def assemble(config: Config) -> AsyncIterator[Parts]:
    """All parts of a device, opened in the order of trust: chain, guard, token."""
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        stack.callback(thread.shutdown)
        replica = await loop.run_in_executor(thread, open_replica, config)
        stack.callback(lambda: thread.submit(replica.store.close).result())
        chain = Chain(replica, thread)
        await _reach_enrolment(config, chain)
        pinned = _enrolled(config, replica)
        guard = _open_guard(config, replica)
        signer = await GuardedToken.start(guard, config.token_config, pinned=pinned, metrics=metrics, patient=True)
        stack.push_async_callback(signer.close)
        device = Device(config.name, chain, signer, replica.memory, metrics)
        stack.callback(device.close)
        doors = Doors(config.name, chain, signer)
        lifetimes = Lifetimes(config.name, chain, signer, config.warn_days)
        metrics.registry.register(KeyExpiry("hsm_endorser_device", lifetimes.figures))
        health = Health(device, chain, doors, signer, lifetimes=lifetimes, metrics=metrics)
        metrics.height.set(chain.height)
        operator = Operator(
            device.gate,
            signer,
            Rotations(config.name, chain, signer),
            Auditor(config.name, chain.network, signer),
        )
        yield Parts(metrics, chain, guard, signer, device, doors, lifetimes, health, operator)


def open_replica(config: Config) -> Replica:
    """The stored chain, or a new one from the genesis block; raises `ConfigError` for another chain's."""
    try:
        return open_or_begin(config.database, config.genesis)
    except GenesisError as error:
        raise ConfigError(str(error)) from None


def _open_guard(config: Config, replica: Replica) -> Guard:
    """The guard. Where it is lost, the device signs nothing; it starts all the same, to say so and what to do."""
    try:
        guard = Guard.open(config.guard, network=replica.network, device=config.name)
    except GuardDamagedError as error:
        log.critical("nothing is signed", reason=str(error))
        return Guard.lost(config.guard, str(error), network=replica.network, device=config.name)
    guard_chain.compare_all(guard, config.name, replica)
    if guard.trouble:
        log.critical("nothing is signed", reason=guard.trouble)
    return guard


async def _reach_enrolment(config: Config, chain: Chain) -> None:
    """Follow the chain to the block that enrolled this device, where it was not there from the beginning."""
    if chain.registry.device(config.name) is not None:
        return
    log.info("not enrolled at this height; following the chain", height=chain.height)
    stop = asyncio.Event()
    following = asyncio.create_task(chain.follow(config.chain, lambda _checked: None, stop))
    try:
        while chain.registry.device(config.name) is None:
            await chain.reach(chain.height + 1, seconds=ENROLMENT_SECONDS)
    except NotReadyError:
        pass  # there are no more blocks: who knows the registry at its end says what is wrong
    finally:
        stop.set()
        await following


def _enrolled(config: Config, replica: Replica) -> Pinned:
    entry = replica.registry.device(config.name)
    if entry is None:
        raise ConfigError(
            f"the registry of network {replica.network} knows no device {config.name} at height {replica.height}; "
            "correct `name`, or let the administrators enrol this device"
        )
    return Pinned(entry.token, PublicKey.load(entry.identity).id)


async def _follow(parts: Parts, config: Config, ending: asyncio.Event) -> None:
    await parts.chain.follow(config.chain, parts.applied, ending)
    await ending.wait()  # a halted device goes on answering why
