"""`hsm-endorser bench`: makes a network, puts load on it in several ways, and says what it costs."""

import asyncio
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from cli import keys, network, registry
from cli.api import Device, Management, Service
from cli.bench import loops, machine, picture, report
from cli.bench.loops import Loop
from cli.bench.machine import Usage
from cli.bench.report import Figures, Report
from cli.demo.load import Identity
from cli.errors import CommandError
from cli.keys import SoftwareKey
from cli.output import JsonFlag, Output
from cli.plan import Layout, default_plan, read_network, write_settings
from cli.submission import Signed, Submission, is_valid
from cli.supervisor import Supervisor
from protocol.canonical import MAX_INTEGER
from protocol.registry import Client

NAME: Final = "bench"
PEERS: Final = 3
CLIENTS: Final = 8
"""Registered clients; the connections share them."""
SIGNERS: Final = 2
CHUNK: Final = 2_000
VALIDITY_MS: Final = 3_000_000
CLIENTS_LIVE_MS: Final = 30 * 24 * 3_600_000
BATCH: Final = 128
LEAST_RATE: Final = 6_000
"""Transactions a second for which enough are signed ahead."""
IDLE_RATE: Final = 200
IDLE_PERIOD_MS: Final = 20
MACHINE_SECONDS: Final = 2.0
CATCH_UP_SECONDS: Final = 60.0


def bench(
    *,
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Connections of the closed loops.")] = 128,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long each loop runs.")] = 10.0,
    repetitions: Annotated[int, typer.Option(min=1, max=50, help="How often everything is measured.")] = 3,
    nodes: Annotated[int, typer.Option(min=3, max=30, help="Nodes in the policy; each has a device.")] = 3,
    period: Annotated[int, typer.Option(min=10, max=10_000, help="T, in milliseconds, under load.")] = 200,
    rate: Annotated[float, typer.Option(min=0, help="Also an open loop at so many transactions a second.")] = 0,
    pending: Annotated[int, typer.Option(min=BATCH, help="Transactions under way when they come in batches.")] = 3_072,
    output: Annotated[Path | None, typer.Option(help="A folder for bench.json, bench.md and bench.svg.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the network is made; temporary by default.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure throughput, latency, token operations, CPU and memory against what this machine can verify at all."""
    said = Output(as_json=as_json)
    command = shlex.join(["hsm-endorser", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        run = Bench(said, (folder or Path(scratch) / NAME).absolute(), nodes=nodes, period=period)
        found = run.run(command, clients=clients, seconds=seconds, repetitions=repetitions, rate=rate, pending=pending)
    said.table(f"{found.machine}; T = {period} ms", report.COLUMNS, report.rows(found))
    for note in found.notes:
        said.warn(note)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
        (output / "bench.md").write_text(report.markdown(found))
        (output / "bench.svg").write_text(picture.draw(found))
        said.plain(f"written: {output / 'bench.json'}, bench.md, bench.svg")
    said.result(msgspec.to_builtins(found))


class Bench:
    """One run on one network."""

    def __init__(self, output: Output, folder: Path, *, nodes: int, period: int) -> None:
        self._output = output
        self._layout = Layout(folder)
        self._period = period
        names = [f"N{number:02}" for number in range(1, nodes + 1)]
        some = ", ".join(f"'{name}'" for name in names)
        expression = f"OutOf({max(2, nodes * 2 // 3)}, {some})"
        plan = default_plan(NAME, names, PEERS, {"evidence": expression})
        self._plan = msgspec.structs.replace(plan, period_ms=period)
        self._identities: list[Identity] = []
        self._notes: list[str] = []
        self._number = 0

    def run(self, command: str, *, clients: int, seconds: float, repetitions: int, rate: float, pending: int) -> Report:
        """Everything, `repetitions` times."""
        from cli import founding  # noqa: PLC0415  PKCS#11 is needed from here on

        founding.found(self._plan, self._layout.folder, self._output.say)
        described = network.services(self._layout.folder, read_network(self._layout.folder))
        found: list[Figures] = []
        with Supervisor(self._layout.folder, described, self._output.warn) as supervisor:
            supervisor.wait_ready(network.READY_SECONDS)
            self._register()
            before = machine.disk(self._layout.folder)
            for number in range(1, repetitions + 1):
                self._output.say(f"[bold]Repetition {number} of {repetitions}[/]")
                self._set_period(supervisor, IDLE_PERIOD_MS)
                found.append(self._single(supervisor, "one client, to endorse", 1, seconds / 2, "endorsed"))
                idle = f"one client, T = {IDLE_PERIOD_MS} ms"
                found.append(self._single(supervisor, idle, 1, seconds / 2, "committed"))
                self._set_period(supervisor, self._period)
                found.append(self._single(supervisor, f"{clients} clients", clients, seconds, "committed"))
                found.append(self._batches(supervisor, seconds, pending))
                if rate:
                    found.append(self._paced(supervisor, rate, seconds))
            committed = sum(each.committed for each in found)
            grown = machine.disk(self._layout.folder) - before
            died = {name: process.restarts for name, process in supervisor.processes.items() if process.restarts}
            if died:
                self._notes.append(f"services died and were started again: {died}")
        return Report(
            command=command,
            machine=machine.describe(),
            release=version("hsm-endorser"),
            nodes=len(self._plan.nodes),
            devices=len(self._plan.devices),
            peers=len(self._plan.peers),
            period_ms=self._period,
            repetitions=repetitions,
            loops=tuple(found),
            disk_per_transaction=grown / max(1, committed),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    # ---- what is measured

    def _single(self, supervisor: Supervisor, name: str, clients: int, seconds: float, until: str) -> Figures:
        """A closed loop with one transaction in each request."""
        most = int(seconds * (IDLE_RATE * 5 if clients == 1 else LEAST_RATE / 2))
        wanted = loops.requests(self._sign(most), until)
        address = self._layout.socket("management")
        return self._measure(
            supervisor, name, lambda: asyncio.run(loops.closed(address, wanted, clients, seconds, until))
        )

    def _paced(self, supervisor: Supervisor, rate: float, seconds: float) -> Figures:
        wanted = loops.requests(self._sign(int(rate * seconds) + 1), "committed")
        address = self._layout.socket("management")
        most = max(64, int(rate))
        return self._measure(
            supervisor,
            f"{rate:.0f} a second",
            lambda: asyncio.run(loops.paced(address, wanted, rate, seconds, most)),
        )

    def _batches(self, supervisor: Supervisor, seconds: float, pending: int) -> Figures:
        """A closed loop of transactions under way, handed in by batches."""
        signed = self._sign(int(seconds * LEAST_RATE))
        return self._measure(supervisor, f"batches of {BATCH}", lambda: self._submit(signed, seconds, pending))

    def _submit(self, signed: list[Signed], seconds: float, pending: int) -> Loop:
        with Management(self._layout.socket("management")) as management:
            start = management.network().height + 1
        submission = Submission(self._layout.socket("management"), start=start, senders=2, max_pending=pending)
        began = time.perf_counter()

        def batches() -> Iterator[list[Signed]]:
            for at in range(0, len(signed), BATCH):
                if time.perf_counter() - began >= seconds:
                    return
                yield signed[at : at + BATCH]
            self._notes.append("the transactions that were signed ahead were used up")

        submission.run(batches())
        lasted = (submission.last_end or 0.0) - (submission.first_sent or 0.0)
        samples = [loops.Sample(0.0, end.seconds, is_valid(end)) for end in submission.ends.values()]
        failures = [f"{end.code}: {end.problem}" for end in submission.ends.values() if not is_valid(end)]
        return Loop(samples, lasted, failures)

    def _measure(self, supervisor: Supervisor, name: str, loop: Callable[[], Loop]) -> Figures:
        """Run a loop; what it cost every service, the peers caught up included."""
        verifications = machine.verification_rate(MACHINE_SECONDS)
        before, signatures = self._usage(supervisor), self._signatures()
        done = loop()
        self._level()
        after, operations = self._usage(supervisor), self._signatures() - signatures
        times = done.times()
        if done.failures:
            self._notes.append(f"{name}: {len(done.failures)} failures, such as {done.failures[0]}")
        if not times:
            raise CommandError(f"{name}: nothing was committed", advice=f"see {self._layout.folder / 'logs'}")
        devices, peers = len(self._plan.devices), len(self._plan.peers)
        each = report.required(len(times), operations, devices, peers)
        rate = len(times) / done.seconds
        figures = Figures(
            loop=name,
            committed=len(times),
            seconds=done.seconds,
            rate=rate,
            p50=1000 * report.quantile(times, 0.50),
            p95=1000 * report.quantile(times, 0.95),
            p99=1000 * report.quantile(times, 0.99),
            token_operations=operations / len(times),
            verifications=each,
            verification_rate=verifications,
            share=rate * each / verifications,
            cpu=report.spent(before, after, len(times)),
            memory=report.resident(after),
        )
        self._output.plain(
            f"  {name}: {rate:.0f} tx/s, p50 {figures.p50:.1f} ms, {figures.share:.2f} of {verifications:.0f} "
            f"verifications a second"
        )
        return figures

    def _usage(self, supervisor: Supervisor) -> dict[str, Usage]:
        return {name: machine.usage(process.pid or 0) for name, process in supervisor.processes.items()}

    def _signatures(self) -> float:
        """C_Sign calls of all devices so far."""
        total = 0.0
        for name in self._plan.devices:
            with Device(self._layout.socket(name)) as device:
                total += device.figure("hsm_endorser_device_signatures_total")
        return total

    # ---- the network

    def _register(self) -> None:
        """Put the clients on the whitelist, by the administrators: the CA is not what is measured."""
        made = {f"client-{number}": SoftwareKey.generate() for number in range(1, CLIENTS + 1)}
        self._identities = [Identity(name, key.pem()) for name, key in made.items()]
        until = int(time.time() * 1000) + CLIENTS_LIVE_MS
        entries = [registry.builtins(Client(name, key.public.spki, "", until=until)) for name, key in made.items()]
        registry.commit(self._layout.folder, "put", {"entries": entries})

    def _set_period(self, supervisor: Supervisor, period: int) -> None:
        path = self._layout.management / "management.toml"
        settings = tomllib.loads(path.read_text())
        if settings["period_ms"] == period:
            return
        write_settings(path, settings | {"period_ms": period})
        supervisor.stop("management")
        supervisor.start("management")
        supervisor.wait_ready(network.READY_SECONDS)

    def _level(self) -> None:
        """Wait until every peer and every device has applied what the center has."""
        with Management(self._layout.socket("management")) as management:
            height = management.network().height
        deadline = time.monotonic() + CATCH_UP_SECONDS
        behind = {*self._plan.peers, *self._plan.devices}
        while behind:
            behind = {name for name in behind if self._height(name) < height}
            if time.monotonic() > deadline:
                raise CommandError(f"{', '.join(sorted(behind))} did not reach height {height}")
            time.sleep(0.02 if behind else 0)

    def _height(self, name: str) -> int:
        with Service(self._layout.socket(name)) as service:
            return service.height()

    def _sign(self, count: int) -> list[Signed]:
        """Records under subjects of their own, signed in processes of their own."""
        self._number += 1
        until = min(int(time.time() * 1000) + VALIDITY_MS, MAX_INTEGER)
        jobs = [
            Job(NAME, self._identities[at // CHUNK % CLIENTS], f"{self._number}-{at}", min(CHUNK, count - at), until)
            for at in range(0, count, CHUNK)
        ]
        with ProcessPoolExecutor(SIGNERS, mp_context=get_context("spawn")) as pool:
            return [signed for part in pool.map(sign_records, jobs) for signed in part]


class Job(msgspec.Struct, frozen=True):
    """Records for a signing process: `count` of them, their subjects begin with `prefix`."""

    network: str
    client: Identity
    prefix: str
    count: int
    valid_until: int


def sign_records(job: Job) -> list[Signed]:
    """Sign records; runs in a signing process."""
    key = SoftwareKey.from_pem(job.client.pem)
    digest = "ab" * 32
    return [keys.sign(_payload(job, number, digest), [key]) for number in range(job.count)]


def _payload(job: Job, number: int, digest: str) -> bytes:
    arguments: dict[str, Any] = {"subject": f"{job.prefix}-{number}", "digest": digest, "attributes": {}}
    return keys.payload(job.network, job.client.name, "evidence.record", arguments, valid_until=job.valid_until)
