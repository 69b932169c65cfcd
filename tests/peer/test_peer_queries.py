"""What a peer answers, and how it says that it does not know."""

import asyncio

import pytest

from ledger.receipt import verify_receipt
from tests.peer.surroundings import Chain, RunningPeer, Source
from transport.problem import TYPE_PREFIX


@pytest.mark.requirement("E-16")
async def test_a_peer_answers_from_its_own_chain(chain: Chain, peer: RunningPeer) -> None:
    """State, transaction, block: byte for byte what the center has."""
    wish = chain.network.evidence("pump-7", "cd" * 32)
    chain.cut(wish)
    await peer.reach(1)
    state = (await peer.get("/v1/state/evidence/pump-7")).json()
    assert state == {"attributes": {}, "client": "c1", "digest": "cd" * 32, "transaction": wish.id}
    found = (await peer.get(f"/v1/transactions/{wish.id}")).json()
    assert found == {"transaction": wish.id, "height": 1, "index": 0, "code": "valid"}
    for height, block in enumerate(chain.blocks):
        assert (await peer.get(f"/v1/blocks/{height}")).content == block


@pytest.mark.requirement("E-11", "E-17")
async def test_a_receipt_verifies_without_the_peer(chain: Chain, peer: RunningPeer) -> None:
    """The file and the genesis block are enough."""
    wish = chain.network.evidence("pump-7")
    chain.cut(chain.network.evidence("another"), wish)
    await peer.reach(1)
    report = verify_receipt((await peer.get(f"/v1/receipts/{wish.id}")).content, chain.genesis)
    assert (report.transaction, report.height, report.code) == (wish.id, 1, "valid")
    assert set(report.nodes) == {"A", "B"}


@pytest.mark.parametrize(
    ("path", "kind", "detail"),
    [
        ("/v1/state/evidence/nothing", (404, "unknown-state"), "no state evidence/nothing up to height 1"),
        (f"/v1/transactions/{'ab' * 32}", (404, "unknown-transaction"), f"no transaction {'ab' * 32} up to height 1"),
        (f"/v1/receipts/{'ab' * 32}", (404, "unknown-transaction"), f"transaction {'ab' * 32} is not in the chain"),
        ("/v1/blocks/2", (404, "unknown-block"), "no block 2 up to height 1"),
        ("/v1/blocks/9007199254740991", (404, "unknown-block"), "no block 9007199254740991 up to height 1"),
        ("/v1/blocks/-1", (422, "malformed"), "path.height: Input should be greater than or equal to 0"),
        ("/v1/blocks/x", (422, "malformed"), "path.height"),
        ("/v1/transactions/xyz", (422, "malformed"), "path.identity"),
        (f"/v1/transactions/{'ab' * 32}%0A", (422, "malformed"), "path.identity"),
        ("/v1/nothing", (404, "not-found"), "Not Found"),
    ],
)
async def test_what_a_peer_does_not_have_is_a_problem(
    path: str, kind: tuple[int, str], detail: str, chain: Chain, peer: RunningPeer
) -> None:
    """RFC 9457, with a stable type and the height up to which the peer looked."""
    chain.grow(1)
    await peer.reach(1)
    status, code = kind
    answer = await peer.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"] == TYPE_PREFIX + code
    assert detail in answer.json()["detail"]


async def test_the_digest_is_taken_anew_when_the_height_changes(chain: Chain, peer: RunningPeer) -> None:
    """One scan serves many questions at one height, and none at the next."""
    chain.grow(1)
    await peer.reach(1)
    answers = await asyncio.gather(*(peer.get("/v1/digest") for _ in range(5)))
    assert {answer.content for answer in answers} == {answers[0].content}
    chain.grow(1)
    await peer.reach(2)
    after = (await peer.get("/v1/digest")).json()
    assert after == {"height": 2, "digest": chain.replica.store.digest()[1]}
    assert after["digest"] != answers[0].json()["digest"]


async def test_a_peer_is_ready_when_it_hears_a_source(
    monkeypatch: pytest.MonkeyPatch, chain: Chain, source: Source, peer: RunningPeer
) -> None:
    """A keep-alive is enough; silence is named together with the sources to look at."""
    chain.grow(1)
    await peer.reach(1)
    ready = await peer.get("/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "checks": {"chain": "ok", "source": "ok"}})
    await source.stop()
    monkeypatch.setattr("peer.follower.HEARD_SECONDS", 0.0)
    silent = await peer.get("/health/ready")
    assert silent.status_code == 503
    assert f"check that one of these runs: {source.address}" in silent.json()["checks"]["source"]


async def test_a_peer_shows_its_figures(chain: Chain, peer: RunningPeer) -> None:
    """Height, blocks, transactions by outcome."""
    chain.grow(2)
    await peer.reach(2)
    figures = (await peer.get("/metrics")).text
    for line in ("height 2.0", "halted 0.0", "blocks_total 2.0", 'transactions_total{code="valid"} 2.0'):
        assert f"\nhsm_endorser_peer_{line}\n" in figures


async def test_a_body_has_no_place_in_a_query(peer: RunningPeer) -> None:
    """A method that is not offered is a problem like any other."""
    from transport.connect import connect  # noqa: PLC0415  needed here alone

    async with connect(peer.config.listen[0], timeout=5) as client:
        answer = await client.post("/v1/status", content=b"{}")
    assert (answer.status_code, answer.json()["type"]) == (405, TYPE_PREFIX + "method-not-allowed")
