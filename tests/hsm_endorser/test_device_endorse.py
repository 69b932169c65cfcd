"""The device as management sees it: requests to its real HTTP application, answered with a real token."""

import asyncio
import os
import signal

import msgspec
import pytest

from hsm_endorser import device as device_module
from ledger.errors import BadCopyError
from protocol import canonical
from protocol.endorsement import check_tree, decode_head, endorsements, verify_head
from protocol.errors import BadSignatureError
from protocol.messages import EndorseResponse
from protocol.transaction import Transaction
from tests.hsm_endorser.device_world import RunningDevice, World, eventually, request_body, running


def verified(world: World, response: EndorseResponse) -> dict[tuple[str, str], tuple[str, str]]:
    """All votes of a response by (transaction, node), each proven by a head that the registered key signed."""
    keys = {"A": "node/A", "R": "node/R", "E": "node/E"}
    found = {}
    for answer in response.answers:
        for vote in answer.votes:
            proofs = []
            for tree in response.trees:
                leaves = tree.leaf_hashes("test", [])
                if vote.leaf() not in leaves:
                    continue
                heads = [decode_head(branch.head) for branch in tree.branches]
                check_tree(tree, leaves, heads)
                proofs += endorsements(tree, leaves, [vote])
            (proof,) = proofs
            proof.verify(world.keys[keys[vote.node]])
            found[vote.transaction, vote.node] = (vote.verdict, vote.reason)
    return found


def failure(response: EndorseResponse) -> str:
    """The code of the only answer, which must be an unsigned failure."""
    (answer,) = response.answers
    assert answer.votes == ()
    assert response.trees == ()
    assert answer.failure is not None
    assert answer.failure.detail
    return answer.failure.code


def verdict(world: World, response: EndorseResponse) -> tuple[str, str]:
    """The only vote, which must be signed."""
    ((_, result),) = verified(world, response).items()
    return result


@pytest.mark.requirement("E-10", "E-11")
async def test_a_good_transaction_is_approved(world: World, device: RunningDevice) -> None:
    """The vote is bound to the transaction and verifies with the registered public key alone."""
    response = await device.endorse((world.network.evidence("pump-7"), ["A"]))
    assert verdict(world, response) == ("approve", "")
    assert (response.device, response.height) == ("device-a", 0)


@pytest.mark.requirement("E-9", "E-18")
async def test_one_device_signs_for_several_nodes(world: World, device: RunningDevice) -> None:
    """Each node asked gets its vote under its own key: ECDSA, RSA and Ed25519 alike."""
    wish = world.network.evidence("pump-7")
    votes = verified(world, await device.endorse((wish, ["A", "R", "E"])))
    assert votes == {(wish.id, node): ("approve", "") for node in ("A", "R", "E")}


# --- refusals before the client's signature is verified: unsigned ---------------------------------------------


def tampered(transaction: Transaction) -> Transaction:
    """The transaction with one bit of its signature changed."""
    (signature,) = transaction.envelope.signatures
    sig = signature.sig[:-1] + bytes([signature.sig[-1] ^ 1])
    envelope = msgspec.structs.replace(transaction.envelope, signatures=(msgspec.structs.replace(signature, sig=sig),))
    return Transaction.decode(canonical.encode(envelope))


@pytest.mark.requirement("E-3")
async def test_a_wrong_reference_signature_is_refused(world: World, device: RunningDevice) -> None:
    """The device itself verifies the client's signature; a mismatch gets no signature of its own."""
    before = device.signatures()
    assert failure(await device.endorse((tampered(world.network.evidence("pump-7")), ["A"]))) == "bad-signature"
    assert device.signatures() == before


@pytest.mark.requirement("E-3")
async def test_another_clients_signature_is_refused(world: World, device: RunningDevice) -> None:
    """A transaction in one client's name under another client's key is refused."""
    wish = world.network.evidence("x", client="c1", signers=[world.network.clients["c2"]])
    assert failure(await device.endorse((wish, ["A"]))) == "bad-signature"


@pytest.mark.requirement("E-3")
async def test_a_refused_signature_does_not_poison_the_transaction(world: World, device: RunningDevice) -> None:
    """The id does not cover the signature: after a bad copy the good one of the same id is approved."""
    wish = world.network.evidence("pump-7")
    assert tampered(wish).id == wish.id
    assert failure(await device.endorse((tampered(wish), ["A"]))) == "bad-signature"
    assert verdict(world, await device.endorse((wish, ["A"]))) == ("approve", "")


@pytest.mark.requirement("E-2")
async def test_an_unknown_client_is_refused(world: World, device: RunningDevice) -> None:
    """Who is not on the whitelist gets no vote."""
    wish = world.network.evidence("x", client="stranger", signers=[world.network.clients["c1"]])
    assert failure(await device.endorse((wish, ["A"]))) == "unknown-client"


@pytest.mark.requirement("E-4")
async def test_another_network_is_refused(world: World, device: RunningDevice) -> None:
    """A transaction for another network gets no vote."""
    assert failure(await device.endorse((world.network.evidence("x", network="other"), ["A"]))) == "wrong-network"


@pytest.mark.requirement("E-4")
async def test_a_malformed_transaction_is_refused(world: World, device: RunningDevice) -> None:
    """What is no transaction is a failure of that proposal alone; its neighbour gets its vote."""
    good = world.network.evidence("pump-7")
    body = request_body([(good, ["A"]), (good, ["A"])])
    odd = body.replace(good.raw, b'{"payload":1}', 1)
    answer = await device.http.post("/v1/endorse", content=odd)
    response = canonical.decode(answer.content, msgspec.json.Decoder(EndorseResponse))
    assert response.answers[0].failure.code == "malformed"
    assert [vote.verdict for vote in response.answers[1].votes] == ["approve"]


async def test_registry_transactions_are_not_endorsed(world: World, device: RunningDevice) -> None:
    """Administrators stand in for endorsement."""
    wish = world.network.put(*world.network.entries()[-1:])
    assert failure(await device.endorse((wish, ["A"]))) == "not-endorsed"


# --- whose word ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("E-9")
@pytest.mark.parametrize("node", ["B", "Z", "nobody"])
async def test_no_signature_for_a_node_that_is_not_ours(world: World, device: RunningDevice, node: str) -> None:
    """A node on another device, one whose key is on the token and not registered, one that is unknown: no vote."""
    before = device.signatures()
    assert failure(await device.endorse((world.network.evidence("x"), ["A", node]))) == "not-assigned"
    assert device.signatures() == before


@pytest.mark.requirement("E-9")
async def test_no_signature_for_a_node_that_the_policy_does_not_name(world: World, device: RunningDevice) -> None:
    """Node R's key is here, and the policy for assets does not name R: no vote."""
    mint = world.network.issue("gold", {"c1": 5})
    assert failure(await device.endorse((mint, ["A"]))) == "not-assigned"


@pytest.mark.requirement("E-9")
async def test_a_node_is_asked_once(world: World, device: RunningDevice) -> None:
    """The same node twice in one proposal is malformed."""
    assert failure(await device.endorse((world.network.evidence("x"), ["A", "A"]))) == "malformed"


@pytest.mark.requirement("K-13")
async def test_an_expired_key_signs_nothing(world: World, device: RunningDevice) -> None:
    """When the registry lets a node's key end, the device does not sign with it."""
    node = world.copy.registry.node("A")
    ended = msgspec.structs.replace(node, keys=(msgspec.structs.replace(node.keys[0], until=world.copy.time + 1),))
    await device.apply(world.block([world.network.put(ended)]))
    assert failure(await device.endorse((world.network.evidence("x"), ["A"]))) == "key-expired"


# --- the word itself -----------------------------------------------------------------------------------------


@pytest.mark.requirement("E-4", "E-10")
async def test_what_cannot_be_executed_is_rejected_with_the_reason(world: World, device: RunningDevice) -> None:
    """After the client's signature is verified, a no is a signed vote that names the contract's reason."""
    for wish, reason in (
        (world.network.transaction("assets", "burn", {}), "unknown-operation"),
        (world.network.transaction("evidence", "record", {"subject": 7}), "bad-arguments"),
        (world.network.transfer([f"{'0' * 64}:0"], {"c2": 1}), "unknown-coin"),
    ):
        assert verdict(world, await device.endorse((wish, ["A"]))) == ("reject", reason)


@pytest.mark.requirement("E-4")
async def test_an_unknown_contract_is_refused(world: World, device: RunningDevice) -> None:
    """No policy names a node for an unknown contract, so nobody signs; the reason is said."""
    wish = world.network.transaction("lottery", "draw", {})
    assert failure(await device.endorse((wish, ["A"]))) == "unknown-contract"


@pytest.mark.requirement("E-4")
async def test_an_expired_transaction_is_refused(world: World, device: RunningDevice) -> None:
    """By block time, not by anybody's clock; unsigned, since a guard may have forgotten an approval by then."""
    wish = world.network.evidence("x", valid_until=world.network.time)
    assert failure(await device.endorse((wish, ["A"]))) == "expired"


@pytest.mark.requirement("E-4")
async def test_not_yet_valid_is_no_final_word(world: World, device: RunningDevice) -> None:
    """What is too early gets no vote now and an approval later."""
    wish = world.network.evidence("x", valid_from=2)
    assert failure(await device.endorse((wish, ["A"]))) == "not-yet-valid"
    await device.apply(world.block([]))
    assert verdict(world, await device.endorse((wish, ["A"]))) == ("approve", "")


@pytest.mark.requirement("E-4")
async def test_a_replay_is_refused(world: World, device: RunningDevice) -> None:
    """A transaction of the chain is rejected; one that this node itself had approved gets no second word."""
    mine, others = world.network.evidence("mine"), world.network.evidence("others")
    assert verdict(world, await device.endorse((mine, ["A"]))) == ("approve", "")
    await device.apply(world.block([mine, others]))
    assert verdict(world, await device.endorse((others, ["A"]))) == ("reject", "already-executed")
    assert failure(await device.endorse((mine, ["A"]))) == "already-executed"


@pytest.mark.requirement("K-10")
async def test_one_key_gives_one_word(world: World, device: RunningDevice) -> None:
    """A vote is repeated as it was given, even when the device would judge otherwise by now."""
    one, two = world.network.evidence("same"), world.network.evidence("same", digest="cd" * 32)
    assert verdict(world, await device.endorse((two, ["A"]))) == ("approve", "")
    await device.apply(world.block([one]))
    fresh = world.network.evidence("same", digest="ef" * 32)
    assert verdict(world, await device.endorse((fresh, ["A"]))) == ("reject", "already-recorded")
    assert verdict(world, await device.endorse((two, ["A"]))) == ("approve", "")


@pytest.mark.requirement("K-10")
async def test_the_word_survives_a_restart(world: World) -> None:
    """Another process with the same guard repeats the recorded vote, under the next sequence."""
    one, two = world.network.evidence("same"), world.network.evidence("same", digest="cd" * 32)
    async with running(world.config) as first:
        assert verdict(world, await first.endorse((two, ["A"]))) == ("approve", "")
        await first.apply(world.block([one]))
    async with running(world.config) as second:
        response = await second.endorse((two, ["A"]))
        assert verdict(world, response) == ("approve", "")
        assert decode_head(response.trees[0].branches[0].head).sequence == 2


# --- batches -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("E-10", "K-8")
async def test_a_batch_costs_one_signature_for_each_node(world: World, device: RunningDevice) -> None:
    """Three hundred votes for two nodes: one tree, two heads, two operations of the token."""
    wishes = [world.network.evidence(f"s{index}") for index in range(150)]
    before = device.signatures()
    response = await device.endorse(*((wish, ["A", "E"]) for wish in wishes))
    assert device.signatures() - before == 2
    (tree,) = response.trees
    assert [(branch.node, len(branch.leaves)) for branch in tree.branches] == [("A", 150), ("E", 150)]
    votes = verified(world, response)
    assert votes == {(wish.id, node): ("approve", "") for wish in wishes for node in ("A", "E")}


async def test_a_head_says_where_and_when(world: World, device: RunningDevice) -> None:
    """The head names device, node, key, and the height that was applied when the votes were made."""
    await device.apply(world.block([]))
    response = await device.endorse((world.network.evidence("x"), ["A"]))
    head = decode_head(response.trees[0].branches[0].head)
    assert (head.network, head.device, head.node, head.height) == ("test", "device-a", "A", 1)
    assert (head.key, head.size, head.sequence) == (world.keys["node/A"].id, 1, 1)


@pytest.mark.requirement("E-11")
async def test_a_nodes_signature_does_not_count_for_another(world: World, device: RunningDevice) -> None:
    """In one tree of two nodes, no head verifies under the other's key."""
    response = await device.endorse((world.network.evidence("x"), ["A", "R"]))
    a, r = response.trees[0].branches
    verify_head(a.head, decode_head(a.head), world.keys["node/A"])
    with pytest.raises(BadSignatureError):
        verify_head(r.head, decode_head(r.head), world.keys["node/A"])


async def test_large_requests_become_several_trees(world: World, device: RunningDevice, monkeypatch) -> None:
    """A tree is bounded; a request that does not fit gets several, and every vote is in exactly one."""
    monkeypatch.setattr(device_module, "MAX_VOTES", 16)
    wishes = [world.network.evidence(f"s{index}") for index in range(40)]
    response = await device.endorse(*((wish, ["A"]) for wish in wishes))
    assert [len(tree.branches[0].leaves) for tree in response.trees] == [16, 16, 8]
    assert len(verified(world, response)) == 40


async def test_requests_share_a_batch(world: World, device: RunningDevice) -> None:
    """What waits while a batch is signed goes into the next one together."""
    wishes = [world.network.evidence(f"s{index}") for index in range(60)]
    before = device.signatures()
    responses = await asyncio.gather(*(device.endorse((wish, ["A"])) for wish in wishes))
    assert all(verdict(world, response) == ("approve", "") for response in responses)
    assert device.signatures() - before < 30


async def test_the_same_transaction_twice_is_one_leaf(world: World, device: RunningDevice) -> None:
    """Two requests for one vote get the same leaf."""
    wish = world.network.evidence("x")
    response = await device.endorse((wish, ["A"]), (wish, ["A"]))
    assert len(response.trees[0].branches[0].leaves) == 1
    assert response.answers[0] == response.answers[1]


async def test_a_full_queue_answers_busy(world: World, device: RunningDevice, monkeypatch) -> None:
    """Beyond its bound the device says 503 busy, and when to come again."""
    monkeypatch.setattr(device_module, "MAX_QUEUED", 1)
    wishes = [(world.network.evidence(f"s{index}"), ["A"]) for index in range(2)]
    answer = await device.http.post("/v1/endorse", content=request_body(wishes))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["type"].endswith(":busy")


# --- behind, halted, broken ----------------------------------------------------------------------------------


async def test_behind_is_not_no(world: World, device: RunningDevice) -> None:
    """A device that is behind waits for the block that it needs, and then votes."""
    wish = world.network.evidence("x")
    asked = asyncio.create_task(device.endorse((wish, ["A"]), least_height=1))
    await asyncio.sleep(0.05)
    assert not asked.done()
    await device.apply(world.block([]))
    response = await asked
    assert (verdict(world, response), response.height) == (("approve", ""), 1)


async def test_waiting_for_a_height_has_an_end(world: World, device: RunningDevice) -> None:
    """When the block does not come, the answer is "not ready": unsigned, never a reject."""
    assert failure(await device.endorse((world.network.evidence("x"), ["A"]), least_height=9)) == "not-ready"


async def test_a_halted_device_signs_nothing(world: World, device: RunningDevice) -> None:
    """After a block that it cannot accept, the device says why instead of voting."""
    device.parts.chain.halt("block 1: diverged")
    assert failure(await device.endorse((world.network.evidence("x"), ["A"]))) == "not-ready"
    ready = await device.http.get("/health/ready")
    assert (ready.status_code, ready.json()["checks"]["chain"]) == (503, "halted: block 1: diverged")


@pytest.mark.requirement("K-10")
async def test_a_restored_guard_signs_nothing(world: World) -> None:
    """A guard behind the trees that the chain shows is noticed at the block that shows them, and at every start."""
    wish = world.network.evidence("x")
    async with running(world.config) as ahead:
        response = await ahead.endorse((wish, ["A"]))
    tree = response.trees[0].for_block({vote.leaf().hex(): 0 for vote in response.answers[0].votes})
    trees = [tree, *world.network.endorse([wish], by=("B",))]
    block = world.network.block(world.copy, [wish], trees).encode()
    world.config.guard.unlink()
    for suffix in ("-wal", "-shm"):
        world.config.guard.with_name(world.config.guard.name + suffix).unlink(missing_ok=True)
    from hsm_endorser.guard import Guard  # noqa: PLC0415  an old, empty copy

    Guard.create(world.config.guard, network="test", device="device-a").close()
    async with running(world.config) as restored:
        await restored.apply(block)
        assert failure(await restored.endorse((world.network.evidence("y"), ["A"]))) == "guard-failed"
        assert (await restored.http.get("/health/ready")).status_code == 503
    async with running(world.config) as again:
        assert failure(await again.endorse((world.network.evidence("y"), ["A"]))) == "guard-failed"


async def test_a_bad_copy_changes_nothing(world: World, device: RunningDevice) -> None:
    """A block that nobody's center signed is no reason to halt."""
    block = world.block([])
    with pytest.raises(BadCopyError):
        await device.apply(block.replace(b'"sig":"', b'"sig":"AAAA', 1))
    await device.apply(block)
    assert device.parts.chain.height == 1


@pytest.mark.requirement("K-9")
async def test_a_dying_worker_fails_its_batch_and_no_more(world: World, device: RunningDevice) -> None:
    """The batch that was being signed is answered as unavailable; asked again, the same words come out."""
    worker = device.parts.signer.token.worker_pid
    wish = world.network.evidence("x")
    os.kill(worker, signal.SIGSTOP)
    asked = asyncio.create_task(device.endorse((wish, ["A"])))
    await asyncio.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    assert failure(await asked) == "token-unavailable"
    await eventually(lambda: not device.parts.signer.token.trouble)
    assert verdict(world, await device.endorse((wish, ["A"]))) == ("approve", "")
    status = (await device.http.get("/v1/status")).json()
    assert (status["ready"], status["token_restarts"]) == (True, 1)


async def test_the_guard_records_before_the_token_signs(world: World, device: RunningDevice) -> None:
    """While the token hangs, the vote and the head stand in the guard already."""
    token = device.parts.signer.token
    os.kill(token.worker_pid, signal.SIGSTOP)
    wish = world.network.evidence("x")
    asked = asyncio.create_task(device.endorse((wish, ["A"])))
    await asyncio.sleep(0.3)
    recorded = device.parts.guard.recorded([("A", wish.id)])
    last = device.parts.guard.journal()[-1]
    os.kill(token.worker_pid, signal.SIGCONT)
    await asked
    assert recorded["A", wish.id].verdict == "approve"
    assert (last.entry.purpose, last.entry.key, last.sequence) == ("head", world.keys["node/A"].id, 1)
