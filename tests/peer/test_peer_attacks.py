"""What a peer does with blocks that are not what they should be: ask elsewhere, or halt and say why."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from ledger.replica import Replica
from peer.config import Config
from protocol.block import Block
from protocol.endorsement import Tree, Vote, approval
from tests import software_keys
from tests.chain_builder import Network, approvals
from tests.peer.surroundings import Chain, RunningPeer, Source, until

Lie = Callable[[Chain, Block], Block]


def _flip_a_byte_of_the_body(chain: Chain, block: Block) -> Block:
    other = chain.network.evidence("another", client="c2")
    return Block(block.envelope, block.header, block.authentication, (other,), block.trees)


def _signed_by_nobody(_chain: Chain, block: Block) -> Block:
    return Block(
        msgspec.structs.replace(block.envelope, signatures=()),
        block.header,
        block.authentication,
        block.transactions,
        block.trees,
    )


def _signed_by_a_stranger(chain: Chain, block: Block) -> Block:
    return chain.network.sign(block, by=[software_keys.ecdsa("a stranger")])


def _signed_over_other_bytes(chain: Chain, block: Block) -> Block:
    signature = chain.network.sign(chain.network.forge(block, time=block.header.time + 1)).envelope.signatures
    return Block(
        msgspec.structs.replace(block.envelope, signatures=signature),
        block.header,
        block.authentication,
        block.transactions,
        block.trees,
    )


def _signed_with_high_s(_chain: Chain, block: Block) -> Block:
    (signature,) = block.envelope.signatures
    high = msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig))
    return block.signed(msgspec.structs.replace(block.envelope, signatures=(high,)))


def _strangers_header(**changed: Any) -> Lie:
    def lie(chain: Chain, block: Block) -> Block:
        forged = chain.network.forge(block, **changed)
        return chain.network.sign(forged, by=[software_keys.ecdsa("a stranger")])

    return lie


BAD_COPIES: dict[str, Lie] = {
    "another body": _flip_a_byte_of_the_body,
    "no signature": _signed_by_nobody,
    "a stranger's signature": _signed_by_a_stranger,
    "a signature over other bytes": _signed_over_other_bytes,
    "a signature with a high s": _signed_with_high_s,
    "a stranger's word that the chain is another": _strangers_header(previous="ee" * 32),
    "a stranger's word that the rules are newer": _strangers_header(rules_version=2),
    "a stranger's word that the network is another": _strangers_header(network="other"),
    "a stranger's word that time goes back": _strangers_header(time=1),
    "a stranger's word that the outcome is another": _strangers_header(outcome_root="ee" * 32),
}


@pytest.mark.requirement("E-14", "E-17")
@pytest.mark.parametrize("name", BAD_COPIES)
async def test_what_no_center_signed_is_a_bad_copy(name: str, chain: Chain, source: Source, peer: RunningPeer) -> None:
    """Anyone can make such bytes up, so they cannot halt a peer: it asks again, and takes the good block."""
    source.lie = lambda height, data: BAD_COPIES[name](chain, Block.decode(data)).encode() if height == 2 else data
    chain.grow(2)
    await peer.reach(1)
    await until(lambda: source.asked.count(2) > 1)
    assert (await peer.status())["halted"] is None
    source.lie = lambda _height, data: data
    assert (await peer.reach(2))["authentication"] == chain.replica.authentication


@pytest.mark.requirement("E-14")
@pytest.mark.parametrize("garbage", [b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":1,"a":2}', b"<html>"])
async def test_what_is_no_block_is_a_bad_copy(garbage: bytes, chain: Chain, source: Source, peer: RunningPeer) -> None:
    """Garbage is left for another try."""
    source.lie = lambda _height, _data: garbage
    chain.grow(1)
    await until(lambda: source.asked.count(1) > 1)
    source.lie = lambda _height, data: data
    assert (await peer.reach(1))["halted"] is None


@pytest.mark.requirement("E-14")
async def test_a_gap_is_no_reason_to_halt(chain: Chain, source: Source, peer: RunningPeer) -> None:
    """A source that leaves out a block is out of step: the peer asks again from its own height."""
    source.lie = lambda height, data: chain.blocks[2] if height == 1 else data
    chain.grow(2)
    await until(lambda: source.asked.count(1) > 1)
    assert b'hsm_endorser_peer_source_breaks_total{cause="out-of-step"}' in (await peer.get("/metrics")).content
    source.lie = lambda _height, data: data
    assert (await peer.reach(2))["halted"] is None


@pytest.mark.requirement("E-14")
async def test_a_bad_copy_of_one_source_is_made_good_by_another(
    chain: Chain, source: Source, other_source: Source, config: Config
) -> None:
    """A peer with two sources needs one that is honest."""
    source.lie = lambda _height, data: data.replace(b"evidence", b"evidance")
    chain.grow(3)
    peer = RunningPeer(config.model_copy(update={"sources": (source.address, other_source.address)}))
    await peer.start()
    await peer.reach(3)
    await peer.stop()


# --- what a center signed and a peer must not accept ------------------------------------------------------------


def _body(build: Callable[[Network, Replica, Block], tuple[Sequence[Any], Sequence[Tree]]]) -> Lie:
    def lie(chain: Chain, block: Block) -> Block:
        transactions, trees = build(chain.network, chain.replica, block)
        return chain.network.rebuilt(block, transactions=transactions, trees=trees)

    return lie


def _header(**changed: Any) -> Lie:
    return lambda chain, block: chain.network.forge(block, **changed)


def _forged_client(network: Network, _replica: Replica, _block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    wish = network.evidence("forged", signers=[network.clients["c2"]])
    return [wish], network.endorse([wish])


def _unknown_client(network: Network, _replica: Replica, _block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    wish = network.evidence("unknown", client="nobody", signers=[software_keys.ecdsa("nobody")])
    return [wish], network.endorse([wish])


def _missing_endorsement(network: Network, _replica: Replica, block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    return block.transactions, network.endorse(block.transactions, by=["A"])


def _same_node_twice(network: Network, _replica: Replica, block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    return block.transactions, network.endorse(block.transactions, by=["A", "A"])


def _vote_of_another_node(network: Network, _replica: Replica, block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    """Node A's own key signs a head that says it is B's."""
    votes = [approval(network.name, transaction.id, "B") for transaction in block.transactions]
    forged = network.tree("device-b", votes, key_of={"B": network.node_keys["A", "device-a"]})
    numbered = forged.for_block(approvals(network.name, block.transactions, ["B"]))
    return block.transactions, [*network.endorse(block.transactions, by=["A"]), numbered]


def _rejecting_votes(network: Network, _replica: Replica, block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    """Node B said no; the block says that it approved."""
    votes = [
        Vote(network=network.name, transaction=transaction.id, node="B", verdict="reject", reason="bad-arguments")
        for transaction in block.transactions
    ]
    index_of = {vote.leaf().hex(): index for index, vote in enumerate(votes)}
    forged = network.tree("device-b", votes).for_block(index_of)
    return block.transactions, [*network.endorse(block.transactions, by=["A"]), forged]


def _replay(network: Network, _replica: Replica, _block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    wish = network.evidence("twice")
    return [wish, wish], network.endorse([wish, wish])


def _expired(network: Network, _replica: Replica, block: Block) -> tuple[Sequence[Any], Sequence[Tree]]:
    wish = network.evidence("late", valid_until=block.header.time)
    return [wish], network.endorse([wish])


REFUSED: dict[str, tuple[Lie, str]] = {
    "a client's signature by another's key": (_body(_forged_client), "bad-signature"),
    "a client that is not on the whitelist": (_body(_unknown_client), "unknown-client"),
    "one endorsement where two are needed": (_body(_missing_endorsement), "policy-not-met"),
    "one node's endorsement twice": (_body(_same_node_twice), "policy-not-met"),
    "one node's key for another node": (_body(_vote_of_another_node), "bad-endorsement"),
    "a reject counted as approval": (_body(_rejecting_votes), "bad-endorsement"),
    "a transaction twice": (_body(_replay), "duplicate"),
    "an expired transaction": (_body(_expired), "expired"),
    "another chain": (_header(previous="ee" * 32), "wrong-previous"),
    "another network": (_header(network="other"), "wrong-network"),
    "rules of the future": (_header(rules_version=2), "unknown-rules"),
    "time that goes back": (_header(time=1), "time-goes-back"),
    "another outcome": (_header(outcome_root="ee" * 32), "diverged"),
    "another registry": (_header(registry_root="ee" * 32), "diverged"),
}


@pytest.mark.requirement("E-14", "E-22", "M-7")
@pytest.mark.parametrize("name", REFUSED)
async def test_a_signed_block_that_breaks_a_rule_halts_the_peer(
    name: str, chain: Chain, source: Source, peer: RunningPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer halts with code, reason and height in its status, its health and its log, and keeps what it had."""
    lie, code = REFUSED[name]
    chain.grow(1)
    await peer.reach(1)
    chain.grow(1)  # signed with the height of before, so that the lie stands on the same chain
    source.chain.blocks[2] = lie(chain, Block.decode(chain.blocks[2])).encode()
    await source.stop()
    await source.start()
    halted = await peer.halt()
    assert (halted["code"], halted["height"]) == (code, 2)
    assert halted["reason"]
    ready = await peer.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["checks"]["chain"] == f"halted at height 2: {code}: {halted['reason']}"
    assert (await peer.get("/health/live")).status_code == 200
    assert b"hsm_endorser_peer_halted 1.0" in (await peer.get("/metrics")).content
    assert (await peer.status())["height"] == 1
    assert (await peer.get("/v1/state/evidence/subject-1")).status_code == 200
    assert "halted" in "".join(capsys.readouterr())  # wherever this process logs


@pytest.mark.requirement("E-14")
async def test_a_halted_peer_stays_halted(chain: Chain, source: Source, peer: RunningPeer) -> None:
    """Neither a good block nor a restart makes a peer forget: it judges the same block again and halts again."""
    chain.grow(1)
    await peer.reach(1)
    chain.grow(1)
    good = chain.blocks[2]
    chain.blocks[2] = chain.network.forge(Block.decode(good), outcome_root="ee" * 32).encode()
    await source.stop()
    await source.start()
    await peer.halt()
    asked = len(source.asked)
    await source.stop()
    await source.start()
    await peer.stop()
    assert len(source.asked) == asked
    await peer.start()
    assert (await peer.halt())["code"] == "diverged"


@pytest.mark.requirement("E-16", "M-7")
async def test_what_does_not_apply_is_recorded_with_its_reason(chain: Chain, peer: RunningPeer) -> None:
    """A coin that two endorsed transactions spend is spent by the first; the second is recorded as invalid."""
    network = chain.network
    issue = network.issue("coin", {"c1": 10})
    chain.cut(issue)
    first = network.transfer([f"{issue.id}:0"], {"c2": 10})
    second = network.transfer([f"{issue.id}:0"], {"c1": 10})
    chain.cut(first, second)
    await peer.reach(2)
    found = (await peer.get(f"/v1/transactions/{second.id}")).json()
    assert found == {"transaction": second.id, "height": 2, "index": 1, "code": "already-spent"}
    coin = json.loads((await peer.get(f"/v1/state/assets/coin/{issue.id}:0")).content)
    assert coin["spent_by"] == first.id
