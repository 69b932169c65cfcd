"""Does endorsement slow down with the distance between the nodes' domains? (requirement E-21)

    python -m benchmarks.far_domains --output DIR

Makes a network for each number of nodes, with real tokens and every service a process of its own, and sets the delay
of the links between its services. Cases take turns, round after round, so that what else the machine does meets all of
them alike. Writes far_domains.json, far_domains.md (the tables) and far_domains.svg. It ends by itself: each wait has a
deadline, and the whole run has `--seconds`.
"""

import argparse
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from benchmarks.far_network import BenchmarkError, FarNetwork, Timing
from benchmarks.far_picture import draw
from benchmarks.far_report import DESIGNS, FAR_CLIENT, SCATTERED, Case, Design, Machine, Report, tables

WARM_UP: Final = 2
"""Transactions after each change of the delays that are not counted: connections open, old delays run out."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be measured; `seconds` bounds the whole run."""

    nodes: tuple[int, ...] = (3, 5, 9)
    delays_ms: tuple[int, ...] = (0, 20, 50, 100)
    rounds: int = 5
    transactions: int = 15
    seconds: float = 1200.0


def run(plan: Plan, command: str) -> Report:
    """Measure all cases; raises `BenchmarkError` when something does not come, or time is up."""
    load_before = os.getloadavg()[0]
    began = time.monotonic()
    cases: list[Case] = []
    for nodes in plan.nodes:
        with tempfile.TemporaryDirectory(prefix="far-") as folder, FarNetwork(Path(folder) / "net", nodes) as network:
            cases += _measure(network, plan, began + plan.seconds)
    machine = Machine(os.cpu_count() or 0, _processor(), load_before, os.getloadavg()[0])
    return Report(command, machine, round(time.monotonic() - began, 1), tuple(cases))


def _measure(network: FarNetwork, plan: Plan, deadline: float) -> list[Case]:
    """All cases of one network, each case once in each round."""
    found: dict[tuple[Design, int], list[list[Timing]]] = {
        (design, delay): [] for design in DESIGNS for delay in plan.delays_ms
    }
    connections = dict.fromkeys(found, 0)
    for number in range(plan.rounds):
        order = list(found)
        for design, delay in order[number % len(order) :] + order[: number % len(order)]:
            print(f"{network.nodes} nodes, round {number + 1}, {design}, {delay} ms", file=sys.stderr, flush=True)
            _set(network, design, delay)
            timings: list[Timing] = []
            before = network.connections
            for _ in range(WARM_UP + plan.transactions):
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"expected to end within {plan.seconds:.0f} s; ask for less, or allow more")
                timings.append(network.measure(far_client=design == FAR_CLIENT))
            found[design, delay].append(timings[WARM_UP:])
            connections[design, delay] += network.connections - before
    return [
        Case(
            nodes=network.nodes,
            design=design,
            delay_ms=delay,
            endorsement=tuple(tuple(round(1000 * each.endorsement, 1) for each in some) for some in rounds),
            commit=tuple(tuple(round(1000 * each.commit, 1) for each in some) for some in rounds),
            repeated=sum(each.requests - network.nodes for some in rounds for each in some),
            connections=connections[design, delay],
        )
        for (design, delay), rounds in found.items()
    ]


def _set(network: FarNetwork, design: Design, delay_ms: int) -> None:
    seconds = delay_ms / 1000
    network.set_delays(
        devices=seconds if design == SCATTERED else 0.0,
        peers=seconds,
        client=seconds if design == FAR_CLIENT else 0.0,
    )


def write(report: Report, folder: Path) -> None:
    """The measured values, the tables and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "far_domains.json").write_bytes(msgspec.json.encode(report) + b"\n")
    (folder / "far_domains.md").write_text(tables(report), encoding="utf-8")
    (folder / "far_domains.svg").write_text(draw(report), encoding="utf-8")


def read(path: Path) -> Report:
    """A report as `write` left it."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; or, with --draw, write tables and picture of values that were measured before."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    folder = Path(options.output)
    if options.draw:
        write(read(folder / "far_domains.json"), folder)
        return 0
    if 0 not in options.delays:
        print("--delays must contain 0: all others are compared with it", file=sys.stderr)
        return 2
    plan = Plan(
        nodes=tuple(options.nodes),
        delays_ms=tuple(sorted(set(options.delays))),
        rounds=options.rounds,
        transactions=options.transactions,
        seconds=options.seconds,
    )
    before = signal.signal(signal.SIGTERM, _terminated)  # so that everything is stopped and removed then, too
    try:
        report = run(plan, shlex.join(["python", "-m", "benchmarks.far_domains", *given]))
    except BenchmarkError as error:
        print(f"the benchmark failed: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    write(report, folder)
    print(tables(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Endorsement time by the distance between the nodes' domains.")
    plan = Plan()
    parser.add_argument("--output", required=True, help="the folder for far_domains.json, .md and .svg")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(plan.nodes), help="numbers of nodes")
    parser.add_argument("--delays", type=int, nargs="+", default=list(plan.delays_ms), help="one way, in ms; with 0")
    parser.add_argument("--rounds", type=int, default=plan.rounds, help="how often each case is measured")
    parser.add_argument("--transactions", type=int, default=plan.transactions, help="of a case in one round")
    parser.add_argument("--seconds", type=float, default=plan.seconds, help="the most that the run may take")
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw what is in DIR/far_domains.json")
    return parser


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit("stopped before the end; nothing is written")


def _processor() -> str:
    """The processor's name as Linux states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
