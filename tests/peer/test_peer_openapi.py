"""Whatever is asked along the OpenAPI document is answered as the document says: the real peer, over HTTP."""

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

from peer.config import Config
from peer.service import serve
from tests.chain_builder import Network
from transport.address import Address


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A peer at block 0 that waits for its source, at a loopback port, in a thread with an event loop of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Address(host="127.0.0.1", port=probe.getsockname()[1])
    (tmp_path / "genesis.json").write_bytes(Network().genesis())
    config = Config(
        name="peer-1",
        listen=(address,),
        sources=(Address(path=tmp_path / "nobody.sock"),),
        genesis=tmp_path / "genesis.json",
        database=tmp_path / "chain.db",
    )
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(config, stop),))
    thread.start()
    for _ in range(200):
        try:
            httpx2.get(f"{address.base_url}/health/live", trust_env=False).raise_for_status()
            break
        except httpx2.HTTPError:
            time.sleep(0.05)
    yield address.base_url
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def test_answers_keep_to_the_document(served: str) -> None:
    """No answer is a 500, and each has a status, type and schema that the document names."""
    schema = schemathesis.openapi.from_url(f"{served}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 7
    for operation in operations:

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            # A schema cannot say which transaction, block or key is known: such a no is right.
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=10)

        ask()
