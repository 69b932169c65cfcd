"""The gate before everything that signs: an operator closes it to let the device finish what it has."""

import asyncio
import contextlib
from collections.abc import Iterator

from hsm_endorser.errors import DrainingError, NotReadyError


class Gate:
    """Counts what is under way; closed, it lets nothing new in. It is open after every start."""

    def __init__(self) -> None:
        self.closed_because = ""
        self.under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """One request from its acceptance to its answer; raises `DrainingError` when the gate is closed."""
        if self.closed_because:
            raise DrainingError(f"this device takes nothing new: {self.closed_because}")
        self.under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    def close(self, because: str = "draining") -> None:
        """Let nothing new in."""
        self.closed_because = because

    def open(self) -> None:
        """Let everything in again."""
        self.closed_because = ""

    async def idle(self, seconds: float) -> None:
        """Return when nothing is under way any more; raises `NotReadyError` when that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            raise NotReadyError(
                f"{self.under_way} requests were still under way after {seconds:g} s; ask again, or stop the device"
            ) from None
