"""docs/evidence.md is enough: an auditor's own program, written after it, comes to the same verdicts."""

import json
from collections.abc import Iterator

import pytest
from cryptography.exceptions import InvalidSignature

from ledger.evidence import make_evidence
from protocol import canonical
from tests.ledger import independent_auditor
from tests.ledger.evidence_world import History
from tests.ledger.independent_auditor import RefusedError
from tests.ledger.test_ledger_evidence_mutants import LIES, STRUCTURED, leaves, other_value, replaced


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A chain on which the centers changed three times."""
    made = History(tmp_path_factory.mktemp("evidence"))
    yield made
    made.store.close()


@pytest.mark.requirement("K-15")
def test_it_accepts_what_is_genuine(history: History) -> None:
    """Records, an issue by probed keys, and a change of the registry, before and after the centers changed."""
    for wish in (history.early, history.rotation, history.middle, history.late, history.issue):
        data = make_evidence(history.store, wish.id)
        assert independent_auditor.audit(data, history.genesis) == "valid"


@pytest.mark.requirement("K-15")
def test_it_refuses_every_changed_value(history: History) -> None:
    """Whichever value of the file is changed (every third is tried), the auditor's program refuses it as well."""
    document = json.loads(make_evidence(history.store, history.issue.id))
    for path, value in list(leaves(document))[::3]:
        bad = json.dumps(replaced(document, path, other_value(value)), sort_keys=True, separators=(",", ":"))
        with pytest.raises((RefusedError, InvalidSignature, ValueError, KeyError, TypeError, IndexError)):
            independent_auditor.audit(bad.encode(), history.genesis)


@pytest.mark.requirement("K-15")
@pytest.mark.parametrize("name", [*STRUCTURED, *LIES])
def test_it_refuses_what_the_product_refuses(name: str, history: History) -> None:
    """Parts moved, taken out or replaced, and centers that lie: the same verdict."""
    good = history.evidence(history.issue)
    bad = STRUCTURED[name][0](good) if name in STRUCTURED else history.lie(good, LIES[name][0](history))
    with pytest.raises((RefusedError, InvalidSignature, ValueError, KeyError)):
        independent_auditor.audit(canonical.encode(bad), history.genesis)
