"""A peer brings itself to its sources' height over every accident."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from peer.config import Config
from tests.peer.surroundings import Chain, RunningPeer, Source, until

pytestmark = pytest.mark.requirement("E-14", "E-16")


async def test_a_peer_reaches_the_height_of_its_source(chain: Chain, peer: RunningPeer) -> None:
    """Blocks that exist before and that come later are applied, and the peer says where it stands."""
    chain.grow(3)
    await peer.reach(3)
    chain.grow(2)
    status = await peer.reach(5)
    expected = {
        "peer": "peer-1",
        "network": "test",
        "height": 5,
        "time": chain.replica.time,
        "authentication": chain.replica.authentication,
        "halted": None,
    }
    assert status == expected
    digest = (await peer.get("/v1/digest")).json()
    assert digest == {"height": 5, "digest": chain.replica.store.digest()[1]}


@pytest.mark.requirement("E-17")
async def test_a_stopped_peer_resumes_where_it_was(chain: Chain, source: Source, peer: RunningPeer) -> None:
    """After a stop the peer asks for the next block alone."""
    chain.grow(2)
    await peer.reach(2)
    await peer.stop()
    chain.grow(2)
    source.asked.clear()
    await peer.start()
    await peer.reach(4)
    assert source.asked[0] == 3


async def test_a_peer_survives_a_restart_of_its_source(chain: Chain, source: Source, peer: RunningPeer) -> None:
    """The peer connects again by itself."""
    chain.grow(1)
    await peer.reach(1)
    await source.stop()
    chain.grow(1)
    await source.start()
    assert (await peer.reach(2))["halted"] is None


async def test_a_stream_cut_in_a_line_is_taken_up_again(chain: Chain, source: Source, peer: RunningPeer) -> None:
    """Half a block does no harm: the peer asks for the same height again."""
    chain.grow(1)
    await peer.reach(1)

    async def cut(height: int) -> AsyncIterator[bytes]:
        if height < len(chain.blocks):
            yield chain.blocks[height][:-50]

    source.answer = cut
    await source.stop()
    await source.start()
    chain.grow(2)
    await until(lambda: source.asked.count(2) > 2)
    source.answer = source.honest
    assert (await peer.reach(3))["halted"] is None


async def test_silence_ends_a_connection(
    monkeypatch: pytest.MonkeyPatch, chain: Chain, source: Source, config: Config
) -> None:
    """A source that says nothing at all, not even a keep-alive, is asked again."""
    monkeypatch.setattr("transport.stream.SILENCE_SECONDS", 0.3)

    async def silent(_height: int) -> AsyncIterator[bytes]:
        yield b"\n"
        await asyncio.sleep(60)

    source.answer = silent
    chain.grow(1)
    peer = RunningPeer(config)
    await peer.start()
    await until(lambda: len(source.asked) > 1)
    source.answer = source.honest
    assert (await peer.reach(1))["halted"] is None
    await peer.stop()


async def test_an_endless_line_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, chain: Chain, source: Source, config: Config
) -> None:
    """A line beyond the size of a block is not gathered: the peer leaves the source and asks again."""
    monkeypatch.setattr("peer.follower.MAX_BLOCK_BYTES", 100_000)

    async def endless(_height: int) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)  # once the peer has left, nothing else gives way to it

    source.answer = endless
    chain.grow(1)
    peer = RunningPeer(config)
    await peer.start()
    await until(lambda: len(source.asked) > 1)
    assert b'hsm_endorser_peer_source_breaks_total{cause="bad-copy"}' in (await peer.get("/metrics")).content
    source.answer = source.honest
    assert (await peer.reach(1))["halted"] is None
    await peer.stop()


async def test_a_source_that_refuses_is_asked_again(chain: Chain, source: Source, peer: RunningPeer) -> None:
    """An error status is a break like any other, however long its body is."""

    async def endless(_height: int) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000
            await asyncio.sleep(0)  # once the peer has left, nothing else gives way to it

    source.status, source.answer = 503, endless
    await source.stop()
    await source.start()
    await until(lambda: len(source.asked) > 2)
    source.status, source.answer = 200, source.honest
    chain.grow(1)
    await peer.reach(1)


async def test_another_source_is_asked_when_one_is_gone(
    chain: Chain, source: Source, other_source: Source, config: Config
) -> None:
    """With two sources, the one that runs is enough."""
    await source.stop()
    chain.grow(2)
    peer = RunningPeer(config.model_copy(update={"sources": (source.address, other_source.address)}))
    await peer.start()
    await peer.reach(2)
    await peer.stop()


async def test_a_source_that_stalls_is_left_for_another(
    monkeypatch: pytest.MonkeyPatch, chain: Chain, source: Source, other_source: Source, config: Config
) -> None:
    """Keep-alives without blocks do not hold a peer that could ask somebody else."""
    monkeypatch.setattr("peer.follower.STALL_SECONDS", 0.3)

    async def stalling(_height: int) -> AsyncIterator[bytes]:
        while True:
            yield b"\n"
            await asyncio.sleep(0.05)

    source.answer = stalling
    chain.grow(2)
    peer = RunningPeer(config.model_copy(update={"sources": (source.address, other_source.address)}))
    await peer.start()
    await peer.reach(2)
    await peer.stop()
