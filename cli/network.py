"""`hsm-endorser network`: make a network's folder, run all of its services, see how they are."""

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx2
import msgspec
import typer

from cli import exit_codes, key_table, registry
from cli.api import Management, Peer
from cli.errors import UnreachableError, UsageError
from cli.key_table import KeyRow
from cli.output import JsonFlag, Output
from cli.plan import DEFAULT_NODES, Layout, NetworkFile, default_plan, read_network, replicated
from cli.supervisor import ServiceSpec, Supervisor, is_supervised, probe
from protocol import policy as policies
from protocol.tier import Tier
from transport.problem import ProblemError

app = typer.Typer(help="Networks: make one, run it, see how it is.", no_args_is_help=True)

READY_SECONDS: Final = 90.0
WARN_DAYS: Final = 30

Folder = Annotated[Path, typer.Argument(help="The network's folder.")]


@app.command()
def init(
    *,
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    name: Annotated[str, typer.Option(help="The network's name; by default the folder's.")] = "",
    node: Annotated[list[str] | None, typer.Option(help="A node, with a device of its own; again for each.")] = None,
    peers: Annotated[int, typer.Option(min=1, max=16, help="How many peers.")] = 2,
    layout: Annotated[
        Literal["partitioned", "replicated"],
        typer.Option(help="partitioned: a device for each node. replicated: every device has a key of every node."),
    ] = "partitioned",
    devices: Annotated[int, typer.Option(min=1, max=16, help="How many devices, when replicated.")] = 3,
    sequence: Annotated[
        str,
        typer.Option(
            help="Replicated devices take turns: 'device-1;device-2,device-3'. Without: the fastest are asked."
        ),
    ] = "",
    policy: Annotated[
        list[str] | None, typer.Option(help="TYPE=EXPRESSION, such as \"assets.issue=AND('A','B')\"; again for each.")
    ] = None,
    least_tier: Annotated[
        Tier, typer.Option("--least-tier", help="The least assurance tier of a key; above claimed, tokens are audited.")
    ] = "claimed",
    as_json: JsonFlag = False,
) -> None:
    """Make a network: tokens and keys for every device, administrators' keys, policies, the genesis block.

    One person does all of it here, and genesis.json says so for ever: no ceremony.
    """
    from cli import founding  # noqa: PLC0415  PKCS#11 is needed from here on

    output = Output(as_json=as_json)
    plan = default_plan(name or folder.absolute().name, node or DEFAULT_NODES, peers, _policies(policy or []))
    if layout == "replicated":
        plan = replicated(plan, devices, sequence)
    elif sequence:
        raise UsageError("a --sequence needs --layout replicated: every device must hold the keys of its turn")
    plan = msgspec.structs.replace(plan, least_tier=least_tier)
    founding.found(plan, folder, output.say)
    output.say(f"Made the network [bold]{plan.name}[/] in {folder}: nodes {', '.join(plan.nodes)}.")
    for kind, expression in plan.policies.items():
        output.say(f"  {kind}: {policies.parse(expression).meaning}")
    output.say("[yellow]No ceremony: one person made this network; its genesis block says so.[/]")
    output.say(f"Run it: hsm-endorser network up {folder}")
    output.result(
        {
            "network": plan.name,
            "folder": str(folder),
            "genesis": str(Layout(folder).genesis),
            "ceremony": "none",
            "nodes": plan.nodes,
            "devices": plan.devices,
            "peers": plan.peers,
            "policies": plan.policies,
            "least_tier": plan.least_tier,
        }
    )


@app.command()
def up(folder: Folder, as_json: JsonFlag = False) -> None:
    """Run all services of a folder in the foreground; restarts what dies, stops all at Ctrl-C."""
    output = Output(as_json=as_json)
    network = read_network(folder)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with Supervisor(folder.absolute(), services(folder, network), output.warn) as supervisor:
        _wait_ready(supervisor, stop, output)
        if not stop.is_set():
            rows = [_row(name, process.spec, process.pid) for name, process in supervisor.processes.items()]
            output.table(f"Network {network.network}", ["service", "address", "pid", "ready"], _cells(rows))
            output.say("Ctrl-C stops it.")
            output.result({"network": network.network, "services": rows})
        stop.wait()
    output.say("Stopped.")


@app.command()
def status(folder: Folder, as_json: JsonFlag = False) -> None:
    """Show what runs, whether it is ready, and how far each chain is."""
    output = Output(as_json=as_json)
    network = read_network(folder)
    specs = services(folder, network)
    rows = [_row(spec.name, spec, None) for spec in specs]
    ceremony = registry.founding(folder).channel.ceremony
    output.table(
        f"Network {network.network} ({'no ceremony' if ceremony == 'none' else f'ceremony {ceremony}'})",
        ["service", "address", "ready"],
        [[row["service"], row["address"], row["ready"]] for row in rows],
    )
    chains = _chains(Layout(folder.absolute()), network)
    if chains:
        output.table("Chains", ["service", "height", "head"], [list(each.values())[:3] for each in chains])
    soon = _expiring(folder)
    for row in soon:
        output.warn(key_table.warning(row))
    running = is_supervised(folder)
    if not running:
        output.say(f"It does not run; start it: hsm-endorser network up {folder}")
    ready = all(row["ready"] == "ready" for row in rows)
    output.result(
        {
            "network": network.network,
            "ceremony": ceremony,
            "supervised": running,
            "ready": ready,
            "services": rows,
            "chains": chains,
            "expiring": [row.document() for row in soon],
        }
    )
    if not ready and as_json:  # the document has said it already
        raise typer.Exit(exit_codes.UNREACHABLE)
    if not ready:
        raise UnreachableError("not all services are ready", advice="see DIR/logs")


def _expiring(folder: Path) -> list[KeyRow]:
    """The keys of the network itself that expire soon, as `key list` says of clients', too."""
    height, now = registry.head(folder)
    rows = key_table.rows(registry.in_force(folder), height=height + 1, time=now, clients=False)
    return key_table.expiring_soon(rows, WARN_DAYS)


def services(folder: Path, network: NetworkFile) -> list[ServiceSpec]:
    """The programs of a folder: every service is this same command, in a process of its own.

    Raises `AddressError` when the folder's path is too long for their sockets, `UsageError` when it was moved.
    """
    layout = Layout(folder.absolute())
    for name in network.devices:
        _require_own_store(layout.device(name))
    program = (sys.executable, "-m", "cli")

    def spec(name: str, kind: str, config: Path) -> ServiceSpec:
        layout.socket(name).socket_path()  # refused here, and not when it runs already
        return ServiceSpec(name, (*program, kind, "--config", str(config)), layout.socket(name))

    return [
        *(spec(name, "device", layout.device(name) / "device.toml") for name in network.devices),
        spec("management", "management", layout.management / "management.toml"),
        *(spec(name, "peer", layout.peer(name) / "peer.toml") for name in network.peers),
    ]


def _require_own_store(device: Path) -> None:
    """SoftHSM takes absolute paths only, so a folder that was moved points to where its tokens were."""
    configuration = device / "softhsm2.conf"
    if configuration.exists() and f"directories.tokendir = {device}/" not in configuration.read_text():
        raise UsageError(
            f"{configuration} does not name this folder: the network was moved or copied",
            advice=f"write 'directories.tokendir = {device / 'tokens'}' there (never run two copies of one network)",
        )


def _wait_ready(supervisor: Supervisor, stop: threading.Event, output: Output) -> None:
    """Wait for readiness, but not longer than until Ctrl-C; what is not ready then is said, and goes on trying."""

    def wait() -> None:
        try:
            supervisor.wait_ready(READY_SECONDS)
        except UnreachableError as error:
            output.warn(f"{error.reason} ({error.advice})")

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    while waiter.is_alive() and not stop.is_set():
        waiter.join(0.2)


def _row(name: str, spec: ServiceSpec, pid: int | None) -> dict[str, Any]:
    state = probe(spec.address) if spec.address else "ready"
    return {"service": name, "address": str(spec.address), "pid": pid, "ready": state}


def _cells(rows: list[dict[str, Any]]) -> list[list[object]]:
    return [[row["service"], row["address"], row["pid"], row["ready"]] for row in rows]


def _chains(layout: Layout, network: NetworkFile) -> list[dict[str, Any]]:
    chains: list[dict[str, Any]] = []
    try:
        with Management(layout.socket("management")) as management:
            info = management.network()
            chains.append({"service": "management", "height": info.height, "head": info.authentication})
    except (httpx2.HTTPError, ProblemError, UnreachableError):
        pass
    for name in network.peers:
        try:
            with Peer(layout.socket(name)) as peer:
                found = peer.status()
            chains.append(
                {"service": name, "height": found.height, "head": found.authentication, "halted": found.halted}
            )
        except (httpx2.HTTPError, ProblemError, UnreachableError):
            continue
    return chains


def _policies(given: list[str]) -> dict[str, str]:
    chosen = {}
    for each in given:
        kind, equals, expression = each.partition("=")
        if not equals or not kind:
            raise UsageError(f"--policy {each!r} is not of the form TYPE=EXPRESSION")
        policies.parse(expression)
        chosen[kind] = expression
    return chosen
