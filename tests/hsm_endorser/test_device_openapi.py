"""Whatever is asked along the OpenAPI document is answered as the document says: the real service, over HTTP."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from hsm_endorser.service import serve
from tests.hsm_endorser.device_world import World
from transport.address import Address


@pytest.fixture
def served(world: World) -> Iterator[str]:
    """The device at a loopback port, in a thread with an event loop of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = world.config.model_copy(update={"listen": (Address(host="127.0.0.1", port=port),)})
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(config, stop),))
    thread.start()
    base = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            httpx2.get(f"{base}/health/live", trust_env=False).raise_for_status()
            break
        except httpx2.HTTPError:
            time.sleep(0.05)
    yield base
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def test_answers_keep_to_the_document(served: str) -> None:
    """No answer is a 500, and each has a status, type and schema that the document names."""
    schema = schemathesis.openapi.from_url(f"{served}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:

        @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            # A schema cannot say "canonical JSON", nor that a certificate is the CA's: such a no is right.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        ask()
