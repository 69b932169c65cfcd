"""Who waits for what becomes of a transaction; waiting is bounded in time and in number."""

import asyncio
from collections.abc import Iterable
from typing import Final

from management.errors import BusyError
from management.outcome import Status
from protocol.canonical import TxId

MOST_WAITERS: Final = 10_000


class Waiters:
    """Requests that ask to be answered when their transaction is settled."""

    def __init__(self) -> None:
        self._waiting: dict[TxId, set[asyncio.Future[Status | None]]] = {}
        self._eager: dict[TxId, set[asyncio.Future[Status | None]]] = {}
        self._count = 0

    def expect(self, transaction: TxId, *, until_endorsed: bool = False) -> "asyncio.Future[Status | None]":
        """A future for the settled status; None when the service stops before.

        With `until_endorsed` it is done earlier, with None, when the transaction has its endorsements.
        Give it back with `forget`. Raises `BusyError`.
        """
        if self._count >= MOST_WAITERS:
            raise BusyError(f"{self._count} requests wait for commits already; ask for the status later", 5)
        future: asyncio.Future[Status | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(transaction, set()).add(future)
        if until_endorsed:
            self._eager.setdefault(transaction, set()).add(future)
        self._count += 1
        return future

    def forget(self, transaction: TxId, future: "asyncio.Future[Status | None]") -> None:
        """Wait no more."""
        futures = self._waiting.get(transaction)
        if futures and future in futures:
            futures.remove(future)
            self._count -= 1
            if not futures:
                del self._waiting[transaction]
        eager = self._eager.get(transaction)
        if eager:
            eager.discard(future)
            if not eager:
                del self._eager[transaction]
        future.cancel()

    def endorsed(self, transactions: Iterable[TxId]) -> None:
        """Tell those who wait for endorsements alone."""
        if not self._eager:
            return
        for transaction in transactions:
            for future in self._eager.get(transaction, ()):
                if not future.done():
                    future.set_result(None)

    def settle(self, statuses: Iterable[Status]) -> None:
        """Tell those who wait."""
        for status in statuses:
            for future in self._waiting.pop(status.transaction, ()):
                self._count -= 1
                if not future.done():
                    future.set_result(status)

    def end(self) -> None:
        """The service stops: nobody waits any longer, each is told how things stand."""
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_result(None)

    @property
    def expected(self) -> frozenset[TxId]:
        """The transactions that somebody waits for."""
        return frozenset(self._waiting)
