"""Some entries of a registry, with proof that they are its entries and that nothing between them was left out.

Whoever judges with a `RegistryView` over `ProvenEntries` can be given too little, but never be misled: every look
that the proof does not answer, be it for what is not there, raises `UnprovenError`. Whoever makes a proof judges once
over `WatchedEntries`, which know what was asked for. So what a proof must hold is written down nowhere: it follows
from what the judgement looks at.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import msgspec

from ledger.errors import LedgerError
from ledger.registry_entries import RegistryEntries
from protocol import canonical, merkle, registry
from protocol.canonical import Digest

Path = tuple[Digest, ...]
Span = tuple[str, str]
"""Keys from the first one on and before the second one."""
Count = Annotated[int, msgspec.Meta(ge=0, le=canonical.MAX_INTEGER)]


class UnprovenError(LedgerError):
    """A proof that does not lead to its root, or does not tell what is asked of it."""

    def __init__(self, message: str) -> None:
        super().__init__("unproven", message)


class ProvenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registry entry and its place among all entries, sorted by key."""

    key: str
    entry: msgspec.Raw
    index: Count
    path: Path


class ProvenEntries(RegistryEntries):
    """Those entries of a registry of `count` entries that `proven` shows, when all stand under `root`.

    Raises `UnprovenError`.
    """

    def __init__(self, count: int, proven: Sequence[ProvenEntry], root: str) -> None:
        super().__init__({each.key: bytes(each.entry) for each in proven})
        self._count = count
        self._keys = [each.key for each in proven]
        self._places = [each.index for each in proven]
        for before, after in itertools.pairwise(proven):
            if not (before.key < after.key and before.index < after.index):
                raise UnprovenError(f"{after.key} does not stand behind {before.key}")
        if not proven:
            raise UnprovenError("no entry of the registry is shown")
        for each in proven:
            leaf = registry.entry_leaf(each.key, bytes(each.entry))
            found = registry.root_over(count, root_of_path(leaf, each.index, count, each.path))
            if found != root:
                raise UnprovenError(f"{each.key} is not under the registry root {root[:16]}…")

    def under(self, kind: str) -> list[str]:
        """The keys of one kind; raises `UnprovenError` when it was not shown whole."""
        # "0" stands right behind "/": what is between the two is of this kind.
        first, end = (bisect.bisect_left(self._keys, kind + mark) for mark in "/0")
        if self._gap(first, end):
            raise UnprovenError(f"entries under {kind + '/'!r} were left out")
        return self._keys[first:end]

    def kinds(self) -> list[str]:
        """Not to be had: other kinds may stand in the registry."""
        raise UnprovenError("single entries are shown, not the whole registry")

    def changed(self, changes: Mapping[str, bytes | None]) -> RegistryEntries:  # noqa: ARG002  as in the base
        """Not to be had: what was not shown would count as missing."""
        raise UnprovenError("single entries are shown, not the whole registry")

    def __getitem__(self, key: str) -> bytes:
        place = bisect.bisect_left(self._keys, key)
        if (place == len(self._keys) or self._keys[place] != key) and self._gap(place, place):
            raise UnprovenError(f"nothing shows whether the registry has {key}")
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        raise UnprovenError("single entries are shown, not the whole registry")

    def __len__(self) -> int:
        return self._count

    def _gap(self, first: int, end: int) -> bool:
        """Whether something may stand beside what is shown from `first` up to `end`, or between it."""
        before = self._places[first - 1] if first else -1
        after = self._places[end] if end < len(self._places) else self._count
        return after - before != end - first + 1


class WatchedEntries(RegistryEntries):
    """All entries of a registry, and which of them were looked at, present or not."""

    def __init__(self, entries: RegistryEntries | dict[str, bytes]) -> None:
        super().__init__(entries)
        self._entries = dict(entries)
        self.asked_keys: set[str] = set()
        self.asked_kinds: set[str] = set()

    def under(self, kind: str) -> list[str]:
        """The keys of one kind."""
        self.asked_kinds.add(kind)
        return super().under(kind)

    def __getitem__(self, key: str) -> bytes:
        self.asked_keys.add(key)
        return super().__getitem__(key)

    def __len__(self) -> int:
        return len(self._entries)

    def spans(self) -> tuple[Span, ...]:
        """Where all that was seen so far stands, or would stand, among all keys."""
        kinds = [(kind + "/", kind + "0") for kind in sorted(self.asked_kinds)]
        return tuple([(key, key + "\0") for key in sorted(self.asked_keys)] + kinds)

    def proof(self) -> tuple[ProvenEntry, ...]:
        """The proof of everything that was seen so far, and of what was found missing."""
        keys = sorted(self._entries)
        wanted: set[int] = set()
        for start, stop in self.spans():
            first, end = bisect.bisect_left(keys, start), bisect.bisect_left(keys, stop)
            single = end - first == 1 and stop == start + "\0"
            # The neighbours on both sides prove that nothing was left out; a key that is there needs none.
            wanted.update([first] if single else range(max(first - 1, 0), min(end + 1, len(keys))))
        places = sorted(wanted)
        leaves = [registry.entry_leaf(key, self._entries[key]) for key in keys]
        paths = merkle.inclusion_proofs(leaves, places)
        return tuple(
            ProvenEntry(keys[place], msgspec.Raw(self._entries[keys[place]]), place, tuple(each.hex() for each in path))
            for place, path in zip(places, paths, strict=True)
        )


def path_of(leaves: Sequence[bytes], index: int) -> Path:
    """The inclusion proof of one leaf, as it is written."""
    return tuple(each.hex() for each in merkle.inclusion_proof(leaves, index))


def root_of_path(leaf: bytes, index: int, size: int, path: Path) -> bytes:
    """The root to which a written inclusion proof leads; raises `BadProofError`."""
    return merkle.root_of_proof(leaf, index, size, [bytes.fromhex(each) for each in path])
