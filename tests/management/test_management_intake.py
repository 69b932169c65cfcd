"""What is taken, what is refused and why, and that what is acknowledged is kept."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from protocol import canonical
from protocol.envelope import Envelope
from protocol.transaction import Transaction
from tests.management.simulated_network import RunningCenter, SimulatedNetwork, now_ms, running
from transport.connect import connect

PREFIX = "urn:hsm-endorser:problem:"


def asked(network: SimulatedNetwork) -> list[str]:
    """All transactions that any device was asked about."""
    return [each for device in network.devices.values() for batch in device.requests for each in batch]


@pytest.mark.requirement("E-2")
async def test_unknown_client_is_refused_before_any_device_is_asked(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """A client that is not on the whitelist gets 403 unknown-client, and no endorser hears of it."""
    answer = await center.submit(network.mallory.transaction(), wait=5)
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "unknown-client")
    assert answer.headers["content-type"] == "application/problem+json"
    assert asked(network) == []


@pytest.mark.requirement("E-3")
async def test_wrong_reference_signature_is_refused(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A transaction in another's name gets 403 bad-signature."""
    network.mallory.name = "alice"
    answer = await center.submit(network.mallory.transaction())
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "bad-signature")
    assert asked(network) == []


async def test_wrong_network_is_refused(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A transaction for another network gets 422 wrong-network."""
    answer = await center.submit(network.alice.transaction(network="othernet"))
    assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "wrong-network")


@pytest.mark.requirement("M-7")
async def test_expired_transaction_is_refused_at_intake(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A transaction whose time is over gets 422 expired."""
    answer = await center.submit(network.alice.transaction(valid_until=now_ms() - 1))
    assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "expired")


async def test_transaction_of_the_far_future_is_refused_without_a_vote(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """A transaction that counts only from a later height gets 409 not-yet-valid; no device rejects it for ever."""
    answer = await center.submit(network.alice.transaction(valid_from=1000))
    assert (answer.status_code, answer.json()["type"]) == (409, PREFIX + "not-yet-valid")
    assert asked(network) == []


async def test_type_without_policy_is_refused(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A transaction type that no policy covers gets 422 no-policy."""
    answer = await center.submit(network.alice.transaction("weather.change"))
    assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "no-policy")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{}", 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b'{"payload":"","payload":"","payloadType":"","signatures":[]}', 400, "malformed"),
        (b"[" * 500_000, 400, "malformed"),
        (b'{"a":' * 100_000, 400, "malformed"),
        (b"x" * ((1 << 20) + 1), 413, "too-large"),
    ],
    ids=["empty", "nothing", "not-utf8", "duplicate-key", "deep-list", "deep-object", "oversized"],
)
async def test_bad_bodies_are_refused_at_once(center: RunningCenter, body: bytes, status: int, code: str) -> None:
    """Bytes that are no canonical transaction get 4xx with the reason within 100 ms."""
    started = time.monotonic()
    answer = await center.submit(body)
    elapsed = time.monotonic() - started
    assert (answer.status_code, answer.json()["type"]) == (status, PREFIX + code)
    assert elapsed < 0.1


async def test_non_canonical_and_deep_arguments_are_refused(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A good signature does not help bytes that are not canonical, or arguments nested too deeply."""
    good = network.alice.transaction()
    answer = await center.submit(json.dumps(json.loads(good.raw)).encode())
    assert (answer.status_code, answer.json()["type"]) == (400, PREFIX + "malformed")
    assert "not canonical" in answer.json()["detail"]
    deep: dict[str, object] = {}
    for _ in range(40):
        deep = {"a": deep}
    payload = canonical.encode({**json.loads(good.envelope.payload), "arguments": deep})
    envelope = network.alice.key.envelope(good.envelope.payload_type, payload)
    answer = await center.submit(canonical.encode(envelope))
    assert (answer.status_code, answer.json()["type"]) == (400, PREFIX + "limit-exceeded")


async def test_batch_gives_each_line_its_own_result(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Good and bad lines of a batch are answered one by one, in order."""
    good, other = network.alice.transaction(), network.bob.transaction()
    results = await center.submit_batch([good, b"{}", network.mallory.transaction(), other])
    assert [result.get("transaction") for result in results] == [good.id, None, None, other.id]
    codes = [result["problem"]["type"].removeprefix(PREFIX) for result in results if "problem" in result]
    assert codes == ["malformed", "unknown-client"]
    for transaction in (good, other):
        assert (await center.status(transaction))["status"] == "committed"


async def test_batch_of_too_many_lines_is_refused(center: RunningCenter) -> None:
    """A body of line feeds alone is refused before it is taken apart."""
    answer = await center.http.post("/v1/transactions:batch", content=b"\n" * (1 << 20))
    assert (answer.status_code, answer.json()["type"]) == (413, PREFIX + "too-many-lines")


@pytest.mark.requirement("M-7")
async def test_submission_is_idempotent_by_id(center: RunningCenter, network: SimulatedNetwork) -> None:
    """The same transaction again, waiting or committed, gets its status, and stands in one block once."""
    transaction = network.alice.transaction()
    for device in network.devices.values():
        device.gate.clear()
    first = await center.submit(transaction)
    again = await center.submit_batch([transaction, transaction])
    assert first.status_code == 202
    assert first.json()["links"]["status"] == f"/v1/transactions/{transaction.id}"
    assert [result["status"] for result in again] == ["pending", "pending"]
    for device in network.devices.values():
        device.gate.set()
    committed = await center.status(transaction)
    repeated = await center.submit(transaction)
    assert (repeated.status_code, repeated.json()) == (200, committed)
    assert sum(block.header.transaction_count for block in await center.blocks(1, int(str(committed["height"])))) == 1


async def test_concurrent_copies_are_kept_once(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Copies that arrive at one moment are all acknowledged and endorsed once."""
    transaction = network.alice.transaction()
    answers = await asyncio.gather(*(center.submit(transaction) for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert (await center.status(transaction))["status"] == "committed"
    assert asked(network).count(transaction.id) == 2


@pytest.mark.requirement("E-3")
async def test_forged_copy_does_not_poison_the_id(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A copy with a wrong signature (same id) is refused and forgotten: the good one is taken afterwards."""
    good = network.alice.transaction()
    wrong = network.mallory.key.sign(b"something else")
    forged = canonical.encode(
        Envelope(
            good.envelope.payload,
            good.envelope.payload_type,
            (type(wrong)(network.alice.key.id, wrong.sig),),
        )
    )
    assert Transaction.decode(forged).id == good.id
    refused = await center.submit(forged)
    assert refused.json()["type"] == PREFIX + "bad-signature"
    status = await center.http.get(f"/v1/transactions/{good.id}")
    assert (status.status_code, status.json()["type"]) == (404, PREFIX + "unknown-transaction")
    assert (await center.submit(good, wait=10)).json()["status"] == "committed"


async def test_full_pool_answers_429(network: SimulatedNetwork) -> None:
    """Beyond the pool's limit a transaction gets 429 pool-full with Retry-After, and is taken later."""
    for device in network.devices.values():
        device.gate.clear()
    async with running(network, pool_limit=3) as center:
        kept = [network.alice.transaction() for _ in range(3)]
        await center.submit_batch(list(kept))
        more = network.alice.transaction()
        answer = await center.submit(more)
        assert (answer.status_code, answer.json()["type"]) == (429, PREFIX + "pool-full")
        assert answer.headers["retry-after"] == "1"
        (in_batch,) = await center.submit_batch([more])
        assert in_batch["problem"]["type"] == PREFIX + "pool-full"
        for device in network.devices.values():
            device.gate.set()
        for transaction in kept:
            assert (await center.status(transaction))["status"] == "committed"
        assert (await center.submit(more, wait=10)).json()["status"] == "committed"


async def test_wait_is_bounded(center: RunningCenter) -> None:
    """Nobody may wait for more than 60 seconds."""
    answer = await center.http.get(f"/v1/transactions/{'0' * 64}?wait=61")
    assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "malformed")


async def test_wait_ends_with_the_status_so_far(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Whoever waited for nothing in vain is told that the transaction is pending still."""
    for device in network.devices.values():
        device.gate.clear()
    answer = await center.submit(network.alice.transaction(), wait=0.1)
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")


SERVER = """
import asyncio, sys
from pathlib import Path
from management.config import load
from management.service import serve
asyncio.run(serve(load(Path(sys.argv[1])), asyncio.Event()))
"""


async def _spawn(network: SimulatedNetwork) -> asyncio.subprocess.Process:
    folder = network.folder
    devices = "\n".join(f'[[devices]]\nname = "{name}"\naddress = "unix:{name}.sock"' for name in network.devices)
    (folder / "management.toml").write_text(
        'name = "center-1"\nlisten = ["unix:management.sock"]\ncontrol = "unix:control.sock"\n'
        f'genesis = "genesis.json"\ndatabase = "chain.db"\nperiod_ms = 50\n{devices}\n'
    )
    root = Path(__file__).parents[2]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        str(folder / "management.toml"),
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


async def _listening(path: Path) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(path)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return


@pytest.mark.requirement("M-6")
async def test_acknowledged_transactions_survive_sigkill(network: SimulatedNetwork) -> None:
    """The process is killed right after a 202; the next one endorses and commits everything acknowledged."""
    for device in network.devices.values():
        device.gate.clear()
    process = await _spawn(network)
    transactions = [network.alice.transaction() for _ in range(200)]
    await _listening(network.folder / "management.sock")
    async with connect(network.config().listen[0], timeout=30.0) as http:
        body = b"\n".join(transaction.raw for transaction in transactions)
        answer = await http.post("/v1/transactions:batch", content=body)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert [result["status"] for result in answer.json()["results"]] == ["pending"] * 200
    for device in network.devices.values():
        device.gate.set()
    async with running(network) as center:
        for transaction in transactions:
            status = await center.status(transaction)
            assert (status["status"], status["code"]) == ("committed", "valid")


async def test_waiting_can_end_with_the_endorsements(center: RunningCenter, network: SimulatedNetwork) -> None:
    """With `until=endorsed` the answer comes before the cut, and says so; what is committed already says that."""
    transaction = network.alice.transaction()
    path = "/v1/transactions?wait=10&until=endorsed"
    first = await center.http.post(path, content=transaction.raw)
    assert (first.status_code, first.json()["status"]) == (202, "endorsed")
    assert (await center.status(transaction))["status"] == "committed"
    again = await center.http.post(path, content=transaction.raw)
    assert (again.status_code, again.json()["status"]) == (200, "committed")
