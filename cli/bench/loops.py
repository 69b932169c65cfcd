"""How load is put on: closed loops of clients, each with one request under way, and an open loop at a fixed rate."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from cli.answers import TransactionStatus
from cli.bench.connection import Connection, post
from cli.submission import Signed
from protocol.block import VALID
from transport.address import Address

WAIT_SECONDS: Final = 30
TAKEN: Final = frozenset({200, 202})


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One transaction: when it was due (seconds, monotonic), how long it took, and whether it was committed valid."""

    at: float
    seconds: float
    good: bool


class Loop(msgspec.Struct, frozen=True):
    """What a loop did between its first and its last request."""

    samples: list[Sample]
    seconds: float
    failures: list[str]

    def times(self) -> list[float]:
        """The times of what was committed, in seconds, sorted."""
        return sorted(sample.seconds for sample in self.samples if sample.good)


def requests(signed: Sequence[Signed], until: str) -> Iterator[bytes]:
    """The requests that hand in transactions one by one, each answered when it is `endorsed` or `committed`."""
    query = f"/v1/transactions?wait={WAIT_SECONDS}" + ("&until=endorsed" if until == "endorsed" else "")
    return (post(query, raw) for _, raw in signed)


async def closed(address: Address, wanted: Iterator[bytes], clients: int, seconds: float, until: str) -> Loop:
    """`clients` connections, each sends its next request when its last one is answered, for `seconds`."""
    connections = [await Connection.open(address) for _ in range(clients)]
    samples: list[Sample] = []
    failures: list[str] = []
    began = time.perf_counter()

    async def run(connection: Connection) -> None:
        while time.perf_counter() - began < seconds:
            request = next(wanted, None)
            if request is None:
                failures.append("the transactions that were signed ahead are used up")
                return
            samples.append(await _measure(connection, request, time.perf_counter(), until, failures))

    try:
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(run(connection))
    finally:
        for connection in connections:
            connection.close()
    return Loop(samples, time.perf_counter() - began, failures)


async def paced(address: Address, wanted: Iterator[bytes], rate: float, seconds: float, most: int) -> Loop:
    """One request every 1/`rate` seconds, whether the last ones are answered or not; times count from when due.

    At most `most` are under way: where that is not enough the service does not keep up, and it is said.
    """
    free = [await Connection.open(address) for _ in range(most)]
    every = list(free)
    samples: list[Sample] = []
    failures: list[str] = []
    began = time.perf_counter()

    async def run(connection: Connection, request: bytes, due: float) -> None:
        samples.append(await _measure(connection, request, due, "committed", failures))
        free.append(connection)

    try:
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(wanted):
                due = began + number / rate
                if due - began >= seconds:
                    break
                pause = due - time.perf_counter()
                if pause > 0:
                    await asyncio.sleep(pause)
                if not free:
                    failures.append(f"{most} requests were under way: {rate:.0f} a second are too many")
                    break
                group.create_task(run(free.pop(), request, due))
    finally:
        for connection in every:
            connection.close()
    return Loop(samples, time.perf_counter() - began, failures)


async def _measure(connection: Connection, request: bytes, due: float, until: str, failures: list[str]) -> Sample:
    status, body = await connection.ask(request)
    seconds = time.perf_counter() - due
    answer = _decoder.decode(body) if status in TAKEN else None
    if until == "endorsed":
        good = answer is not None and answer.status in {"endorsed", "committed"}
    else:
        good = answer is not None and (answer.status, answer.code) == ("committed", VALID)
    if not good:
        failures.append(f"{status}: {body[:200].decode(errors='replace')}")
    return Sample(due, seconds, good)


_decoder = msgspec.json.Decoder(TransactionStatus)
