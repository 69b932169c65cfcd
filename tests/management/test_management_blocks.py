"""Cutting blocks: what goes first, what is dropped, and that decided is decided."""

import asyncio

import pytest
from starlette.responses import Response

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from management.blocks import Blocks
from protocol import registry as entries
from protocol.block import Block
from protocol.messages import Signed
from protocol.transaction import Transaction
from tests.management.simulated_network import Key, RunningCenter, SimulatedNetwork, now_ms, running
from transport.problem import ProblemError, problem_response

PREFIX = "urn:hsm-endorser:problem:"


def administrators(network: SimulatedNetwork, *changes: entries.Entry) -> Transaction:
    """A registry transaction that the administrator signed."""
    arguments: dict[str, object] = {"entries": list(changes)}
    return network.admin.transaction("registry.put", arguments)


@pytest.mark.requirement("M-5")
async def test_left_over_transactions_go_first(strict_network: SimulatedNetwork) -> None:
    """A block takes no more than its limit, and what is left over is in the next one before all that came later."""
    network = strict_network  # all votes come at one moment
    network.device_a.header_gate.clear()
    async with running(network, block_transactions=3) as center:
        first = [network.alice.transaction() for _ in range(7)]
        await center.submit_batch(list(first))
        await asyncio.sleep(0.3)  # a block is decided and waits for its signature
        later = [network.bob.transaction() for _ in range(3)]
        await center.submit_batch(list(later))
        network.device_a.header_gate.set()
        blocks = await center.blocks(1, 4)
        assert [len(block.transactions) for block in blocks] == [3, 3, 3, 1]
        order = [transaction.id for block in blocks for transaction in block.transactions]
        assert order == [transaction.id for transaction in (*first, *later)]


@pytest.mark.requirement("M-7")
async def test_transaction_that_expires_in_the_pool_is_dropped(network: SimulatedNetwork) -> None:
    """What has expired at the cut is in no block, and its status says so."""
    network.device_b.gate.clear()
    network.device_c.gate.clear()
    async with running(network) as center:
        transaction = network.alice.transaction(valid_until=now_ms() + 400)
        await center.submit(transaction)
        await asyncio.sleep(0.6)
        network.device_b.gate.set()
        network.device_c.gate.set()
        status = await center.status(transaction)
        assert status["status"] == "refused"
        assert status["problem"]["type"] == PREFIX + "expired"
        assert (await center.http.get("/v1/network")).json()["height"] == 0


@pytest.mark.requirement("M-6")
async def test_decided_block_is_finished_after_a_crash(network: SimulatedNetwork) -> None:
    """A block that was decided and not signed before the stop is the block of its height afterwards."""
    network.device_a.header_gate.clear()
    transactions = [network.alice.transaction() for _ in range(5)]
    async with running(network) as center:
        await center.submit_batch(list(transactions))
        await asyncio.sleep(0.5)  # decided; the device is asked and does not answer
        assert (await center.http.get("/v1/network")).json()["height"] == 0
    asked_at_the_end = list({block.authentication for block in network.device_a.asked_headers})
    network.device_a.header_gate.set()
    async with running(network) as center:
        statuses = [await center.status(transaction) for transaction in transactions]
        blocks = await center.blocks(1, max(int(str(status["height"])) for status in statuses))
    assert {status["code"] for status in statuses} == {"valid"}
    committed = [each.id for block in blocks for each in block.transactions]
    assert sorted(committed) == sorted(transaction.id for transaction in transactions)
    first_height = {block.authentication for block in network.device_a.signed_headers if block.header.height == 1}
    assert first_height == {blocks[0].authentication}
    assert asked_at_the_end == [blocks[0].authentication]


@pytest.mark.requirement("M-6")
async def test_append_that_fails_after_signing_is_repeated(
    network: SimulatedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between signature and append changes nothing: the next start signs and appends the same block."""
    appending = Blocks._append

    def crash(_self: Blocks, _signed: object) -> None:
        raise OSError("the machine lost its power")

    monkeypatch.setattr(Blocks, "_append", crash)
    transaction = network.alice.transaction()

    async def until_the_crash() -> None:
        async with running(network) as center:
            await center.submit(transaction)
            await asyncio.sleep(0.5)

    with pytest.raises(OSError, match="lost its power"):
        await until_the_crash()
    monkeypatch.setattr(Blocks, "_append", appending)
    async with running(network) as center:
        assert (await center.status(transaction))["status"] == "committed"
    assert len({block.authentication for block in network.device_a.signed_headers}) == 1


@pytest.mark.requirement("E-12")
async def test_header_signature_is_verified_and_asked_again(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A header that another key signed, or that the device refuses, is never appended: it is asked again."""
    stranger = Key()
    network.device_a.header_attacks = [
        lambda _signed: Signed(stranger.sign(b"nothing")),
        lambda _signed: problem_response(ProblemError(409, "behind", "this device is behind").problem),
        lambda _signed: Response(b"not json"),
    ]
    answer = await center.submit(network.alice.transaction(), wait=10)
    assert answer.json()["status"] == "committed", answer.text
    assert len({block.authentication for block in network.device_a.signed_headers}) == 1
    assert len(network.device_a.signed_headers) == 4
    assert "hsm_endorser_management_sign_failures_total 3.0" in (await center.http.get("/metrics")).text


async def test_not_ready_says_why_no_block_is_signed(center: RunningCenter, network: SimulatedNetwork) -> None:
    """While a decided block lacks its signature the service is not ready, with the reason."""
    refusal = problem_response(ProblemError(409, "guard-missing", "the guard is behind the chain").problem)
    network.device_a.header_attacks = [lambda _signed: refusal] * 4
    transaction = network.alice.transaction()
    await center.submit(transaction)
    await asyncio.sleep(0.3)
    answer = await center.http.get("/health/ready")
    assert answer.status_code == 503
    assert "block 1 is decided and not signed" in answer.json()["checks"]["blocks"]
    assert "the guard is behind the chain" in answer.json()["checks"]["blocks"]
    assert (await center.status(transaction))["status"] == "committed"
    assert (await center.http.get("/health/ready")).status_code == 200


async def test_heartbeat_and_no_empty_blocks(network: SimulatedNetwork) -> None:
    """Without transactions there is no block until the heartbeat, and then an empty one."""
    async with running(network, heartbeat_ms=1000, period_ms=20) as center:
        (block,) = await center.blocks(1, 1)
        assert block.header.transaction_count == 0
        genesis = Block.decode((network.folder / "genesis.json").read_bytes())
        assert block.header.time - genesis.header.time >= 900


@pytest.mark.requirement("M-4")
async def test_block_is_cut_early_when_enough_waits(network: SimulatedNetwork) -> None:
    """A full block does not wait for its period."""
    async with running(network, period_ms=60_000, block_transactions=10) as center:
        await center.submit(network.alice.transaction(), wait=5)  # the first cut comes at once
        batch = [network.alice.transaction() for _ in range(10)]
        await center.submit_batch(list(batch))
        for transaction in batch:
            assert (await center.status(transaction, wait=5))["status"] == "committed"


async def test_what_is_in_force_at_the_cut_counts(network: SimulatedNetwork) -> None:
    """Endorsed under a policy that was tightened meanwhile, a transaction is endorsed again before it is cut."""
    network.device_a.header_gate.clear()
    async with running(network) as center:
        change = administrators(network, entries.EndorsementPolicy("evidence", "AND('A', 'B', 'C')"))
        assert (await center.submit(change)).status_code == 202
        await asyncio.sleep(0.2)  # decided: it waits for its signature
        transaction = network.alice.transaction()
        await center.submit(transaction)
        await asyncio.sleep(0.3)
        assert (await center.status(transaction, wait=0))["status"] == "endorsed"
        network.device_a.header_gate.set()
        status = await center.status(transaction)
        assert (status["status"], status["height"]) == ("committed", 2)
        (block,) = await center.blocks(2, 1)
        assert {branch.node for tree in block.trees for branch in tree.branches} == {"A", "B", "C"}


async def test_client_removed_meanwhile_is_dropped_with_the_reason(network: SimulatedNetwork) -> None:
    """Pooled transactions of a client that leaves the whitelist are in no block; the others are not held up."""
    network.device_a.header_gate.clear()
    async with running(network) as center:
        removal = network.admin.transaction("registry.remove", {"keys": ["client/bob"]})
        await center.submit(removal)
        await asyncio.sleep(0.2)
        pooled = [network.bob.transaction() for _ in range(20)]
        good = network.alice.transaction()
        await center.submit_batch([*pooled, good])
        await asyncio.sleep(0.3)
        network.device_a.header_gate.set()
        assert (await center.status(good))["status"] == "committed"
        for transaction in pooled:
            status = await center.status(transaction)
            assert (status["status"], status["problem"]["type"]) == ("failed", PREFIX + "unknown-client")


@pytest.mark.requirement("S-2")
async def test_registry_transaction_needs_administrators(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A registry transaction that no administrator signed is refused; one that does not apply is refused too."""
    entry = entries.Client("carol", Key().spki, "")
    forged = network.alice.transaction("registry.put", {"entries": [entry]})
    answer = await center.submit(forged)
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "not-authorized")
    pointless = network.admin.transaction("registry.remove", {"keys": ["client/nobody"]})
    answer = await center.submit(pointless)
    assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "not-registered")


async def test_stored_chain_verifies(network: SimulatedNetwork) -> None:
    """What the service appended passes the whole check list of an independent replica."""
    async with running(network, period_ms=20) as center:
        for _ in range(5):
            await center.submit_batch([network.alice.transaction() for _ in range(20)])
        last = network.bob.transaction()
        await center.submit(last, wait=10)
        height = (await center.http.get("/v1/network")).json()["height"]
        blocks = await center.blocks(0, height + 1)
    store = ChainStore.create(url_of(network.folder / "independent.db"))
    replica = Replica.create(store, blocks[0].encode())
    for block in blocks[1:]:
        replica.append(replica.check(block))
    located = store.locate([last.id])
    store.close()
    assert located[last.id].code == "valid"


@pytest.mark.requirement("E-13")
async def test_streams_resume_from_any_height(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Blocks and events come from any height on: history first, then live, each height once and in order."""
    for _ in range(4):
        await center.submit(network.alice.transaction(), wait=10)
    assert [block.header.height for block in await center.blocks(2, 3)] == [2, 3, 4]
    live = asyncio.create_task(center.blocks(4, 2))
    await asyncio.sleep(0.1)
    await center.submit(network.alice.transaction(), wait=10)
    assert [block.header.height for block in await live] == [4, 5]
    one = await center.http.get("/v1/blocks/3")
    assert Block.decode(one.content).header.height == 3
    assert (await center.http.get("/v1/blocks/99")).status_code == 404


async def test_streams_end_when_the_service_stops(network: SimulatedNetwork) -> None:
    """A stop does not wait for those who follow."""
    async with running(network) as center:
        following = asyncio.create_task(center.blocks(0, 99))
        await asyncio.sleep(0.2)
        loop = asyncio.get_running_loop()
        started = loop.time()
    assert loop.time() - started < 3
    assert [block.header.height for block in await following] == [0]


async def test_expired_node_key_is_not_used(network: SimulatedNetwork) -> None:
    """Votes under a key whose lifetime is over do not hold, and the device is named."""
    async with running(network, endorsement_ms=500) as center:
        gone = [
            entries.Node(node, (entries.NodeKey(network.node_keys[node].spki, f"device-{node.lower()}", until=1),))
            for node in "AB"
        ]
        assert (await center.submit(administrators(network, *gone), wait=10)).json()["code"] == "valid"
        answer = await center.submit(network.alice.transaction(), wait=10)
        problem = answer.json()
        assert problem["type"] == PREFIX + "endorsement-unavailable"
        assert "has expired" in problem["devices"][0]["detail"]
