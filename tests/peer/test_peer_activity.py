"""The index of what each key signed: complete, by an index, in the block's own commit."""

from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from ledger.store import ChainStore, url_of
from peer.activity import Activity
from peer.schema import activity
from protocol import trace
from protocol.block import Block
from protocol.envelope import Signature, pae_digest
from tests import software_keys
from tests.chain_builder import builtins
from tests.peer.surroundings import Chain, RunningPeer


def scan(chain: Chain, key: str) -> list[int]:
    """Which blocks hold a signature of a key, by looking at all of them."""
    return [height for height, data in enumerate(chain.blocks) if key in trace.signers(Block.decode(data))]


def everyone(chain: Chain) -> dict[str, str]:
    """The key ids of all who sign on the chain, by what they are."""
    network = chain.network
    keys = {"center": network.center, "admin": network.administrators["admin-1"], "c1": network.clients["c1"]}
    return {name: key.id for name, key in keys.items()} | {node: key.id for (node, _), key in network.node_keys.items()}


@pytest.mark.requirement("K-14")
async def test_the_index_knows_what_a_scan_finds(chain: Chain, peer: RunningPeer) -> None:
    """For each key the peer's answer names the blocks that a scan of the whole chain finds, and no other."""
    chain.grow(5)
    await peer.reach(5)
    for name, key in everyone(chain).items():
        page = msgspec.json.decode((await peer.get(f"/v1/trace/{key}")).content, type=trace.Page)
        expected = scan(chain, key)
        assert sorted({each.height for each in page.signings}) == expected, name
        assert bool(expected) == (name != "C"), name
        assert (page.height, page.next) == (5, None)


@pytest.mark.requirement("K-14")
async def test_what_nobody_verified_is_told_apart(chain: Chain, peer: RunningPeer) -> None:
    """A forged announcement that the registry refused stands in a block, and is not shown as the key's own word."""
    network = chain.network
    victim, stranger = network.node_keys["A", "device-a"], software_keys.ecdsa("a stranger")
    made = network.announcement("node/A", victim, stranger, signers=[stranger], since=9)
    forged = msgspec.structs.replace(made, signatures=(Signature(victim.id, made.signatures[0].sig),))
    arguments = {"announcement": builtins(forged)}
    wish = network.transaction("registry", "renew_client", arguments, client="ca", signers=[network.registrar])
    chain.cut(wish)
    await peer.reach(1)
    page = msgspec.json.decode((await peer.get(f"/v1/trace/{victim.id}")).content, type=trace.Page)
    (signing,) = page.signings
    assert signing.transactions == (wish.id,)
    assert signing.subject.endswith("refused (bad-announcement): nobody has verified the signature")


@pytest.mark.requirement("K-14")
async def test_a_trace_names_what_was_signed(chain: Chain, peer: RunningPeer) -> None:
    """Each signature comes with its block's time, its digest as journals keep it, and the transactions it touches."""
    chain.grow(2)
    await peer.reach(2)
    block = Block.decode(chain.blocks[2])
    page = msgspec.json.decode((await peer.get(f"/v1/trace/{everyone(chain)['A']}?from=2")).content, type=trace.Page)
    (branch,) = (branch for tree in block.trees for branch in tree.branches if branch.node == "A")
    (signing,) = page.signings
    assert signing.digest == pae_digest(branch.head.payload_type, branch.head.payload)
    assert (signing.kind, signing.height, signing.time) == ("votes", 2, block.header.time)
    assert signing.transactions == (block.transactions[0].id,)
    header = msgspec.json.decode(
        (await peer.get(f"/v1/trace/{everyone(chain)['center']}?from=2")).content, type=trace.Page
    ).signings[0]
    assert (header.kind, header.digest) == ("header", pae_digest(block.envelope.payload_type, block.envelope.payload))


async def test_pages_join_without_a_gap(chain: Chain, peer: RunningPeer) -> None:
    """Read in pages of two blocks, a trace is the same as at once."""
    chain.grow(7)
    await peer.reach(7)
    key = everyone(chain)["center"]
    whole = msgspec.json.decode((await peer.get(f"/v1/trace/{key}")).content, type=trace.Page)
    found: list[trace.Signing] = []
    start: int | None = 0
    while start is not None:
        page = msgspec.json.decode((await peer.get(f"/v1/trace/{key}?from={start}&limit=2")).content, type=trace.Page)
        found += page.signings
        start = page.next
    assert tuple(found) == whole.signings
    assert len(found) == 8


def test_a_chain_of_before_is_read_once(chain: Chain) -> None:
    """A chain that was kept without the index gets it when the peer starts."""
    chain.grow(3)
    index = Activity.open(chain.replica.store)
    assert index.covered() == 3
    for key in everyone(chain).values():
        assert index.heights(key, start=0, limit=10) == scan(chain, key)
    assert Activity.open(chain.replica.store).covered() == 3


def test_block_and_index_are_one_commit(chain: Chain) -> None:
    """Where the block is not stored, neither is what it would have added to the index."""
    index = Activity.open(chain.replica.store)
    checked = chain.replica.check(chain.network.block(chain.replica, [chain.network.evidence("x")]))

    def record_and_fail(connection: sa.Connection) -> None:
        index.record(connection, checked.block)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        chain.replica.append(checked, also=record_and_fail)
    assert (index.covered(), chain.replica.store.height()) == (0, 0)
    assert index.heights(chain.network.center.id, start=1, limit=1) == []


@pytest.mark.requirement("K-14")
def test_the_question_is_answered_by_the_index(tmp_path: Path) -> None:
    """SQLite searches the primary key; it does not walk the table."""
    store = ChainStore.create(url_of(tmp_path / "empty.db"))
    Activity.open(store)
    query = sa.select(activity.c.height).where(activity.c.key == b"k", activity.c.height >= 0).limit(9)
    with store.engine.connect() as connection:
        compiled = query.compile(dialect=store.engine.dialect)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", tuple(compiled.params.values())).all()
    store.close()
    assert [row[-1] for row in plan] == ["SEARCH activity USING PRIMARY KEY (key=? AND height>?)"]
