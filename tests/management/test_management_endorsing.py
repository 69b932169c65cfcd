"""Votes: whom is asked, what is believed, and what is said when a policy cannot be satisfied."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest
import structlog

from protocol import canonical
from protocol.endorsement import Branch, Tree, Vote
from protocol.messages import Answer, EndorseResponse, Failure
from tests.management.simulated_network import Key, RunningCenter, SimulatedDevice, SimulatedNetwork, running

PREFIX = "urn:hsm-endorser:problem:"

Attack = Callable[[EndorseResponse], EndorseResponse | bytes]


def _wrong_signature(_device: SimulatedDevice) -> Attack:
    def attack(response: EndorseResponse) -> EndorseResponse:
        (tree,) = response.trees
        (branch,) = tree.branches
        stranger = Key().sign(b"nothing")
        (signature,) = branch.head.signatures
        forged = msgspec.structs.replace(
            branch.head, signatures=(msgspec.structs.replace(signature, sig=stranger.sig),)
        )
        return msgspec.structs.replace(response, trees=(Tree((Branch(branch.node, branch.leaves, forged),)),))

    return attack


def _unregistered_key(device: SimulatedDevice) -> Attack:
    def attack(response: EndorseResponse) -> EndorseResponse:
        votes = _votes(response)
        return msgspec.structs.replace(response, trees=(device.tree(votes, response.height, {"A": Key()}),))

    return attack


def _wrong_root(_device: SimulatedDevice) -> Attack:
    def attack(response: EndorseResponse) -> EndorseResponse:
        (tree,) = response.trees
        (branch,) = tree.branches
        more = Branch(branch.node, (*branch.leaves, "00" * 32), branch.head)
        return msgspec.structs.replace(response, trees=(Tree((more,)),))

    return attack


def _other_nodes_vote(device: SimulatedDevice) -> Attack:
    def attack(response: EndorseResponse) -> EndorseResponse:
        answers = [Answer(tuple(msgspec.structs.replace(v, node="B") for v in a.votes)) for a in response.answers]
        return device.respond(answers, response.height, {"B": device.node_keys["A"]})

    return attack


def _other_transactions_vote(device: SimulatedDevice) -> Attack:
    def attack(response: EndorseResponse) -> EndorseResponse:
        answers = [
            Answer(tuple(msgspec.structs.replace(v, transaction="11" * 32) for v in a.votes)) for a in response.answers
        ]
        return device.respond(answers, response.height)

    return attack


def _vote_outside_the_tree(device: SimulatedDevice) -> Attack:
    def attack(response: EndorseResponse) -> EndorseResponse:
        other: dict[str, list[Vote]] = {"A": [device.vote("22" * 32, "A")]}
        return msgspec.structs.replace(response, trees=(device.tree(other, response.height),))

    return attack


def _other_device(_device: SimulatedDevice) -> Attack:
    return lambda response: msgspec.structs.replace(response, device="device-b")


def _too_few_answers(_device: SimulatedDevice) -> Attack:
    return lambda response: msgspec.structs.replace(response, answers=response.answers[1:])


def _garbage(_device: SimulatedDevice) -> Attack:
    return lambda _response: b"\xff\x00 not json"


def _votes(response: EndorseResponse) -> dict[str, list[Vote]]:
    votes: dict[str, list[Vote]] = {}
    for answer in response.answers:
        for vote in answer.votes:
            votes.setdefault(vote.node, []).append(vote)
    return votes


ATTACKS = [
    (_wrong_signature, "the signature is not by key"),
    (_unregistered_key, "is not registered for node A"),
    (_wrong_root, "states root"),
    (_other_nodes_vote, "votes of B for transaction"),
    (_other_transactions_vote, "was asked about"),
    (_vote_outside_the_tree, "stands in no tree of that node"),
    (_other_device, "device-b answered"),
    (_too_few_answers, "answers to 1 proposals"),
    (_garbage, "no endorsement"),
]


@pytest.mark.requirement("E-12")
@pytest.mark.parametrize(("make", "reason"), ATTACKS, ids=[make.__name__[1:] for make, _ in ATTACKS])
async def test_bad_answer_is_asked_again_and_never_used(
    strict_network: SimulatedNetwork, make: Callable[[SimulatedDevice], Attack], reason: str
) -> None:
    """An answer that does not hold is asked for once more; the block carries the good one alone."""
    device = strict_network.device_a
    device.attacks.append(make(device))
    async with running(strict_network) as center:
        transaction = strict_network.alice.transaction()
        with structlog.testing.capture_logs() as logged:
            answer = await center.submit(transaction, wait=10)
        assert answer.json()["status"] == "committed", answer.text
        assert device.requests == [[transaction.id], [transaction.id]]
        assert reason in " ".join(entry.get("reason", "") for entry in logged)
        metrics = (await center.http.get("/metrics")).text
        assert 'hsm_endorser_management_bad_answers_total{device="device-a"} 1.0' in metrics


@pytest.mark.requirement("E-12")
async def test_device_that_keeps_lying_is_named(strict_network: SimulatedNetwork) -> None:
    """When the second answer is bad too and nobody else can vote, the refusal names the device and what it said."""
    device = strict_network.device_a
    device.attacks.extend([_wrong_signature(device)] * 50)
    async with running(strict_network, endorsement_ms=500) as center:
        answer = await center.submit(strict_network.alice.transaction(), wait=10)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, PREFIX + "endorsement-unavailable")
        (tried,) = problem["devices"]
        assert (tried["device"], tried["nodes"], tried["said"]) == ("device-a", ["A"], "bad-answer")
        assert "the signature is not by key" in tried["detail"]
        assert (await center.http.get("/v1/network")).json()["height"] == 0


@pytest.mark.requirement("E-12", "E-5")
async def test_other_nodes_are_asked_when_a_device_fails(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Under 2 of 3, a device that fails is replaced by one of another node."""
    network.device_a.failure = Failure("token-lost", "the token does not answer")
    for _ in range(3):  # whichever devices have their turn
        answer = await center.submit(network.alice.transaction(), wait=10)
        assert answer.json()["status"] == "committed", answer.text


@pytest.mark.requirement("E-6")
async def test_device_that_is_not_ready_is_not_asked(network: SimulatedNetwork) -> None:
    """Routing leaves out a device that says that it is not ready."""
    network.device_a.ready = False
    async with running(network) as center:
        await asyncio.sleep(0.2)
        for _ in range(3):
            answer = await center.submit(network.alice.transaction(), wait=10)
            assert answer.json()["status"] == "committed", answer.text
    assert network.device_a.requests == []
    assert len(network.device_b.requests) == len(network.device_c.requests) == 3


@pytest.mark.requirement("E-12")
async def test_too_few_devices_is_said_with_reasons(strict_network: SimulatedNetwork) -> None:
    """A policy that needs a stopped device fails with every device that lacks, and can be tried again."""
    network = strict_network
    await network.device_c.stop()
    async with running(network, endorsement_ms=400) as center:
        transaction = network.alice.transaction()
        answer = await center.submit(transaction, wait=10)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, PREFIX + "endorsement-unavailable")
        assert [(each["device"], each["said"]) for each in problem["devices"]] == [("device-c", "not-ready")]
        assert "not reachable" in problem["devices"][0]["detail"]
        assert (await center.status(transaction))["status"] == "failed"
        await network.device_c.start()
        await center.until_ready()
        assert (await center.submit(transaction, wait=10)).json()["status"] == "committed"


@pytest.mark.requirement("E-10", "E-12")
async def test_signed_rejects_are_final(center: RunningCenter, network: SimulatedNetwork) -> None:
    """When signed rejects make the policy impossible, the refusal says so, with the one reason, for ever."""
    for device in network.devices.values():
        device.verdict = lambda _transaction, _node: "already-spent"
    transaction = network.alice.transaction()
    answer = await center.submit(transaction, wait=10)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (409, PREFIX + "endorsement-refused")
    assert problem["reason"] == "already-spent"
    assert {each["detail"] for each in problem["devices"]} == {"already-spent"}
    for device in network.devices.values():
        device.verdict = lambda _transaction, _node: ""
    again = await center.submit(transaction, wait=10)
    assert (again.status_code, again.json()) == (409, problem)
    assert (await center.status(transaction))["status"] == "refused"


async def test_one_reject_is_outvoted(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Under 2 of 3, the reject of one node does not stop the two others; its vote is no approval in the block."""
    network.device_a.verdict = lambda _transaction, _node: "bad-arguments"
    for _ in range(3):
        answer = await center.submit(network.alice.transaction(), wait=10)
        assert answer.json()["status"] == "committed", answer.text
        (block,) = await center.blocks(answer.json()["height"], 1)
        assert {branch.node for tree in block.trees for branch in tree.branches} == {"B", "C"}


@pytest.mark.requirement("E-12")
async def test_hanging_device_is_given_up(network: SimulatedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes a request and never answers has a deadline; others are asked then."""
    monkeypatch.setattr("management.device_client.ENDORSE_SECONDS", 0.5)
    network.device_a.gate.clear()
    async with running(network) as center:
        for _ in range(3):
            answer = await center.submit(network.alice.transaction(), wait=10)
            assert answer.json()["status"] == "committed", answer.text
        metrics = (await center.http.get("/metrics")).text
        assert 'hsm_endorser_management_device_unreachable_total{device="device-a"}' in metrics


async def test_everything_that_waits_goes_into_one_request(center: RunningCenter, network: SimulatedNetwork) -> None:
    """While two requests are in flight, whatever comes is gathered into the next one."""
    for device in network.devices.values():
        device.gate.clear()
    for _ in range(6):  # each device gets more requests than may be in flight
        await center.submit_batch([network.alice.transaction()])
    late = [network.alice.transaction() for _ in range(60)]
    await center.submit_batch(list(late))
    assert all(len(device.requests) <= 2 for device in network.devices.values())
    for device in network.devices.values():
        device.gate.set()
    for transaction in late:
        assert (await center.status(transaction))["status"] == "committed"
    assert all(len(device.requests) == 3 for device in network.devices.values())


async def test_answers_of_two_requests_may_share_a_tree(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Votes of other requests in the same tree do no harm: the block has their hashes."""
    device = network.device_a

    def share(response: EndorseResponse) -> EndorseResponse:
        votes = _votes(response)
        votes.setdefault("A", []).append(device.vote("33" * 32, "A"))
        return msgspec.structs.replace(response, trees=(device.tree(votes, response.height),))

    device.attacks.extend([share] * 3)
    for _ in range(3):
        answer = await center.submit(network.alice.transaction(), wait=10)
        assert answer.json()["status"] == "committed", answer.text
    blocks = await center.blocks(1, 3)
    shared = [b for block in blocks for tree in block.trees for b in tree.branches if b.node == "A"]
    assert shared
    assert all(isinstance(branch.leaves[-1], str) and canonical.encode(branch) for branch in shared)
