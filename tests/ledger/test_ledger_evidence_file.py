"""Evidence: one file that shows a transaction, who stood behind it, and where their keys were."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.errors import LedgerError
from ledger.evidence import EvidenceReport, make_evidence, verify_evidence
from ledger.receipt import make_receipt, verify_receipt
from protocol.canonical import TxId
from protocol.transaction import Transaction
from tests.ledger.evidence_world import OTHER, SECOND, History

STEPS = [
    "form", "genesis", "handovers", "header", "transaction", "outcome", "registry", "client", "endorsements", "policy",
    "custody", "revocations",
]  # fmt: skip


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A chain on which the centers changed three times."""
    made = History(tmp_path_factory.mktemp("evidence"))
    yield made
    made.store.close()


def proven(history: History, transaction: Transaction) -> EvidenceReport:
    """What the evidence of a transaction proves."""
    return verify_evidence(make_evidence(history.store, transaction.id), history.genesis)


@pytest.mark.requirement("K-15")
def test_what_it_says(history: History) -> None:
    """What, who, when, with which outcome, by which policy, and each step in words."""
    report = proven(history, history.issue)
    assert (report.transaction, report.kind, report.client) == (history.issue.id, "assets.issue", "c1")
    assert report.arguments == history.issue.payload.arguments
    assert (report.network, report.ceremony, report.height, report.code) == ("test", "none", 9, "valid")
    assert report.authentication == history.replica.authentication
    assert report.policy is not None
    assert (report.policy.name, report.policy.least_tier) == ("assets", "probed")
    assert report.nodes == ("A", "B")
    assert [step.name for step in report.steps] == STEPS
    assert all(step.found and step.meaning for step in report.steps)
    assert [author.id for author in report.authors] == [history.network.clients["c1"].id]


@pytest.mark.requirement("K-15", "K-5")
def test_where_the_keys_are(history: History) -> None:
    """Every key on a token has its tier, every device its statement; a software token is called one."""
    report = proven(history, history.issue)
    assert [(vote.node, vote.key.device, vote.key.tier, vote.counts) for vote in report.votes] == [
        ("A", "device-a", "probed", True),
        ("B", "device-b", "probed", True),
    ]
    assert [(used.holder, used.id, used.tier) for used in report.signers] == [("center/center-2", OTHER.id, "claimed")]
    first, second = report.devices
    assert (first.name, first.identity) == ("device-a", history.network.devices["device-a"].id)
    assert first.statement is not None
    assert (first.statement.verdict, first.statement.token.software) == ("fail", True)
    assert first.statement.findings == ("token.software",)
    assert (first.statement.profile, first.statement.profile_digest) == ("strict", "ab" * 32)
    assert second.statement is not None
    (said,) = [step.found for step in report.steps if step.name == "custody"]
    assert said.endswith("A probed, B probed, center-2 claimed; the token of device-a, device-b is software")


@pytest.mark.requirement("K-15", "K-12")
def test_the_centers_from_genesis_on(history: History) -> None:
    """The evidence of each block shows the changes of the centers before it and no others."""
    first = history.first_center.id
    sets = [
        (0, 1, [first]),
        (4, 1, [SECOND.id]),
        (5, 2, [SECOND.id, OTHER.id]),
        (7, 1, [OTHER.id]),
    ]
    for transaction, count in ((history.early, 1), (history.rotation, 1), (history.middle, 3), (history.late, 4)):
        report = proven(history, transaction)
        shown = [(each.height, each.needed, [used.id for used in each.centers]) for each in report.centers]
        assert shown == sets[:count]
    assert "changed 3 times" in proven(history, history.late).steps[2].found


@pytest.mark.requirement("K-15", "K-12")
def test_receipts_outlive_the_centers_key(history: History) -> None:
    """A receipt is the small form: it verifies after the centers changed, without custody where no tier is asked."""
    report = verify_receipt(make_receipt(history.store, history.late.id), history.genesis)
    assert (report.height, report.nodes, report.code) == (9, ("A", "B"), "valid")
    assert len(make_receipt(history.store, history.late.id)) < len(make_evidence(history.store, history.late.id))
    assert b"custody/" not in make_receipt(history.store, history.late.id)


@pytest.mark.requirement("K-15", "K-5")
def test_a_receipt_shows_custody_where_a_tier_is_demanded(history: History) -> None:
    """Where the policy asks for a tier, the statements that decide are in the receipt as well."""
    data = make_receipt(history.store, history.issue.id)
    assert b"custody/device-a" in data
    assert any(step.startswith("how much is known") for step in verify_receipt(data, history.genesis).steps)


def test_what_changed_the_registry_is_shown_too(history: History) -> None:
    """A change of the centers is proven by the centers before it, and by the administrators who signed it."""
    report = proven(history, history.rotation)
    assert report.policy is None
    assert [used.holder for used in report.authors] == ["administrator/admin-1", "administrator/admin-2"]
    assert [used.id for used in report.signers] == [history.first_center.id]


def test_there_is_none_of_what_is_not_there(history: History) -> None:
    """Unknown transactions, block 0, and heads that come too late are named."""
    first = history.store.event(0)
    assert first is not None
    for transaction, start, reason in (
        ("ab" * 32, 0, "is not in the chain"),
        (first.outcomes[0][0], 0, "genesis.json holds it"),
        (history.early.id, 3, "stands in block 3: the head of block 3 is too late"),
    ):
        with pytest.raises(LedgerError, match=reason) as caught:
            make_evidence(history.store, TxId(transaction), start=start)
        assert caught.value.code == "not-found"


def test_one_form_is_not_the_other(history: History) -> None:
    """A receipt is no evidence, and evidence is no receipt."""
    receipt, evidence = make_receipt(history.store, history.late.id), make_evidence(history.store, history.late.id)
    for verify, data in ((verify_evidence, receipt), (verify_receipt, evidence)):
        with pytest.raises(LedgerError, match=r"^form: "):
            verify(data, history.genesis)


def test_the_file_grows_with_what_it_shows(history: History, tmp_path: Path) -> None:
    """Blocks without changes of the centers add nothing to the evidence of what comes after them."""
    other = History(tmp_path)
    before = len(make_evidence(other.store, other.late.id))
    for number in range(20):
        last = other.commit(other.network.evidence(f"more-{number}"))
    after = len(make_evidence(other.store, last.id))
    assert len(other.evidence(last).handovers) == 3
    assert abs(after - before) < 600
    other.store.close()
    assert history.replica.height == 9


@pytest.mark.requirement("K-15")
def test_the_vectors_for_other_languages() -> None:
    """The evidence among the golden vectors verifies against the genesis block there."""
    vector = json.loads((Path(__file__).parents[1] / "vectors" / "chain.json").read_text(encoding="utf-8"))
    report = verify_evidence(vector["evidence"].encode(), vector["blocks"][0].encode())
    assert (report.transaction, report.code) == (vector["transaction"], "already-spent")
