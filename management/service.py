"""The management service as a whole: what is started in which order, and how it stops."""

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import structlog

from ledger import expiring
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import AuthorizationError, GenesisError
from ledger.opening import open_or_begin
from ledger.replica import Replica
from management.alarms import Alarms
from management.app import control_app, public_app
from management.blocks import Blocks
from management.ca import CertificateAuthority
from management.ca_doors import CaDoors
from management.config import Config
from management.device_client import DeviceClient
from management.endorsing import Endorsing, Patience
from management.enrolments import Enrolments
from management.errors import ConfigError
from management.feed import Feed
from management.group_commit import GroupCommit
from management.intake import Intake
from management.issued import IssuedCertificates
from management.issuing import Issuing
from management.metrics import Metrics
from management.outcome import ALREADY_EXECUTED, Refusal
from management.partitioned import PartitionedStrategy
from management.pool import Endorsed, Pool, Record
from management.records import RecordStore
from management.registering import Registering
from management.renewal import Renewals
from management.replicated import ReplicatedStrategy
from management.rotation import RotationStrategy
from management.routing import Router
from management.rule_now import rule_now
from management.settling import Settling
from management.signer import HeaderSigner
from management.waiters import Waiters
from protocol.registry import Partitioned, Replicated, Rotation
from protocol.transaction import Transaction
from transport import listen
from transport.expiry import KeyExpiry
from transport.operations import Readiness

CHECKERS: Final = 2
READERS: Final = 2
RESTORED_AT_ONCE: Final = 256

_log = structlog.get_logger()


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run the management service until `stop` is set; what was acknowledged is on disk at any time."""
    loop = asyncio.get_running_loop()
    ledger = ThreadPoolExecutor(1, "ledger")
    try:
        records, replica = await loop.run_in_executor(ledger, open_chain, config)
        center = Center(config, records, replica, ledger)
        await center.run(stop)
        await loop.run_in_executor(ledger, records.chain.close)
    finally:
        ledger.shutdown(wait=True)
    _log.info("management stopped", height=replica.height)


def open_chain(config: Config) -> tuple[RecordStore, Replica]:
    """The chain and the record pool in the configured database; at the very first start, from genesis."""
    try:
        replica = open_or_begin(config.database, config.genesis)
    except GenesisError as error:
        raise ConfigError(str(error)) from None
    return RecordStore.open(replica.store), replica


class Center:
    """All parts of one management service, wired."""

    def __init__(self, config: Config, records: RecordStore, replica: Replica, ledger: ThreadPoolExecutor) -> None:
        self._config = config
        self._records = records
        self._ledger = ledger
        self.replica = replica
        self.period_ms = config.period_ms
        self._checkers = ThreadPoolExecutor(CHECKERS, "check")
        self._readers = ThreadPoolExecutor(READERS, "read")
        self.metrics = Metrics()
        self.metrics_registry = self.metrics.registry
        left = KeyExpiry("hsm_endorser_management", lambda: expiring.seconds_left(replica.registry, replica.time))
        self.metrics_registry.register(left)
        self.pool = Pool(config.pool_limit)
        self.waiters = Waiters()
        self._group = GroupCommit(records, self.metrics)
        self._settling = Settling(self.pool, self._group, self.waiters, self.metrics)
        self.devices: dict[str, DeviceClient] = {}
        self.alarms = Alarms(self.metrics)
        self.router = Router(
            self.devices,
            {Partitioned: PartitionedStrategy(), Replicated: ReplicatedStrategy(), Rotation: RotationStrategy()},
        )
        self._endorsing = Endorsing(
            replica,
            self.pool,
            self.router,
            self.devices,
            let_go=self._settling.let_go,
            alarms=self.alarms,
            metrics=self.metrics,
            patience=Patience(config.endorsement_ms / 1000, min(config.endorsement_ms, config.silence_ms) / 1000),
            tell=self.waiters.endorsed,
        )
        self.devices.update(
            (
                device.name,
                DeviceClient(
                    device.name,
                    device.address,
                    replica,
                    checkers=self._checkers,
                    metrics=self.metrics,
                    listener=self._endorsing,
                    hedge_seconds=config.hedge_ms / 1000,
                ),
            )
            for device in config.devices
        )
        self.intake = Intake(
            replica,
            self.pool,
            records,
            self._group,
            endorse=self._endorsing.add,
            waiters=self.waiters,
            checkers=self._checkers,
            ledger=ledger,
            metrics=self.metrics,
        )
        self.feed = Feed(records.chain, replica.height, self._readers)
        self._signer = HeaderSigner(replica, self.devices, config.name)
        self.blocks = Blocks(
            replica,
            records,
            self.pool,
            endorsing=self._endorsing,
            settling=self._settling,
            signer=self._signer,
            waiters=self.waiters,
            feed=self.feed,
            metrics=self.metrics,
            ledger=ledger,
            center=config.name,
            period=config.period_ms / 1000,
            heartbeat=config.heartbeat_ms / 1000,
            most=config.block_transactions,
        )
        doors = CaDoors(config.ca_name, self.devices)
        registering = Registering(config.ca_name, replica, doors, self.intake)
        enrolments, issued = Enrolments(records), IssuedCertificates(records)
        issuing = Issuing(config.ca_name, replica, issued, doors, self._readers)
        self.ca = CertificateAuthority(replica, enrolments, issuing, registering, self._readers)
        self.renewals = Renewals(replica, self.ca, enrolments, registering, self._readers)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, or until a part fails: then all of it ends, and the failure is raised."""
        restored = await self._restore()
        ending = asyncio.Event()
        parts: list[Coroutine[Any, Any, None]] = [
            self.blocks.run(ending),
            self._endorsing.run(ending),
            *(device.run(ending) for device in self.devices.values()),
            self._readmit(restored, ending),
        ]
        listeners = [
            listen.serve(public_app(self), self._config.listen, ending),
            listen.serve(control_app(self), [self._config.control], ending),
        ]
        writer_stop = asyncio.Event()
        writer = asyncio.create_task(self._group.run(writer_stop))
        tasks = [asyncio.create_task(part) for part in (*parts, *listeners)]
        stopping = asyncio.create_task(stop.wait())
        try:
            await self._until_over(stopping, [writer, *tasks])
        finally:
            stopping.cancel()
            ending.set()
            self.feed.end()
            self.waiters.end()
            for device in self.devices.values():
                device.wake()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer_stop.set()
            self._group.wake()
            await asyncio.gather(writer, return_exceptions=True)
            await self._settling.finish()
            for threads in (self._checkers, self._readers):
                threads.shutdown(wait=True)
        for task in (writer, *tasks):
            if not task.cancelled() and (error := task.exception()):
                raise error

    async def readiness(self) -> Readiness:
        """Whether transactions can be taken, endorsed and cut now."""
        devices = {name: "ok" if device.is_ready else device.reason for name, device in self.devices.items()}
        checks = {
            "pool": f"full: {len(self.pool)} transactions wait" if self.pool.is_full else "ok",
            "blocks": self.blocks.trouble or "ok",
            "center": self._signer.trouble() or "ok",
            "policies": self._unsatisfiable() or "ok",
            **{f"device {name}": state for name, state in devices.items()},
        }
        self.metrics.pooled.set(len(self.pool))
        self.metrics.ready.set(self.pool.ready)
        self.metrics.height.set(self.replica.height)
        ready = all(checks[name] == "ok" for name in ("pool", "blocks", "center", "policies"))
        return Readiness(ready, checks)

    def _unsatisfiable(self) -> str:
        """The policies that the devices that are ready cannot satisfy."""
        view = self.replica.registry
        kinds = sorted(key.partition("/")[2] for key in view.entries if key.startswith("policy/"))
        rules = {kind: rule_now(self.replica, kind) for kind in kinds}
        unmet = [kind for kind, rule in rules.items() if rule is not None and not self.router.can_serve(rule)]
        return f"too few devices are ready for {', '.join(unmet)}" if unmet else ""

    async def _until_over(self, stopping: "asyncio.Task[bool]", tasks: list["asyncio.Task[None]"]) -> None:
        """Until a stop is asked for, or a part that should run for ever fails."""
        waiting: set[asyncio.Task[Any]] = {stopping, *tasks}
        while not stopping.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(task is not stopping and not task.cancelled() and task.exception() for task in done):
                return

    async def _restore(self) -> list[Record]:
        """Everything that was acknowledged before the last stop is in the pool again, before any door opens."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        rows = await loop.run_in_executor(self._readers, self._records.load)
        height = self.replica.height
        restored = [self.pool.restore(Transaction.decode(raw), sequence, height) for sequence, raw in rows]
        if restored:
            _log.info("record pool restored", transactions=len(restored), seconds=time.monotonic() - started)
        return restored

    async def _readmit(self, restored: list[Record], ending: asyncio.Event) -> None:
        """Check restored transactions again, as this process has verified none of them, and send them on."""
        loop = asyncio.get_running_loop()
        for start in range(0, len(restored), RESTORED_AT_ONCE):
            if ending.is_set():
                return
            some = restored[start : start + RESTORED_AT_ONCE]
            refusals = await loop.run_in_executor(self._checkers, self._recheck, some)
            self._settling.let_go([(some[index], refusal) for index, refusal in refusals.items()])
            good = [record for index, record in enumerate(some) if index not in refusals]
            self.pool.put(Endorsed(record, {}) for record in good if record.transaction.payload.contract == REGISTRY)
            self._endorsing.add(record for record in good if record.transaction.payload.contract != REGISTRY)

    def _recheck(self, some: list[Record]) -> dict[int, Refusal]:
        known = self._records.chain.locate([record.id for record in some])
        refusals: dict[int, Refusal] = {}
        for index, record in enumerate(some):
            if record.id in known:
                refusals[index] = Refusal(code=ALREADY_EXECUTED, detail=f"it is in block {known[record.id].height}")
                continue
            try:
                self.replica.authorize(record.transaction)
            except AuthorizationError as error:
                refusals[index] = Refusal(code=error.code, detail=str(error))
        return refusals
