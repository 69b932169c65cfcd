"""Evidence that was changed: whatever it is, it is refused, and the step that failed is named."""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from ledger.evidence import Evidence, verify_evidence
from ledger.exhibit import ExhibitError
from ledger.proof import ProvenEntry
from protocol import canonical, endorsement
from protocol.block import Outcome
from protocol.endorsement import Endorsement, Vote
from protocol.registry import Client, Device, EndorsementPolicy, Entry, Node, Revocation
from tests.ledger.evidence_world import OTHER, History

Change = Callable[[Evidence], Evidence]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A chain on which the centers changed three times."""
    made = History(tmp_path_factory.mktemp("evidence"))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def good(history: History) -> Evidence:
    """Evidence of an issue by probed keys, with three handovers before it."""
    return history.evidence(history.issue)


def refused(evidence: Evidence | bytes, genesis: bytes) -> ExhibitError:
    """The refusal of evidence."""
    data = evidence if isinstance(evidence, bytes) else canonical.encode(evidence)
    with pytest.raises(ExhibitError) as caught:
        verify_evidence(data, genesis)
    assert (caught.value.code, str(caught.value).partition(": ")[0]) == ("bad-evidence", caught.value.step)
    return caught.value


@pytest.mark.requirement("K-15")
def test_every_region_is_covered(history: History, good: Evidence) -> None:
    """A flipped bit anywhere is refused: every 37th byte, in every part of the file."""
    data = canonical.encode(good)
    verify_evidence(data, history.genesis)
    steps = set()
    for place in range(0, len(data), 37):
        bad = bytearray(data)
        bad[place] ^= 1 << place % 8
        steps.add(refused(bytes(bad), history.genesis).step)
    assert {"form", "handovers", "registry"} <= steps


@pytest.mark.requirement("K-15")
def test_every_value_is_covered(history: History, good: Evidence) -> None:
    """Each value in the file, and a byte of each payload, is changed to another of its own form: all are refused."""
    document = json.loads(canonical.encode(good))
    values = list(leaves(document))
    assert len(values) > 400
    steps: dict[str, int] = {}
    for path, value in values:
        bad = json.dumps(replaced(document, path, other_value(value)), sort_keys=True, separators=(",", ":"))
        error = refused(bad.encode(), history.genesis)
        steps[error.step] = steps.get(error.step, 0) + 1
    # Nearly all of them look right at first, and are found where they are proven.
    assert {"handovers", "header", "transaction", "outcome", "registry", "endorsements"} <= steps.keys()
    assert steps["form"] < sum(steps.values()) / 2


def test_no_byte_can_be_left_out_or_added(history: History, good: Evidence) -> None:
    """Evidence is one canonical value and nothing after it."""
    data = canonical.encode(good)
    for bad in (data + b"\n", b" " + data, data[:-1], b"", b"null", b"{}", b"[" * 100_000):
        assert refused(bad, history.genesis).step == "form"


STRUCTURED: dict[str, tuple[Change, str, str]] = {
    "votes swapped between nodes": (
        lambda good: _votes(good, lambda first, second: (_with_vote(first, second), _with_vote(second, first))),
        "endorsements",
        "the vote of node B stands under a head of node A",
    ),
    "a vote left out": (lambda good: _votes(good, lambda first, _: (first,)), "policy", "is not met by A"),
    "a vote given twice": (lambda good: _votes(good, lambda first, _: (first, first)), "endorsements", "twice"),
    "no votes": (lambda good: msgspec.structs.replace(good, endorsements=()), "policy", "is not met by nobody"),
    "handovers reordered": (
        lambda good: msgspec.structs.replace(good, handovers=good.handovers[::-1]),
        "handovers",
        "signed by key",
    ),
    "a handover twice": (
        lambda good: msgspec.structs.replace(good, handovers=(good.handovers[0], *good.handovers)),
        "handovers",
        "block 4 does not come after block 4",
    ),
    "the first handover left out": (
        lambda good: msgspec.structs.replace(good, handovers=good.handovers[1:]),
        "handovers",
        "which is no center's",
    ),
    "the last handover left out": (
        lambda good: msgspec.structs.replace(good, handovers=good.handovers[:-1]),
        "header",
        "1 center signatures where 2 are needed",
    ),
    "all handovers left out": (
        lambda good: msgspec.structs.replace(good, handovers=()),
        "header",
        "which is no center's",
    ),
    "entries of another handover": (
        lambda good: _handover(good, 0, registry=good.handovers[1].registry),
        "handovers",
        "is not under the registry root",
    ),
    "a handover without a center": (
        lambda good: _handover(good, 1, registry=_without(good.handovers[1].registry, "center/center-2")),
        "handovers",
        "entries under 'center/' were left out",
    ),
    "the header before left out": (
        lambda good: msgspec.structs.replace(good, previous=good.handovers[-1].header.payload[:-1] + b"}"),
        "registry",
        "the header before is not the one",
    ),
    "another outcome": (
        lambda good: msgspec.structs.replace(
            good, outcome=Outcome(good.outcome.transaction, "already-recorded", good.outcome.writes)
        ),
        "outcome",
        "it is not under the header's outcome root",
    ),
    "the policy left out": (
        lambda good: msgspec.structs.replace(good, registry=_without(good.registry, "policy/assets")),
        "endorsements",
        "nothing shows whether the registry has policy/assets",
    ),
    "another policy": (
        lambda good: msgspec.structs.replace(
            good, registry=_changed(good, "policy/assets", EndorsementPolicy("assets", "ANY"))
        ),
        "registry",
        "policy/assets is not under the registry root",
    ),
    "a custody statement left out": (
        lambda good: msgspec.structs.replace(good, registry=_without(good.registry, "custody/device-b")),
        "endorsements",
        "nothing shows whether the registry has custody/device-b",
    ),
    "a revocation left out": (
        lambda good: msgspec.structs.replace(
            good, registry=tuple(each for each in good.registry if not each.key.startswith("revocation/"))
        ),
        "registry",
        "nothing shows whether the registry has revocation/",
    ),
    "a custody statement under another device": (
        lambda good: msgspec.structs.replace(
            good,
            registry=tuple(
                msgspec.structs.replace(each, entry=_named(good, "custody/device-a").entry)
                if each.key == "custody/device-b"
                else each
                for each in good.registry
            ),
        ),
        "registry",
        "custody/device-b is not under the registry root",
    ),
}


@pytest.mark.requirement("K-15")
@pytest.mark.parametrize("name", STRUCTURED)
def test_a_part_that_was_taken_out_moved_orreplaced(name: str, history: History, good: Evidence) -> None:
    """Genuine parts in another order, from elsewhere, or missing, prove nothing: the step and its reason say why."""
    change, step, reason = STRUCTURED[name]
    error = refused(change(good), history.genesis)
    assert (error.step, reason in str(error)) == (step, True), str(error)


@pytest.mark.requirement("K-15")
def test_parts_of_other_evidence(history: History, good: Evidence) -> None:
    """No part of the evidence of one transaction can stand in that of another, of the same block or of another."""
    for other in (history.evidence(history.late), history.evidence(history.middle)):
        for part, step in (
            ("transaction", "transaction"),
            ("outcome", "outcome"),
            ("endorsements", "endorsements"),
            ("trees_root", "transaction"),
        ):
            if getattr(good, part) != getattr(other, part):
                changed: Any = msgspec.structs.replace(good, **{part: getattr(other, part)})
                assert refused(changed, history.genesis).step == step, part
    stale = history.evidence(history.middle)
    error = refused(msgspec.structs.replace(good, previous=stale.previous, registry=stale.registry), history.genesis)
    assert str(error) == "registry: the header before is not the one that the signed header names"
    error = refused(
        msgspec.structs.replace(good, registry_count=stale.registry_count, registry=stale.registry), history.genesis
    )
    assert (error.step, "is not under the registry root" in str(error)) == ("registry", True)


@pytest.mark.requirement("K-15", "E-22")
def test_a_reject_that_is_shown(history: History, good: Evidence) -> None:
    """A signed no beside the approvals is no proof, and it cannot be turned into a yes."""
    vote = Vote(history.network.name, history.issue.id, "C", "reject", "already-spent")
    tree = history.network.tree("device-c", [vote], height=7)
    (no,) = endorsement.endorsements(tree, [vote.leaf()], [vote])
    error = refused(msgspec.structs.replace(good, endorsements=(*good.endorsements, no)), history.genesis)
    assert str(error) == "endorsements: node C rejected it on device-c"
    yes = msgspec.structs.replace(no, vote=endorsement.approval(history.network.name, history.issue.id, "C"))
    error = refused(msgspec.structs.replace(good, endorsements=(*good.endorsements, yes)), history.genesis)
    assert (error.step, "the path leads to" in str(error)) == ("endorsements", True)


LIES: dict[str, tuple[Callable[[History], dict[str, Entry | None]], str, str]] = {
    "the client's key was revoked": (
        lambda history: _revoked(history.network.clients["c1"].id, "client/c1"),
        "client",
        "of client/c1 was revoked",
    ),
    "a voting key was revoked": (
        lambda history: _revoked(history.network.node_keys["A", "device-a"].id, "node/A"),
        "endorsements",
        "of node/A was revoked",
    ),
    "a voting device was revoked": (
        lambda history: _revoked(history.network.devices["device-b"].id, "device/device-b"),
        "registry",  # a center's key lives on it as well
        "which is no center's",
    ),
    "the center's key was revoked": (
        lambda _: _revoked(OTHER.id, "center/center-2"),
        "registry",
        "which is no center's",
    ),
    "the client had expired": (
        lambda history: {"client/c1": Client("c1", history.network.clients["c1"].spki, "", until=1)},
        "client",
        "of client/c1 has expired",
    ),
    "the client was another": (
        lambda history: {"client/c1": Client("c1", history.network.clients["c2"].spki, "")},
        "client",
        "of client/c1 was revoked",
    ),
    "the client was unknown": (lambda _: {"client/c1": None}, "client", "is not on the whitelist"),
    "a voting key had expired": (
        lambda history: {"node/A": history.network.node_entry("A", until=1)},
        "endorsements",
        "of node/A has expired",
    ),
    "a voting key was another node's": (
        lambda history: {"node/A": Node("A", history.network.node_entry("C").keys)},
        "endorsements",
        "is not registered for node A",
    ),
    "the policy asked for more": (
        lambda _: {"policy/assets": EndorsementPolicy("assets", "OutOf(3, 'A', 'B', 'C')")},
        "policy",
        "OutOf(3, 'A', 'B', 'C') is not met by A, B; missing are C",
    ),
    "another policy came before it": (
        lambda _: {"policy/assets.issue": EndorsementPolicy("assets.issue", "OutOf(2, 'A', 'C')")},
        "policy",
        "OutOf(2, 'A', 'C') is not met by A; missing are C",
    ),
    "there was no policy": (lambda _: {"policy/assets": None}, "policy", "there is no policy for assets.issue"),
    "a key's tier was too low": (
        lambda history: {"custody/device-b": history.statement("device-b", tier="read-back")},
        "policy",
        "is not met by A",
    ),
    "a custody statement was of another device": (
        lambda history: {"custody/device-b": history.statement("device-b", about="device-a")},
        "custody",
        "the custody statement of device-b is one of device 'device-a'",
    ),
    "a custody statement was signed by another device": (
        lambda history: {"custody/device-b": history.statement("device-b", by=history.network.devices["device-a"])},
        "custody",
        "is not signed by identity key",
    ),
    "the device was another": (
        lambda history: {"device/device-b": _device(history, history.network.devices["device-c"].spki)},
        "custody",
        "is not signed by identity key",
    ),
}


@pytest.mark.requirement("K-15", "K-5", "K-13", "K-14")
@pytest.mark.parametrize("name", LIES)
def test_centers_cannot_make_up_for_what_does_not_count(name: str, history: History, good: Evidence) -> None:
    """Centers that sign a block over a registry in which something does not count are found out where it is used."""
    changes, step, reason = LIES[name]
    error = refused(history.lie(good, changes(history)), history.genesis)
    assert (error.step, reason in str(error)) == (step, True), str(error)


@pytest.mark.requirement("K-15", "K-14")
def test_a_revocation_cannot_be_hidden(history: History, good: Evidence) -> None:
    """Where a revocation stands in the registry that centers signed, leaving it out of the file is noticed."""
    key = history.network.node_keys["A", "device-a"].id
    lie = history.lie(good, _revoked(key, "node/A"))
    hidden = msgspec.structs.replace(lie, registry=_without(lie.registry, f"revocation/{key}"))
    error = refused(hidden, history.genesis)
    assert "nothing shows whether the registry has revocation/" in str(error)


@pytest.mark.requirement("K-15")
def test_a_transaction_out_of_its_time(history: History, good: Evidence) -> None:
    """What was not valid at the block's height and time proves nothing, whoever signed the block."""
    for changed in ({"time": history.replica.time + 10_000_000}, {"time": 1}):
        error = refused(history.lie(good, {}, **changed), history.genesis)
        assert error.step in {"client", "handovers", "header"}
    error = refused(history.lie(good, {}, rules_version=99), history.genesis)
    assert "follows rules 99, this release knows rules 1; install a newer one" in str(error)
    error = refused(history.lie(good, {}, network="another"), history.genesis)
    assert str(error) == "header: the header is of network another, trusted is test"


def _revoked(key: str, holder: str) -> dict[str, Entry | None]:
    return {f"revocation/{key}": Revocation(key, holder, "key-compromise", 0)}


def _device(history: History, identity: bytes) -> Device:
    entry = history.replica.registry.device("device-b")
    assert entry is not None
    return msgspec.structs.replace(entry, identity=identity)


def _votes(good: Evidence, change: Callable[[Endorsement, Endorsement], tuple[Endorsement, ...]]) -> Evidence:
    first, second = good.endorsements
    return msgspec.structs.replace(good, endorsements=change(first, second))


def _with_vote(one: Endorsement, other: Endorsement) -> Endorsement:
    return msgspec.structs.replace(one, vote=other.vote)


def _handover(good: Evidence, number: int, **changed: Any) -> Evidence:
    handovers = list(good.handovers)
    handovers[number] = msgspec.structs.replace(handovers[number], **changed)
    return msgspec.structs.replace(good, handovers=tuple(handovers))


def _without(registry: tuple[ProvenEntry, ...], key: str) -> tuple[ProvenEntry, ...]:
    rest = tuple(each for each in registry if each.key != key)
    assert len(rest) == len(registry) - 1
    return rest


def _named(good: Evidence, key: str) -> ProvenEntry:
    return next(each for each in good.registry if each.key == key)


def _changed(good: Evidence, key: str, entry: Entry) -> tuple[ProvenEntry, ...]:
    raw = msgspec.Raw(canonical.encode(entry))
    assert bytes(_named(good, key).entry) != bytes(raw)
    return tuple(msgspec.structs.replace(each, entry=raw) if each.key == key else each for each in good.registry)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value in a document that holds no others, and the way to it."""
    if isinstance(value, dict | list):
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(member, (*path, name))
    else:
        yield path, value


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """The document with another value at one place."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def other_value(value: Any) -> Any:
    """Another value of the same form: a number, a digest, a name, or bytes."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value - 1 if value else 1
    if value is None:
        return "ab" * 32
    middle = len(value) // 2
    with contextlib.suppress(ValueError):
        if len(value) > 8 and len(value) != 64:
            data = bytearray(base64.b64decode(value, validate=True))
            data[len(data) // 2] ^= 1
            return base64.b64encode(data).decode()
    return value[:middle] + ("a" if value[middle : middle + 1] != "a" else "b") + value[middle + 1 :]
