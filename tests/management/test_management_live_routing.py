"""Routing by live state: slow, hanging, draining and disagreeing devices, through a running service."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from protocol.messages import Failure
from protocol.registry import EndorsementPolicy, Replicated
from tests.management.simulated_network import RunningCenter, SimulatedNetwork, running

PREFIX = "urn:hsm-endorser:problem:"


async def route(center: RunningCenter) -> dict[str, Any]:
    """What the service says of its choice for evidence."""
    answer = await center.http.get("/v1/routes/evidence.record")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def until_drained(center: RunningCenter, device: str, *, ready: bool) -> None:
    """Wait until the service sees a device as ready, or as not ready."""

    async def is_seen() -> bool:
        devices = (await center.http.get("/v1/devices")).json()["devices"]
        return bool(next(each["ready"] for each in devices if each["device"] == device)) is ready

    await until(is_seen)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait a few seconds until a condition holds."""
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110  it lies on the other side of a socket
            await asyncio.sleep(0.02)


async def hang_whoever_is_asked(network: SimulatedNetwork, submitted: "asyncio.Task[httpx2.Response]") -> str:
    """The device that was asked first; it hangs, while the others answer. All gates must be closed."""

    async def is_asked() -> bool:
        return any(device.requests for device in network.devices.values()) or submitted.done()

    await until(is_asked)
    (hung,) = [name for name, device in network.devices.items() if device.requests]
    for name, device in network.devices.items():
        if name != hung:
            device.gate.set()
    return hung


@pytest.mark.requirement("E-7")
async def test_choice_and_its_reason_are_visible(replicated_network: SimulatedNetwork) -> None:
    """The route says who is asked next and why, with the figures of all; the metrics count each device."""
    async with running(replicated_network) as center:
        for _ in range(3):
            await center.submit(replicated_network.alice.transaction(), wait=10)
        told = await route(center)
        assert (told["routing"], told["policy"], told["kind"]) == ("replicated", "evidence", "evidence.record")
        (chosen,) = told["chosen"]
        assert len(chosen["nodes"]) == 2
        assert told["reason"].startswith(f"expected to answer first: {chosen['device']} in ")
        assert {each["device"] for each in told["candidates"]} == set(replicated_network.devices)
        assert all(each["ready"] and each["nodes"] == ["A", "B", "C"] for each in told["candidates"])
        best = min(told["candidates"], key=lambda each: each["figures"]["expected_ms"])
        assert best["device"] == chosen["device"]
        await asyncio.sleep(0.6)  # the next status poll
        metrics = (await center.http.get("/metrics")).text
        for figure in ("chosen_total", "batch_seconds", "network_seconds", "error_rate", "outstanding"):
            assert f'hsm_endorser_management_device_{figure}{{device="device-a"}}' in metrics
        assert "hsm_endorser_management_time_to_endorse_seconds_count 3.0" in metrics
        unknown = await center.http.get("/v1/routes/nothing.at-all")
        assert (unknown.status_code, unknown.json()["type"]) == (404, PREFIX + "no-policy")


@pytest.mark.requirement("E-7")
async def test_whole_batch_goes_to_one_device_under_one_head_for_each_node(
    replicated_network: SimulatedNetwork,
) -> None:
    """The nodes of a transaction are voted for by one device, in one tree."""
    async with running(replicated_network) as center:
        answer = await center.submit(replicated_network.alice.transaction(), wait=10)
        (block,) = await center.blocks(answer.json()["height"], 1)
    (tree,) = block.trees
    assert len(tree.branches) == 2


@pytest.mark.requirement("E-7", "E-5")
async def test_distinct_devices_vote_for_a_node_each(distinct_network: SimulatedNetwork) -> None:
    """Where the policy asks for distinct devices, two of them sign, one tree each."""
    async with running(distinct_network) as center:
        answer = await center.submit(distinct_network.alice.transaction(), wait=10)
        assert answer.json()["code"] == "valid", answer.text
        (block,) = await center.blocks(answer.json()["height"], 1)
    assert [len(tree.branches) for tree in block.trees] == [1, 1]


@pytest.mark.requirement("E-12")
async def test_hang_is_answered_by_another_device_within_two_seconds(replicated_network: SimulatedNetwork) -> None:
    """A device that takes a request and hangs costs the caller little more than a second: another one is asked."""
    network = replicated_network
    for device in network.devices.values():
        device.gate.clear()
    async with running(network) as center:
        started = time.monotonic()
        submitted = asyncio.create_task(center.submit(network.alice.transaction(), wait=10))
        first = await hang_whoever_is_asked(network, submitted)
        answer = await submitted
        assert (answer.json()["status"], time.monotonic() - started < 2) == ("committed", True), answer.text
        told = await route(center)
        assert next(each["silent"] for each in told["candidates"] if each["device"] == first)
        started = time.monotonic()
        answer = await center.submit(network.alice.transaction(), wait=10)
        assert (answer.json()["status"], time.monotonic() - started < 0.9) == ("committed", True), answer.text
        metrics = (await center.http.get("/metrics")).text
        assert f'hsm_endorser_management_device_silent_total{{device="{first}"}} 1.0' in metrics


@pytest.mark.requirement("E-12")
async def test_hang_without_another_device_is_said_within_two_seconds(strict_network: SimulatedNetwork) -> None:
    """When nobody else can vote for the node, the caller gets 503 within two seconds, and who said what."""
    strict_network.device_b.gate.clear()
    async with running(strict_network) as center:
        transaction = strict_network.alice.transaction()
        started = time.monotonic()
        answer = await center.submit(transaction, wait=10)
        assert time.monotonic() - started < 2
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, PREFIX + "endorsement-unavailable")
        assert [(each["device"], each["nodes"], each["said"]) for each in problem["devices"]] == [
            ("device-b", ["B"], "silent")
        ]
        assert "approved by A, C; missing B" in problem["detail"]
        strict_network.device_b.gate.set()
        assert (await center.submit(transaction, wait=10)).json()["status"] == "committed"


@pytest.mark.requirement("E-12")
async def test_replicated_failure_is_asked_of_another_device(replicated_network: SimulatedNetwork) -> None:
    """A device that fails is replaced by another with keys of the same nodes; when all fail, all are named."""
    network = replicated_network
    network.device_a.failure = Failure("token-lost", "the token does not answer")
    network.device_b.failure = Failure("token-timeout", "the token took too long")
    async with running(network, endorsement_ms=800) as center:
        answer = await center.submit(network.alice.transaction(), wait=10)
        assert answer.json()["status"] == "committed", answer.text
        assert network.device_c.requests
        network.device_c.failure = Failure("behind", "this device is behind")
        answer = await center.submit(network.alice.transaction(), wait=10)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, PREFIX + "endorsement-unavailable")
        assert {(each["device"], each["said"], each["detail"]) for each in problem["devices"]} == {
            ("device-a", "token-lost", "the token does not answer"),
            ("device-b", "token-timeout", "the token took too long"),
            ("device-c", "behind", "this device is behind"),
        }
        assert "nobody approved" in problem["detail"]


@pytest.mark.requirement("E-7")
async def test_draining_device_is_not_chosen(replicated_network: SimulatedNetwork) -> None:
    """A device that reports that it is draining gets nothing new, and the route says why."""
    network = replicated_network
    async with running(network) as center:
        network.device_a.ready, network.device_a.reason = False, "draining"
        await until_drained(center, "device-a", ready=False)
        before = len(network.device_a.requests)
        for _ in range(5):
            assert (await center.submit(network.alice.transaction(), wait=10)).json()["status"] == "committed"
        assert len(network.device_a.requests) == before
        told = await route(center)
        drained = next(each for each in told["candidates"] if each["device"] == "device-a")
        assert (drained["ready"], drained["reason"]) == (False, "draining")


@pytest.mark.requirement("E-7")
async def test_recovered_device_is_found(replicated_network: SimulatedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was slow is asked besides others now and then, and chosen again once it is quick."""
    monkeypatch.setattr("management.routing.PROBE_SECONDS", 0.2)
    network = replicated_network
    for device in network.devices.values():
        device.seconds = (0.05, 0.0)
    network.device_c.seconds = (0.3, 0.0)
    async with running(network) as center:
        for _ in range(12):
            await center.submit(network.alice.transaction(), wait=10)
        assert (await route(center))["chosen"][0]["device"] != "device-c"
        network.device_c.seconds = (0.0, 0.0)
        async with asyncio.timeout(10):
            while (await route(center))["chosen"][0]["device"] != "device-c":
                await center.submit(network.alice.transaction(), wait=10)


@pytest.mark.requirement("E-8")
async def test_rotation_is_followed(rotating_network: SimulatedNetwork) -> None:
    """The groups take turns, transaction by transaction, and the nodes are shared out among a group's devices."""
    network = rotating_network
    devices_by_turn = []
    async with running(network) as center:
        for _ in range(6):
            answer = await center.submit(network.alice.transaction(), wait=10)
            assert answer.json()["code"] == "valid", answer.text
            (block,) = await center.blocks(answer.json()["height"], 1)
            devices_by_turn.append(sorted(len(tree.branches) for tree in block.trees))
        assert devices_by_turn == [[3], [1, 2]] * 3
        assert (await route(center))["reason"] == "group 1 of 2 (device-c) has its turn"
        await network.device_c.stop()
        await until_drained(center, "device-c", ready=False)
        for _ in range(2):
            assert (await center.submit(network.alice.transaction(), wait=10)).json()["code"] == "valid"
        (skipped,) = (await route(center))["skipped"]
        assert skipped["devices"] == ["device-c"]
        assert "device-c: not reachable" in skipped["why"]


@pytest.mark.requirement("E-8")
async def test_strategy_comes_from_the_chain(network: SimulatedNetwork) -> None:
    """A registry transaction changes the strategy of one transaction type; the others keep theirs."""
    async with running(network) as center:
        assert (await route(center))["routing"] == "partitioned"
        entry = EndorsementPolicy("evidence", "OutOf(2, 'A', 'B', 'C')", Replicated())
        change = network.admin.transaction("registry.put", {"entries": [entry]})
        answer = await center.submit(change, wait=10)
        assert answer.json()["code"] == "valid", answer.text
        assert (await route(center))["routing"] == "replicated"
        assert (await center.http.get("/v1/routes/assets.issue")).json()["routing"] == "partitioned"
        assert (await center.submit(network.alice.transaction(), wait=10)).json()["code"] == "valid"


@pytest.mark.requirement("E-12")
async def test_late_reject_raises_an_alarm(replicated_network: SimulatedNetwork) -> None:
    """A device whose answer came too late and was a reject: the commit stands, and an operator is told."""
    network = replicated_network
    for device in network.devices.values():
        device.gate.clear()
    async with running(network, hedge_ms=200) as center:
        transaction = network.alice.transaction()
        submitted = asyncio.create_task(center.submit(transaction, wait=10))
        first = await hang_whoever_is_asked(network, submitted)
        network.devices[first].verdict = lambda _transaction, _node: "already-spent"
        answer = await submitted
        assert answer.json()["code"] == "valid", answer.text
        assert (await center.http.get("/v1/alarms")).json() == {"alarms": []}
        network.devices[first].gate.set()

        async def is_raised() -> bool:
            return bool((await center.http.get("/v1/alarms")).json()["alarms"])

        await until(is_raised)
        (alarm,) = (await center.http.get("/v1/alarms")).json()["alarms"]
        assert (alarm["kind"], alarm["device"], alarm["transaction"]) == ("late-reject", first, transaction.id)
        assert "says already-spent, after the transaction was endorsed" in alarm["detail"]
        assert "it is in a block" in alarm["detail"]
        metrics = (await center.http.get("/metrics")).text
        assert 'hsm_endorser_management_alarms_total{kind="late-reject"} 1.0' in metrics
        assert f'hsm_endorser_management_discarded_answers_total{{device="{first}"}} 1.0' in metrics


@pytest.mark.requirement("E-12", "E-22")
async def test_late_approval_is_discarded(replicated_network: SimulatedNetwork) -> None:
    """An approval that comes after the commit changes nothing, and is no alarm."""
    network = replicated_network
    for device in network.devices.values():
        device.gate.clear()
    async with running(network, hedge_ms=200) as center:
        submitted = asyncio.create_task(center.submit(network.alice.transaction(), wait=10))
        first = await hang_whoever_is_asked(network, submitted)
        answer = await submitted
        network.devices[first].gate.set()

        async def is_discarded() -> bool:
            counted = f'hsm_endorser_management_discarded_answers_total{{device="{first}"}} 1.0'
            return counted in (await center.http.get("/metrics")).text

        await until(is_discarded)
        assert (await center.http.get("/v1/alarms")).json() == {"alarms": []}
        (block,) = await center.blocks(answer.json()["height"], 1)
        assert sum(len(tree.branches) for tree in block.trees) == 2


@pytest.mark.requirement("E-22", "E-12")
async def test_node_whose_devices_disagree_counts_as_refusing(strict_network: SimulatedNetwork) -> None:
    """No endorsement comes of a node that approves on one device and rejects on another; an alarm is raised."""
    network = strict_network
    async with running(network) as center:
        entry = EndorsementPolicy("evidence", "AND('A', 'B', 'C')", Replicated())
        change = network.admin.transaction("registry.put", {"entries": [entry]})
        assert (await center.submit(change, wait=10)).json()["code"] == "valid"
        network.device_b.verdict = lambda _transaction, _node: "bad-arguments"
        answer = await center.submit(network.alice.transaction(), wait=10)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (409, PREFIX + "endorsement-refused")
        assert "B says bad-arguments" in problem["detail"]
