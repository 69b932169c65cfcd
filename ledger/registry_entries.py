"""The registry's entries, by key: never changed, and cheap to make anew with a few of them different.

There can be very many clients, and each that is added makes a new registry: copying all entries every time would
make a block of registrations take quadratic time.
"""

from collections.abc import Iterator, Mapping
from typing import Final

MOST_CHANGES: Final = 2048
"""How many changes of one kind are kept beside the entries that they change before both are put together."""

Changes = Mapping[str, bytes | None]
"""New entries by key; None removes an entry."""


class RegistryEntries(Mapping[str, bytes]):
    """Canonical bytes by `kind/name`. What two versions have in common is shared; safe to share among threads."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        self._kinds: dict[str, _Kind] = {}
        for key in sorted(entries):
            self._kinds.setdefault(_kind(key), _Kind({}, {})).base[key] = entries[key]

    def changed(self, changes: Changes) -> "RegistryEntries":
        """The entries after `changes`."""
        by_kind: dict[str, dict[str, bytes | None]] = {}
        for key, value in changes.items():
            by_kind.setdefault(_kind(key), {})[key] = value
        made = RegistryEntries({})
        made._kinds = self._kinds | {kind: self._of(kind).changed(some) for kind, some in by_kind.items()}
        return made

    def kinds(self) -> list[str]:
        """All kinds that there may be entries of, sorted."""
        return sorted(self._kinds)

    def under(self, kind: str) -> list[str]:
        """The keys of one kind (`node` for all `node/…`), sorted."""
        return sorted(self._of(kind).keys())

    def __getitem__(self, key: str) -> bytes:
        return self._of(_kind(key))[key]

    def __iter__(self) -> Iterator[str]:
        for kind in self._kinds.values():
            yield from kind.keys()

    def __len__(self) -> int:
        return sum(len(kind) for kind in self._kinds.values())

    def _of(self, kind: str) -> "_Kind":
        return self._kinds.get(kind, _EMPTY)


class _Kind:
    """The entries of one kind: those that are shared, and what is different."""

    def __init__(self, base: dict[str, bytes], changes: Changes) -> None:
        self.base = base
        self._changes = changes

    def changed(self, changes: Changes) -> "_Kind":
        together = {**self._changes, **changes}
        if len(together) <= MOST_CHANGES:
            return _Kind(self.base, together)
        return _Kind({key: value for key, value in {**self.base, **together}.items() if value is not None}, {})

    def keys(self) -> Iterator[str]:
        yield from (key for key in self.base if key not in self._changes)
        yield from (key for key, value in self._changes.items() if value is not None)

    def __getitem__(self, key: str) -> bytes:
        value = self._changes[key] if key in self._changes else self.base[key]
        if value is None:
            raise KeyError(key)
        return value

    def __len__(self) -> int:
        return len(self.base) + sum((new is not None) - (key in self.base) for key, new in self._changes.items())


_EMPTY: Final = _Kind({}, {})


def _kind(key: str) -> str:
    return key.partition("/")[0]
