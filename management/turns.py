"""One at a time for each name: whoever comes for the same name waits, others go on beside it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from management.errors import BusyError


class Turns:
    """Locks by name, which are there only while somebody holds or awaits them."""

    def __init__(self, most: int) -> None:
        """At most `most` may hold or await a turn at one time."""
        self._most = most
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """The turn of a name; raises `BusyError` when too many are under way."""
        if sum(self._users.values()) >= self._most:
            raise BusyError(f"{self._most} such requests are under way; ask again in a moment")
        lock = self._locks.setdefault(name, asyncio.Lock())
        # Counted: a lock that was released and not yet taken by its next holder looks free.
        self._users[name] = self._users.get(name, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name], self._locks[name]
