"""The order of the demo: a fresh network, real records, load, what must fail, and the proof of it all."""

import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from cli import chain, client, exit_codes, network, receipt
from cli.api import Device, Management, Peer
from cli.demo import inventory
from cli.demo.checks import Checks
from cli.demo.load import EXPECTED_RATE, Figures, Identity, Lanes, figures
from cli.demo.refusals import Attempt, Refusals
from cli.errors import UnreachableError, UsageError
from cli.keys import SoftwareKey, payload, sign
from cli.output import JsonFlag, Output
from cli.plan import DEFAULT_NODES, Layout, default_plan, read_network
from cli.submission import BATCH, Signed, Submission, is_valid
from cli.supervisor import Supervisor, is_supervised

PROJECT: Final = Path(__file__).resolve().parent.parent.parent
FOLDER_NAME: Final = "demo-network"
NETWORK: Final = "demo"
CLIENTS: Final = ("alice", "bob")
VALIDITY_MS: Final = 1_800_000
LOAD_PENDING: Final = 3_072
LOAD_SENDERS: Final = 2
CATCH_UP_SECONDS: Final = 60.0
MOST_TOKEN_OPERATIONS: Final = 0.1
FULL_TRANSFERS: Final = 20_000
FULL_SECONDS: Final = 10.0


def demo(
    *,
    folder: Annotated[Path, typer.Option(help="Where the network is made; what a demo left there is removed.")] = (
        PROJECT / FOLDER_NAME
    ),
    transfers: Annotated[int, typer.Option(min=1, help="Least number of transfers in the load part.")] = FULL_TRANSFERS,
    seconds: Annotated[float, typer.Option(min=0, help="Least time of the load part.")] = FULL_SECONDS,
    records: Annotated[int, typer.Option(min=1, help="Most packages of the inventory to record.")] = 100_000,
    least_rate: Annotated[
        float, typer.Option(min=0, help="Transactions per second below which the demo fails; measured always.")
    ] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the network running until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run the main job end to end on SoftHSM tokens, and check every claim. Exit code 0 only if all of it held."""
    output = Output(as_json=as_json)
    run = Demo(output, folder.absolute(), transfers=transfers, seconds=seconds, records=records, least_rate=least_rate)
    document = run.run(keep=keep)
    output.result(document)
    if run.checks.failed:
        raise typer.Exit(exit_codes.VERIFICATION_FAILED)


class Demo:
    """One run; `checks` holds every claim that was compared."""

    def __init__(
        self, output: Output, folder: Path, *, transfers: int, seconds: float, records: int, least_rate: float
    ) -> None:
        self.checks = Checks(output)
        self._output = output
        self._folder = folder
        self._layout = Layout(folder)
        self._transfers = transfers
        self._seconds = seconds
        self._records = records
        self._least_rate = least_rate
        self._document: dict[str, Any] = {}

    def run(self, *, keep: bool) -> dict[str, Any]:
        """The whole demo; the document that `--json` prints."""
        self._make_network()
        described = network.services(self._folder, read_network(self._folder))
        with Supervisor(self._folder, described, self._output.warn) as supervisor:
            supervisor.wait_ready(network.READY_SECONDS)
            self._show_processes(supervisor)
            with Management(self._layout.socket("management")) as management:
                clients = self._register()
                first = self._record_inventory(management, clients[0])
                lanes, measured = self._load(management, clients)
                self._refuse(management, clients, lanes, first, supervisor)
                self._show_figures(management, measured)
            self._prove(first[0])
            restarts = {name: process.restarts for name, process in supervisor.processes.items() if process.restarts}
            self.checks.equal("no process died", {}, restarts)
            self._conclude()
            if keep:
                self._keep(supervisor)
        return self._document

    # ---- the network

    def _make_network(self) -> None:
        from cli import founding  # noqa: PLC0415  PKCS#11 is needed from here on

        self._title("A fresh network: nodes A, B, C, each with its key on a token of its own")
        if self._folder.exists():
            if not Layout(self._folder).network_file.exists() and any(self._folder.iterdir()):
                raise UsageError(f"{self._folder} exists and is no network folder", advice="choose another --folder")
            if is_supervised(self._folder):
                raise UsageError(f"the network in {self._folder} runs", advice="stop it first")
            shutil.rmtree(self._folder)
        plan = default_plan(NETWORK, DEFAULT_NODES, 2, {})
        founding.found(plan, self._folder, self._output.say)
        self._output.say("[yellow]No ceremony: one person made this network; its genesis block says so.[/]")
        self._document["policies"] = plan.policies

    def _show_processes(self, supervisor: Supervisor) -> None:
        rows: list[list[object]] = [[name, process.pid] for name, process in supervisor.processes.items()]
        self._output.table("Every service is a process of its own", ["service", "pid"], rows)

    # ---- clients and records

    def _register(self) -> list[Identity]:
        self._title("Two clients register through the CA, whose key is on a token")
        identities = []
        for name in CLIENTS:
            answer = client.enrol(self._layout, name, client.invite(self._layout, name))
            if answer is None:
                raise UsageError(f"{name} waits for approval in spite of its secret")
            self._output.say(f"{name}: certificate {Path(answer['certificate']).name}, block {answer['height']}")
            identities.append(Identity(name, SoftwareKey.load(self._layout.client_key(name)).pem()))
        return identities

    def _record_inventory(self, management: Management, owner: Identity) -> Signed:
        """Record every installed package; returns the first record."""
        found = inventory.packages()[: self._records]
        self._title(f"The software inventory of this machine: {len(found)} records ({found[0].source})")
        key, until = SoftwareKey.from_pem(owner.pem), self._valid_until()
        signed = [
            sign(payload(NETWORK, owner.name, "evidence.record", each.wish(), valid_until=until), [key])
            for each in found
        ]
        ends = self._submit(management, "records", signed).ends
        self.checks.equal("every record is committed", len(signed), sum(map(is_valid, ends.values())))
        self._document["records"] = len(signed)
        return signed[0]

    def _submit(self, management: Management, what: str, signed: list[Signed]) -> Submission:
        submission = Submission(management.address, start=management.network().height + 1)
        batches = (signed[at : at + BATCH] for at in range(0, len(signed), BATCH))
        with self._output.progress(what, len(signed)) as progress:
            submission.run(batches, progress)
        return submission

    # ---- load

    def _load(self, management: Management, clients: list[Identity]) -> tuple[Lanes, Figures]:
        lanes = Lanes(NETWORK, clients, self._transfers, self._valid_until())
        self._title(
            f"Asset transfers: {lanes.size} coins, at least {self._transfers} transfers and {self._seconds:g} s"
        )
        issues = lanes.issues()
        ends = self._submit(management, "issues", issues).ends
        self.checks.equal("every issue is committed", len(issues), sum(map(is_valid, ends.values())))
        ahead = max(self._transfers, int(self._seconds * EXPECTED_RATE))
        with self._output.progress("transfers signed ahead", ahead) as progress:
            lanes.sign_ahead(ahead, progress)
        before = self._signatures()
        height = management.network().height
        submission = Submission(management.address, start=height + 1, senders=LOAD_SENDERS, max_pending=LOAD_PENDING)
        with self._output.progress("transfers committed", self._transfers) as progress:
            submission.run(lanes.batches(submission, self._transfers, self._seconds), progress)
        operations = self._signatures() - before
        measured = figures(submission)
        self.checks.equal("every transfer is committed", measured.sent, measured.committed)
        self.checks.at_least("transfers in the load part", self._transfers, measured.committed)
        self.checks.at_least("seconds of the load part", self._seconds, measured.seconds)
        per_transaction = operations / max(1, measured.committed)
        self.checks.at_least("token operations in the load part", 1, operations)
        self.checks.at_least("transactions per second", self._least_rate, measured.per_second)
        if self._transfers >= FULL_TRANSFERS:  # few transactions make small batches
            self.checks.at_most("token operations per transaction", MOST_TOKEN_OPERATIONS, per_transaction)
        self._document["load"] = {
            **msgspec.to_builtins(measured),
            "blocks": management.network().height - height,
            "token_operations": int(operations),
            "token_operations_per_transaction": per_transaction,
            "codes": submission.counts,
        }
        return lanes, measured

    def _signatures(self) -> float:
        """C_Sign calls of all devices so far."""
        total = 0.0
        for name in read_network(self._folder).devices:
            with Device(self._layout.socket(name)) as device:
                total += device.figure("hsm_endorser_device_signatures_total")
        return total

    # ---- what must fail

    def _refuse(
        self, management: Management, clients: list[Identity], lanes: Lanes, first: Signed, supervisor: Supervisor
    ) -> None:
        self._title("What must fail, and why it does")
        refusals = Refusals(management, NETWORK, clients)
        devices = read_network(self._folder).devices
        attempts = [refusals.unknown_client(), refusals.wrong_signature()]
        with Device(self._layout.socket(devices[0])) as device:
            attempts.append(refusals.replay(first[1], device, DEFAULT_NODES[0]))
        again = refusals.replay_is_harmless(first[1])
        self.checks.equal(
            "a replay is answered with the first commit", ("committed", "valid"), (again.status, again.code)
        )
        attempts += [refusals.expired(), refusals.double_spending(lanes.spent_coin())]
        for attempt in attempts:
            self._show(attempt)
        for attempt in refusals.too_few_endorsements(supervisor, devices[-1]):
            self._show(attempt)
            attempts.append(attempt)
        self._document["attempts"] = [msgspec.to_builtins(attempt) for attempt in attempts]

    def _show(self, attempt: Attempt) -> None:
        self.checks.equal(f"{attempt.name}: {attempt.expected}", attempt.expected, attempt.got)
        self._output.say(f"[bold]{attempt.name}[/]: [cyan]{attempt.got}[/]")
        self._output.plain(f"    {attempt.reason}")
        for line in attempt.devices:
            self._output.plain(f"    {line}")

    # ---- figures and proofs

    def _show_figures(self, management: Management, measured: Figures) -> None:
        load = self._document["load"]
        rows: list[list[object]] = [
            ["blocks in all", management.network().height + 1],
            ["blocks in the load part", load["blocks"]],
            ["transfers committed", measured.committed],
            ["seconds", f"{measured.seconds:.1f}"],
            ["transactions per second", f"{measured.per_second:.0f}"],
            ["p50 to commit", f"{measured.median * 1000:.0f} ms"],
            ["p95 to commit", f"{measured.p95 * 1000:.0f} ms"],
            ["token operations per transaction", f"{load['token_operations_per_transaction']:.4f}"],
        ]
        self._output.table("The load part", ["figure", "value"], rows)

    def _prove(self, transaction: str) -> None:
        self._title("Proof: one receipt offline, the whole chain on both peers")
        file = self._folder / f"receipt-{transaction[:16]}.json"
        file.write_bytes(receipt.fetch(self._folder, transaction))
        report = receipt.check(file.read_bytes(), self._layout.genesis.read_bytes())
        for step in report.steps:
            self._output.say(f"[green]✓[/] {step}")
        self.checks.equal("the receipt is of the transaction", transaction, report.transaction)
        self.checks.equal("the receipt says valid", "valid", report.code)
        self._document["receipt"] = {"file": str(file), **msgspec.to_builtins(report)}
        peers = read_network(self._folder).peers
        claims = self._level_claims(peers)
        genesis = self._layout.genesis.read_bytes()
        reports = []
        for name, claim in claims.items():
            with self._output.progress(f"{name}: blocks verified from genesis on", claim.height) as progress:
                reports.append(chain.verify_store(self._layout.peer(name), genesis, claim, progress))
        self._output.table(
            "The chain, verified again from genesis on",
            ["peer", "height", "transactions", "head", "state digest"],
            [
                [name, each.height, each.transactions, each.authentication[:16], each.state_digest[:16]]
                for name, each in zip(peers, reports, strict=True)
            ],
        )
        for what in ("height", "authentication", "state_digest"):
            values = [getattr(each, what) for each in reports]
            self.checks.equal(f"the peers have the same {what}", values[:1] * len(values), values)
        for name in peers:
            with Peer(self._layout.socket(name)) as peer:
                self.checks.equal(f"{name} has not halted", None, peer.status().halted)
        self._document["chains"] = [msgspec.to_builtins(each) for each in reports]

    def _level_claims(self, peers: tuple[str, ...]) -> dict[str, chain.Claim]:
        """What each peer holds, once all of them hold as much as the center."""
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while True:
            with Management(self._layout.socket("management")) as management:
                height = management.network().height
            claims = {name: chain.claim_of(self._layout.peer(name)) for name in peers}
            heights = {claim.height for claim in claims.values()}
            if len(heights) == 1 and heights >= {height}:
                return claims
            if time.monotonic() > deadline:
                raise UnreachableError(f"the center is at height {height}, the peers at {heights}", advice="see logs/")
            time.sleep(0.2)

    # ---- the end

    def _conclude(self) -> None:
        failed = self.checks.failed
        self._document["checks"] = [msgspec.to_builtins(check) for check in self.checks.all]
        self._document["held"] = not failed
        if failed:
            self._output.say(f"\n[bold red]{len(failed)} of {len(self.checks.all)} checks did not hold:[/]")
            for check in failed:
                self._output.plain(f"  {check.name}: expected {check.expected}, got {check.got}")
        else:
            self._output.say(f"\n[bold green]All of it held[/] ({len(self.checks.all)} checks).")

    def _keep(self, supervisor: Supervisor) -> None:
        self._output.say(f"The network keeps running ({len(supervisor.processes)} processes); Ctrl-C stops it.")
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            self._output.say("Stopping.")

    def _title(self, text: str) -> None:
        self._output.say(f"\n[bold]{text}[/]")

    @staticmethod
    def _valid_until() -> int:
        return int(time.time() * 1000) + VALIDITY_MS
