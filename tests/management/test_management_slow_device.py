"""Throughput beside a slow device, in virtual time: the delays are exact, so the ratio is that of the decisions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from management.alarms import Alarms
from management.device_client import DeviceClient
from management.endorsing import Endorsing, Patience
from management.metrics import Metrics
from management.pool import Pool, Record
from management.replicated import ReplicatedStrategy
from management.routing import Router
from protocol.registry import Replicated
from tests.management.simulated_network import SimulatedNetwork
from tests.management.virtual_time import Inline, VirtualClock, VirtualLoop

HEALTHY = (0.004, 0.002)
"""Seconds for a request, and for each proposal in it."""
SLOWED = (0.04, 0.02)
FEEDERS = 4


class World:
    """The endorsing part of a management service, with three devices that it reaches without a network."""

    def __init__(self, network: SimulatedNetwork, folder: Path) -> None:
        self.network = network
        self.store = ChainStore.create(url_of(folder / "chain.db"))
        self.replica = Replica.create(self.store, (folder / "genesis.json").read_bytes())
        metrics = Metrics()
        self.pool = Pool(100_000)
        self.devices: dict[str, DeviceClient] = {}
        self.router = Router(self.devices, {Replicated: ReplicatedStrategy()})
        self.endorsing = Endorsing(
            self.replica,
            self.pool,
            self.router,
            self.devices,
            let_go=self._let_go,
            alarms=Alarms(metrics),
            metrics=metrics,
            patience=Patience(10, 5),
        )
        for name, device in network.devices.items():
            self.devices[name] = DeviceClient(
                name,
                device.address,
                self.replica,
                checkers=Inline(),
                metrics=metrics,
                listener=self.endorsing,
                hedge_seconds=1.0,
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything runs within the block."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(device.run(stop)) for device in self.devices.values()]
        tasks.append(asyncio.create_task(self.endorsing.run(stop)))
        await asyncio.sleep(1)
        yield
        stop.set()
        for device in self.devices.values():
            device.wake()
        await asyncio.gather(*tasks)

    async def endorsed_per_second(self, batches: int, size: int) -> float:
        """The rate for clients that wait for a whole batch before they send the next."""
        loop = asyncio.get_running_loop()

        async def feed() -> None:
            for _ in range(batches):
                records = [self.pool.add(self.network.alice.transaction(), 0) for _ in range(size)]
                self.endorsing.add(records)
                while any(record.stage != "endorsed" for record in records):  # noqa: ASYNC110  it is virtual time
                    await asyncio.sleep(0.002)

        started = loop.time()
        await asyncio.gather(*(feed() for _ in range(FEEDERS)))
        return FEEDERS * batches * size / (loop.time() - started)

    @staticmethod
    def _let_go(ended: Sequence[tuple[Record, object]]) -> None:
        assert not ended


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """A loop in virtual time."""
    made = VirtualLoop()
    yield made
    made.close()


@pytest.fixture
def world(tmp_path: Path, loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A network with replicated keys whose devices take their time."""
    network = SimulatedNetwork(tmp_path, routing=Replicated(), replicated=True)
    devices = {device.address: device for device in network.devices.values()}
    for device in network.devices.values():
        device.seconds = HEALTHY

    def connect(address: object, *, timeout: float) -> httpx2.AsyncClient:
        del timeout
        app = next(device.app() for known, device in devices.items() if known == address)
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost")

    clock = VirtualClock(loop)
    for module in ("management.device_client", "management.endorsing"):
        monkeypatch.setattr(f"{module}.time", clock)
    monkeypatch.setattr("management.device_client.connect", connect)
    made = World(network, tmp_path)
    yield made
    made.store.close()


@pytest.mark.requirement("E-7")
@pytest.mark.parametrize(("batches", "size"), [(10, 25), (60, 1)], ids=["batches", "singles"])
def test_slow_device_costs_no_throughput(
    world: World, loop: VirtualLoop, batches: int, size: int, record_property: Callable[[str, object], None]
) -> None:
    """With one of three devices slowed ten times, throughput stays at 90 % of that of the two healthy ones."""
    slow = world.network.device_c

    async def measure() -> tuple[float, float, float]:
        async with world.running():
            three_healthy = await world.endorsed_per_second(batches, size)
            slow.ready = False
            await asyncio.sleep(1)
            two = await world.endorsed_per_second(batches, size)
            slow.ready, slow.seconds = True, SLOWED
            await asyncio.sleep(1)
            await world.endorsed_per_second(2, size)  # until its pace is known
            return three_healthy, two, await world.endorsed_per_second(batches, size)

    three_healthy, two, with_slow = loop.run_until_complete(measure())
    record_property("transactions_per_second", {"three": three_healthy, "two": two, "two and a slow one": with_slow})
    assert three_healthy > 1.1 * two
    assert with_slow >= 0.9 * two, (three_healthy, two, with_slow)


@pytest.mark.requirement("E-7")
def test_load_follows_the_pace(world: World, loop: VirtualLoop) -> None:
    """Devices get work in proportion to their speed: one that is twice as fast gets about twice as much."""
    fast, middle, slow = world.network.devices.values()
    fast.seconds, middle.seconds, slow.seconds = (0.0, 0.002), (0.0, 0.004), (0.0, 0.004)

    async def measure() -> list[int]:
        async with world.running():
            await world.endorsed_per_second(10, 25)
            return [sum(map(len, device.requests)) for device in (fast, middle, slow)]

    quick, one, other = loop.run_until_complete(measure())
    assert 1.4 < quick / one < 2.8
    assert 1.4 < quick / other < 2.8
