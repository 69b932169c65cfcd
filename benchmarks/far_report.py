"""What the far-domains benchmark found: its values, their statistics, and the tables."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

Design = Literal["gathered", "scattered", "gathered, far client"]
GATHERED: Final[Design] = "gathered"
"""All devices stand with management in one place; the nodes' peers are far away."""
SCATTERED: Final[Design] = "scattered"
"""Each node's device stands in its node's domain, as far away as its peer."""
FAR_CLIENT: Final[Design] = "gathered, far client"
"""Like gathered, and the client is as far away as the peers."""
DESIGNS: Final = (GATHERED, SCATTERED, FAR_CLIENT)
MANY_ROUNDS: Final = 2
"""A spread needs so many rounds."""


class Machine(msgspec.Struct, frozen=True):
    """On what it ran; the loads are one-minute averages that contain this benchmark and whatever else ran."""

    cores: int
    processor: str
    load_before: float
    load_after: float


class Case(msgspec.Struct, frozen=True):
    """All transactions of one case, by round, in milliseconds. `delay_ms` is one way.

    `repeated` counts the endorsement requests beyond one for each device and transaction; `connections` those that
    management or a device opened over the nodes' devices' links meanwhile.
    """

    nodes: int
    design: Design
    delay_ms: int
    endorsement: tuple[tuple[float, ...], ...]
    commit: tuple[tuple[float, ...], ...]
    repeated: int
    connections: int


class Report(msgspec.Struct, frozen=True):
    """One run."""

    command: str
    machine: Machine
    seconds: float
    cases: tuple[Case, ...]

    def case(self, nodes: int, design: Design, delay_ms: int) -> Case:
        """The case of these; raises `KeyError`."""
        for case in self.cases:
            if (case.nodes, case.design, case.delay_ms) == (nodes, design, delay_ms):
                return case
        raise KeyError((nodes, design, delay_ms))

    @property
    def nodes(self) -> list[int]:
        """The numbers of nodes, ascending."""
        return sorted({case.nodes for case in self.cases})

    @property
    def delays(self) -> list[int]:
        """The one-way delays in milliseconds, ascending; the first is 0."""
        return sorted({case.delay_ms for case in self.cases})


def quantile(rounds: Iterable[Sequence[float]], share: float) -> float:
    """The smallest value that `share` of all values do not exceed."""
    values = sorted(value for each in rounds for value in each)
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))]


def p50(rounds: Iterable[Sequence[float]]) -> float:
    """The median of all rounds' values."""
    return quantile(rounds, 0.5)


def p95(rounds: Iterable[Sequence[float]]) -> float:
    """The value that one in twenty exceeds."""
    return quantile(rounds, 0.95)


def ratios(case: Case, base: Case) -> list[float]:
    """Of each round: its median endorsement over that of the same round at no delay."""
    return [p50([far]) / p50([near]) for far, near in zip(case.endorsement, base.endorsement, strict=True)]


def tables(report: Report) -> str:
    """Markdown: endorsement by nodes, distance and design; what a far client adds; the machine."""
    return "\n\n".join((_endorsement_table(report), _client_table(report), _machine(report))) + "\n"


def _endorsement_table(report: Report) -> str:
    lines = [
        "| nodes | one way | gathered p50 | p95 | ratio to 0 ms | scattered p50 | p95 | ratio to 0 ms |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for nodes in report.nodes:
        for delay in report.delays:
            cells = [str(nodes), f"{delay} ms"]
            for design in (GATHERED, SCATTERED):
                case, base = report.case(nodes, design, delay), report.case(nodes, design, 0)
                cells += [f"{p50(case.endorsement):.0f} ms", f"{p95(case.endorsement):.0f} ms", _ratio(case, base)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(case: Case, base: Case) -> str:
    if case is base:
        return "1"
    found = ratios(case, base)
    spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) >= MANY_ROUNDS else ""
    return f"{statistics.median(found):.2f}{spread}"


def _client_table(report: Report) -> str:
    lines = [
        "| nodes | one way | gathered | gathered, far client | the far client adds | one round trip | scattered |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for nodes in report.nodes:
        for delay in report.delays:
            near, far, scattered = (
                p50(report.case(nodes, design, delay).commit) for design in (GATHERED, FAR_CLIENT, SCATTERED)
            )
            lines.append(
                f"| {nodes} | {delay} ms | {near:.0f} ms | {far:.0f} ms | {far - near:.0f} ms | {2 * delay} ms "
                f"| {scattered:.0f} ms |"
            )
    return "\n".join(lines)


def _machine(report: Report) -> str:
    machine, first = report.machine, report.cases[0]
    repeated = sum(case.repeated for case in report.cases)
    return (
        f"Machine: {machine.cores} cores ({machine.processor}), shared; load {machine.load_before:.1f} before the run, "
        f"{machine.load_after:.1f} after it. {len(first.endorsement)} rounds of {len(first.endorsement[0])} "
        f"transactions for each case, {report.seconds:.0f} s in all; {repeated} endorsement requests were repeated. "
        f"Command: `{report.command}`"
    )
