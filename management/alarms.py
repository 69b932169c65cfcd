"""What an operator must look into: a bounded list of the latest, each logged and counted when it is raised."""

import time
from collections import deque
from typing import Final, Literal

import msgspec
import structlog

from management.metrics import Metrics
from protocol.canonical import TxId

KEPT: Final = 256

Kind = Literal["late-reject", "disagreement"]

_log = structlog.get_logger()


class Alarm(msgspec.Struct, frozen=True):
    """One alarm; `time` in milliseconds since the epoch.

    late-reject: a node rejected, with a valid signature, what had been endorsed without waiting for it.
    disagreement: two devices of one node said different things about one transaction.
    """

    kind: Kind
    time: int
    device: str
    nodes: tuple[str, ...]
    transaction: TxId
    detail: str


class Alarms:
    """The latest alarms of this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._kept: deque[Alarm] = deque(maxlen=KEPT)

    def raise_alarm(self, kind: Kind, device: str, nodes: tuple[str, ...], transaction: TxId, detail: str) -> None:
        """Keep, count and log an alarm."""
        alarm = Alarm(kind, time.time_ns() // 1_000_000, device, nodes, transaction, detail)
        self._kept.append(alarm)
        self._metrics.alarms.labels(kind).inc()
        _log.error("alarm", kind=kind, device=device, nodes=nodes, transaction=transaction, reason=detail)

    def latest(self) -> list[Alarm]:
        """The alarms that are kept, newest first."""
        return list(reversed(self._kept))
