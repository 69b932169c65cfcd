"""Whatever is asked along the OpenAPI documents is answered as the documents say: the real service, over HTTP."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from management.service import serve
from tests.management.simulated_network import SimulatedNetwork
from transport.address import Address

ENDLESS = ["/v1/blocks", "/v1/events"]
"""Streams, which have tests of their own."""


@schemathesis.serializer("application/x-ndjson")
def lines(_context: object, value: object) -> bytes:
    """The body of a batch, as it was made up."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def free_address() -> Address:
    """A loopback address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(host="127.0.0.1", port=probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The public and the control listener of a service with devices, in a thread with an event loop of its own."""
    addresses = {"public": free_address(), "control": free_address()}
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run(folder: Path) -> None:
        network = SimulatedNetwork(folder)
        for device in network.devices.values():
            await device.start()
        config = network.config(listen=[addresses["public"]], control=addresses["control"])
        await serve(config, stop)
        for device in network.devices.values():
            await device.stop()

    folder = tmp_path_factory.mktemp("openapi")
    thread = threading.Thread(target=loop.run_until_complete, args=(run(folder),))
    thread.start()
    for address in addresses.values():
        for _ in range(200):
            try:
                httpx2.get(f"{address.base_url}/health/live", trust_env=False).raise_for_status()
                break
            except httpx2.HTTPError:
                time.sleep(0.05)
    yield {name: address.base_url for name, address in addresses.items()}
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


@pytest.mark.parametrize(("listener", "count"), [("public", 14), ("control", 8)])
def test_answers_keep_to_the_document(served: dict[str, str], listener: str, count: int) -> None:
    """No answer is a 500, and each has a status, type and schema that the document names."""
    schema = schemathesis.openapi.from_url(f"{served[listener]}/openapi.json").exclude(path=ENDLESS)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == count
    for operation in operations:

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            # A schema cannot say which transaction, name or secret is known: such a no is right.
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=10)

        ask()
