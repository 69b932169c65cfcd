"""How fast one device answers, as it is measured here: what replicated routing decides by (requirement E-7).

An answer takes the network's time, then a fixed time for each request, then a time for each proposal. The last two
are fitted to what was seen, with exponentially falling weights: a device that slows down is known after a few answers.
"""

from collections import deque
from typing import Final

import msgspec

WEIGHT: Final = 0.2
"""How much the newest observation counts."""
LEAST_SPREAD: Final = 0.02
"""The least variance of the sizes, relative to their square, from which a slope is taken."""
POLLS_KEPT: Final = 8
FAILURE_SECONDS: Final = 1.0
"""What a failure costs whoever waits."""


class Pace:
    """One device's pace. Times are seconds."""

    def __init__(self) -> None:
        self.fixed = 0.01
        """For each request; a guess at first, as the next."""
        self.each = 0.00005
        """For each proposal in it."""
        self.batch = 0.0
        """For a request as they come lately; zero while there was none."""
        self.error_rate = 0.0
        """The share of requests that failed lately."""
        self._sums = [0.0] * 5
        self._polls: deque[float] = deque(maxlen=POLLS_KEPT)

    @property
    def network(self) -> float:
        """The way there and back: the quickest of the last status polls, the others having waited for the token."""
        return min(self._polls, default=0.0)

    def polled(self, seconds: float) -> None:
        """A status poll took so long."""
        self._polls.append(seconds)

    def reported(self, seconds: float) -> None:
        """What the device says that a batch takes counts until something was seen."""
        if seconds and not self.batch:
            self.fixed = seconds

    def answered(self, proposals: int, seconds: float) -> None:
        """The device worked so long on a request of so many proposals."""
        self._fit(float(proposals), max(seconds, 0.0))
        self.batch = seconds if not self.batch else (1 - WEIGHT) * self.batch + WEIGHT * seconds
        self.error_rate *= 1 - WEIGHT

    def failed(self) -> None:
        """A request was not answered, or its answer did not hold, or it brought failures alone."""
        self.error_rate = (1 - WEIGHT) * self.error_rate + WEIGHT

    def expected(self, requests: int, proposals: int) -> float:
        """When the last of so many requests with so many proposals altogether should be answered, in seconds.

        That it may fail, and another device be asked then, is in it.
        """
        return self.network + requests * self.fixed + proposals * self.each + self.error_rate * FAILURE_SECONDS

    def _fit(self, proposals: float, seconds: float) -> None:
        """Weighted least squares over (proposals, seconds)."""
        observed = (1.0, proposals, seconds, proposals * proposals, proposals * seconds)
        self._sums = [(1 - WEIGHT) * old + WEIGHT * new for old, new in zip(self._sums, observed, strict=True)]
        one, n, t, nn, nt = self._sums
        spread = one * nn - n * n
        if spread > LEAST_SPREAD * n * n:
            self.each = (one * nt - n * t) / spread
        else:  # all were of one size: what more of them would take is not known, so it is not hoped to be little
            self.each = max(self.each, t / n / 2)
        self.each = min(max(self.each, 0.0), t / n)
        self.fixed = max((t - self.each * n) / one, 0.0)


class Figures(msgspec.Struct, frozen=True):
    """What routing knows of a device, for people. Times are milliseconds, counted here unless said otherwise."""

    waiting: int
    """Proposals that are not sent yet."""
    in_flight: int
    """Proposals that are sent and not answered."""
    queued: int | None
    """Proposals that wait at the device, of all who ask it, as it says itself."""
    reported_batch_ms: float
    """What the device says that a batch takes."""
    reported_error_rate: float
    """The share of batches that failed lately, as the device says."""
    network_ms: float
    batch_ms: float
    fixed_ms: float
    each_ms: float
    error_rate: float
    expected_ms: float
    """When an answer to one more proposal is expected."""


NO_FIGURES: Final = Figures(0, 0, None, 0, 0, 0, 0, 0, 0, 0, 0)
"""Of a device that is not configured."""
