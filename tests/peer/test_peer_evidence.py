"""Evidence as a peer gives it."""

import pytest

from ledger.evidence import trusted_head, verify_evidence
from protocol.registry import Center
from tests import software_keys
from tests.peer.surroundings import Chain, RunningPeer
from transport.problem import TYPE_PREFIX


@pytest.mark.requirement("K-15")
async def test_evidence_verifies_without_the_peer(chain: Chain, peer: RunningPeer) -> None:
    """From genesis on, or from a head that its reader has verified before."""
    first = chain.network.evidence("first")
    chain.cut(first)
    second = software_keys.ecdsa("another center key")
    chain.cut(chain.network.put(Center("center-1", second.spki, "device-a")))
    chain.network.center = second
    last = chain.network.evidence("last")
    chain.cut(last)
    await peer.reach(3)
    evidence = (await peer.get(f"/v1/evidence/{last.id}")).content
    report = verify_evidence(evidence, chain.genesis)
    assert (report.height, report.code, [each.height for each in report.centers]) == (3, "valid", [0, 2])

    early = (await peer.get(f"/v1/evidence/{first.id}")).content
    verify_evidence(early, chain.genesis)
    assert (await peer.get(f"/v1/evidence/{last.id}?from=0")).content == evidence
    later = (await peer.get(f"/v1/evidence/{last.id}?from=2")).content
    assert len(later) < len(evidence)
    report = verify_evidence((await peer.get(f"/v1/evidence/{last.id}?from=0")).content, chain.genesis)
    assert report.start.height == 0
    report = verify_evidence(later, chain.genesis, trusted_head(evidence))
    assert (report.start.height, [each.height for each in report.centers]) == (2, [2])


@pytest.mark.parametrize(
    ("path", "kind", "detail"),
    [
        (f"/v1/evidence/{'ab' * 32}", (404, "unknown-transaction"), f"transaction {'ab' * 32} is not in the chain"),
        (
            "/v1/evidence/KNOWN?from=1",
            (404, "unknown-transaction"),
            "the head of block 1 is too late",
        ),
        ("/v1/evidence/KNOWN?from=-1", (422, "malformed"), "query.from"),
        ("/v1/evidence/xyz", (422, "malformed"), "path.identity"),
    ],
)
async def test_evidence_that_a_peer_does_not_have(
    path: str, kind: tuple[int, str], detail: str, chain: Chain, peer: RunningPeer
) -> None:
    """RFC 9457, with what is wrong."""
    wish = chain.network.evidence("x")
    chain.cut(wish)
    await peer.reach(1)
    answer = await peer.get(path.replace("KNOWN", wish.id))
    assert (answer.status_code, answer.json()["type"]) == (kind[0], TYPE_PREFIX + kind[1])
    assert detail in answer.json()["detail"]
