"""Proofs of registry entries: what is shown, what is shown to be missing, and what is left open."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.proof import ProvenEntries, UnprovenError, WatchedEntries
from ledger.registry_view import RegistryView
from protocol.registry import registry_root

ENTRIES = {f"{kind}/{name}": b'{"x":1}' for kind in ("center", "node", "revocation") for name in ("a", "b", "c", "e")}
ENTRIES["channel"] = b'{"x":2}'


def shown(look: Callable[[WatchedEntries], object], entries: dict[str, bytes] | None = None) -> ProvenEntries:
    """What somebody sees who gets the proof of all that `look` looks at."""
    watched = WatchedEntries(ENTRIES if entries is None else entries)
    look(watched)
    return ProvenEntries(len(watched), watched.proof(), registry_root(watched))


def test_what_was_looked_at_is_proven() -> None:
    """Entries, missing entries, and whole kinds; and nothing else is answered."""
    seen = shown(lambda entries: (entries["node/b"], entries.get("revocation/d"), entries.under("center")))
    assert seen["node/b"] == b'{"x":1}'
    assert seen.get("revocation/d") is None
    assert seen.under("center") == ["center/a", "center/b", "center/c", "center/e"]
    assert "center/d" not in seen
    with pytest.raises(UnprovenError, match="nothing shows whether the registry has revocation/bb"):
        seen.get("revocation/bb")
    with pytest.raises(UnprovenError, match="nothing shows whether the registry has node/d"):
        seen.get("node/d")
    with pytest.raises(UnprovenError, match="entries under 'node/' were left out"):
        seen.under("node")


@pytest.mark.parametrize("kind", ["a", "custody", "zzz"])
def test_an_empty_kind_is_proven_by_its_neighbours(kind: str) -> None:
    """At the beginning, in the middle and at the end of the registry."""
    seen = shown(lambda entries: entries.under(kind))
    assert seen.under(kind) == []
    assert seen.get(f"{kind}/x") is None


def test_nothing_can_be_left_out_or_moved() -> None:
    """A proof less one entry, out of order, with another entry or count, or of nothing, is refused."""
    watched = WatchedEntries(ENTRIES)
    watched.under("node")
    proof, root = watched.proof(), registry_root(watched)
    for place in range(len(proof)):
        rest = proof[:place] + proof[place + 1 :]
        with pytest.raises(UnprovenError):
            ProvenEntries(len(watched), rest, root).under("node")
    for bad in (proof[::-1], (proof[0], *proof), ()):
        with pytest.raises(UnprovenError):
            ProvenEntries(len(watched), bad, root)
    for count in (len(watched) - 1, len(watched) + 1):
        with pytest.raises((UnprovenError, Exception), match=r"registry root|path"):
            ProvenEntries(count, proof, root)
    with pytest.raises(UnprovenError, match="is not under the registry root"):
        ProvenEntries(len(watched), proof, "ab" * 32)


def test_the_whole_cannot_be_asked_for() -> None:
    """What would count all that is not shown as missing is refused."""
    seen = shown(lambda entries: entries["channel"])
    for ask in (lambda: list(seen), seen.kinds, lambda: seen.changed({}), lambda: RegistryView(seen).root):
        with pytest.raises(UnprovenError, match="not the whole registry"):
            ask()


KEYS = st.from_regex(r"\A[a-d]/[a-c]{1,2}\Z")


@given(
    st.dictionaries(KEYS, st.just(b"{}"), min_size=1),
    st.lists(KEYS),
    st.lists(st.sampled_from("abcd")),
    KEYS,
)
def test_a_proof_never_misleads(entries: dict[str, bytes], keys: list[str], kinds: list[str], other: str) -> None:
    """Whatever is asked of a proof, the answer is that of the registry, or there is none."""
    seen = shown(
        lambda watched: ([watched.get(key) for key in ("b/a", *keys)], [watched.under(kind) for kind in kinds]), entries
    )
    for key in keys:
        assert seen.get(key) == entries.get(key)
    for kind in kinds:
        assert seen.under(kind) == sorted(key for key in entries if key.startswith(f"{kind}/"))
    with contextlib.suppress(UnprovenError):
        assert seen.get(other) == entries.get(other)
    with contextlib.suppress(UnprovenError):
        assert seen.under(other[0]) == sorted(key for key in entries if key.startswith(f"{other[0]}/"))
