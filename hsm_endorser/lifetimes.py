"""How long the keys on this device still count, by the chain's height and time: warnings in good time (K-13).

A warning stands in the text of `/health/ready` (the device stays ready), in a figure, and once a day in the log.
A key whose successor is announced needs none. Nothing here decides whether a key signs: `rules` and `doors` do.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from hsm_endorser.chain import Chain
from hsm_endorser.signing import GuardedToken
from ledger import expiring
from ledger.registry_view import RegistryView
from ledger.standing import Expiry
from protocol.canonical import KeyId
from transport.expiry import Left

WARN_DAYS: Final = (30, 7, 1)
LOOK_SECONDS: Final = 60.0
LOG_SECONDS: Final = 24 * 3600.0
DAY_SECONDS: Final = 24 * 3600

log = structlog.get_logger()


class Lifetimes:
    """The lifetimes of one device's keys. Every method belongs to one event loop."""

    def __init__(self, device: str, chain: Chain, signer: GuardedToken, warn_days: Sequence[int] = WARN_DAYS) -> None:
        self._device = device
        self._chain = chain
        self._signer = signer
        self._warn_days = sorted(warn_days)
        self._known: tuple[RegistryView | None, list[Expiry]] = (None, [])
        self._logged: dict[KeyId | str, tuple[int, float]] = {}

    def keys(self) -> list[Expiry]:
        """The registered keys on this token, soonest first."""
        registry = self._chain.registry
        if self._known[0] is not registry:
            self._known = (registry, expiring.network_keys(registry))
        held = self._signer.token.keys
        return [each for each in self._known[1] if each.key_id in held and each.device in {"", self._device}]

    def figures(self) -> Iterable[Left]:
        """For how many seconds each key counts yet."""
        for each in self.keys():
            days = expiring.days_left(each, self._chain.time)
            if days is not None:
                yield each.holder, each.key_id, days * DAY_SECONDS

    def warning(self) -> str:
        """Which keys expire soon or have expired, and what to do; empty when none does."""
        soon = [(each, days) for each in self.keys() if (days := self._warned(each)) is not None]
        return "; ".join(f"{each.holder} {_when(days)}: {_advice(each.holder)}" for each, days in soon)

    async def run(self, stop: asyncio.Event) -> None:
        """Log each warning once a day, and at once when it becomes more urgent, until `stop` is set."""
        while not stop.is_set():
            self.log_warnings()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await stop.wait()
            except TimeoutError:
                continue

    def log_warnings(self) -> None:
        """Log what is due."""
        now = time.monotonic()
        for each in self.keys():
            days = self._warned(each)
            if days is None:
                continue
            urgency = sum(days > threshold for threshold in (0, *self._warn_days))
            before, at = self._logged.get(each.key_id, (len(self._warn_days) + 1, -LOG_SECONDS))
            if urgency < before or now - at >= LOG_SECONDS:
                self._logged[each.key_id] = (urgency, now)
                log.warning(
                    "a key expires" if days > 0 else "a key has expired",
                    holder=each.holder,
                    key=each.key_id,
                    days=round(days, 1),
                    until=each.until,
                    advice=_advice(each.holder),
                )

    def _warned(self, expiry: Expiry) -> float | None:
        """The days that are left, when they are few."""
        days = None if expiring.is_replaced(expiry) else expiring.days_left(expiry, self._chain.time)
        return days if days is not None and days <= self._warn_days[-1] else None


def _when(days: float) -> str:
    if days <= 0:
        return "has expired"
    return f"expires in {days:.0f} days" if days >= 2 else f"expires in {days * 24:.0f} hours"  # noqa: PLR2004


def _advice(holder: str) -> str:
    kind, _, name = holder.partition("/")
    if kind == "device":
        return f"a device's identity never changes; replace it: hsm-endorser device replace {name} --network DIR"
    return f"hsm-endorser key rotate {holder} --network DIR"
