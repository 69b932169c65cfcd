"""What the benchmark found: the figures of every repetition, their medians and spread, as a document and a table."""

import math
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from cli.bench.machine import Usage

MIB: Final = 1 << 20


class Figures(msgspec.Struct, frozen=True):
    """One loop of one repetition. Times in milliseconds, CPU in milliseconds per transaction, memory in MiB."""

    loop: str
    committed: int
    seconds: float
    rate: float
    p50: float
    p95: float
    p99: float
    token_operations: float
    """Per transaction."""
    verifications: float
    """Signatures that the topology has to verify per transaction, each process for itself (see `required`)."""
    verification_rate: float
    """What this machine verifies in a second with two threads, measured just before the loop."""
    share: float
    """The part of that rate that the required verifications took."""
    cpu: dict[str, float]
    memory: dict[str, float]


class Report(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    machine: str
    release: str
    nodes: int
    devices: int
    peers: int
    period_ms: int
    repetitions: int
    loops: tuple[Figures, ...]
    disk_per_transaction: float
    """Bytes that all stores together grew by for each transaction."""
    notes: tuple[str, ...] = ()


def required(committed: int, token_operations: float, devices: int, peers: int) -> float:
    """Verifications per transaction: management, every device and every peer check the client's signature once, and
    each signature of a token (heads and headers) once.
    """
    processes = 1 + devices + peers
    return processes * (1 + token_operations / max(1, committed))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie; NaN of none."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def spent(before: dict[str, Usage], after: dict[str, Usage], committed: int) -> dict[str, float]:
    """CPU milliseconds per transaction, by service."""
    return {name: 1000 * (after[name].cpu - before[name].cpu) / max(1, committed) for name in after}


def resident(after: dict[str, Usage]) -> dict[str, float]:
    """Memory in MiB, by service."""
    return {name: usage.resident / MIB for name, usage in after.items()}


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and from where to where the values reach."""
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def rows(report: Report) -> list[list[object]]:
    """The table: one line for each loop, medians over the repetitions with their spread."""
    found: list[list[object]] = []
    for name in dict.fromkeys(each.loop for each in report.loops):
        some = [each for each in report.loops if each.loop == name]
        found.append(
            [
                name,
                spread([each.rate for each in some]),
                spread([each.share for each in some], 2),
                spread([each.p50 for each in some], 1),
                spread([each.p95 for each in some], 1),
                spread([each.p99 for each in some], 1),
                spread([each.token_operations for each in some], 3),
                spread([sum(each.cpu.values()) for each in some], 2),
                spread([max(each.memory.values()) for each in some]),
            ]
        )
    return found


COLUMNS: Final = [
    "loop",
    "tx/s",
    "share of the limit",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "token ops/tx",
    "CPU ms/tx",
    "most MiB",
]


def markdown(report: Report) -> str:
    """The table for a document, with the command and the machine."""
    topology = f"{report.nodes} nodes, {report.devices} devices, {report.peers} peers, T = {report.period_ms} ms"
    lines = [
        f"`{report.command}` on {report.machine}; {topology}.",
        f"{report.repetitions} repetitions: the median, in brackets from lowest to highest.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows(report)),
        "",
        f"Disk: {report.disk_per_transaction:.0f} bytes a transaction in all stores together.",
        *report.notes,
    ]
    return "\n".join(lines) + "\n"
