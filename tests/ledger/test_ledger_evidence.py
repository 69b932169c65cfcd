"""The contract `evidence`: put once, look up for ever."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ledger.contracts.evidence import Evidence, evidence_key
from ledger.replica import Replica
from tests.chain_builder import Network

Commit = Callable[..., list[str]]


def test_put_once(network: Network, replica: Replica, commit: Commit) -> None:
    """The first record of a subject stays, within a block and over blocks, whoever tries."""
    first = network.transaction(
        "evidence", "record", {"subject": "pump 7 · größe", "digest": "ab" * 32, "attributes": {"by": "ü"}}
    )
    second = network.evidence("pump 7 · größe", digest="cd" * 32, client="c2")
    assert commit(first, second) == ["valid", "already-recorded"]
    assert commit(network.evidence("pump 7 · größe")) == ["already-recorded"]
    data = replica.store.state(evidence_key("pump 7 · größe"))
    assert data is not None
    assert Evidence("ab" * 32, {"by": "ü"}, "c1", first.id) == msgspec.json.decode(data, type=Evidence)


def test_attributes_may_be_left_out(network: Network, commit: Commit) -> None:
    """A record without attributes is one with none."""
    assert commit(network.transaction("evidence", "record", {"subject": "x", "digest": "ab" * 32})) == ["valid"]


@pytest.mark.parametrize(
    "changed",
    [
        {"subject": ""},
        {"subject": "x" * 257},
        {"subject": "a\x00b"},
        {"subject": "a\nb"},
        {"subject": "a\x7f"},
        {"subject": "a\n"},
        {"subject": None},
        {"digest": "AB" * 32},
        {"digest": "ab" * 31},
        {"digest": "ab" * 32 + "\n"},
        {"attributes": {"a": 1}},
        {"attributes": {"a": "x" * 1025}},
        {"attributes": {f"a{n}": "" for n in range(33)}},
        {"more": 1},
    ],
)
def test_bad_arguments(network: Network, commit: Commit, changed: dict[str, Any]) -> None:
    """What is no record is `bad-arguments`; control characters, which not every database keeps, among them."""
    arguments = {"subject": "x", "digest": "ab" * 32, "attributes": {}, **changed}
    assert commit(network.transaction("evidence", "record", arguments)) == ["bad-arguments"]
