"""`hsm-endorser route`: whom the next transaction of a type goes to, and why; and the alarms of the service."""

import datetime as dt
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.api import Management
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network

app = typer.Typer(help="Routing: which devices are asked to endorse, and why.", no_args_is_help=True)

NetworkOption = Annotated[Path, typer.Option(help="The folder of a running network.")]


@app.command()
def explain(
    kind: Annotated[str, typer.Argument(help="A transaction type, such as assets.transfer.")],
    network: NetworkOption,
    as_json: JsonFlag = False,
) -> None:
    """Ask the running network whom the next transaction of a type goes to, and why."""
    output = Output(as_json=as_json)
    with _management(network) as management:
        told = management.route(kind)
    output.say(f"{told['kind']} asks for {told['meaning']}; routing is {told['routing']}.")
    rows = [_row(each, told["chosen"] or []) for each in told["candidates"]]
    output.table("Devices that hold keys of its nodes", _COLUMNS, rows)
    for skipped in told["skipped"]:
        output.plain(f"Skipped {', '.join(skipped['devices'])}: {skipped['why']}")
    output.plain(f"Why: {told['reason']}.")
    output.result(told)


@app.command()
def alarms(network: NetworkOption, as_json: JsonFlag = False) -> None:
    """Show what an operator must look into, newest first: late rejects, nodes whose devices disagree."""
    output = Output(as_json=as_json)
    with _management(network) as management:
        found = management.alarms()
    for each in found:
        when = dt.datetime.fromtimestamp(each["time"] / 1000, dt.UTC).isoformat(timespec="milliseconds")
        output.plain(f"{when} {each['kind']} {each['device']} transaction {each['transaction']}: {each['detail']}")
    if not found:
        output.say("No alarm since the management service started.")
    output.result({"alarms": found})


_COLUMNS = ["device", "asked for", "state", "expected", "waiting", "batch", "network", "errors"]


def _row(candidate: dict[str, Any], chosen: list[dict[str, Any]]) -> list[object]:
    figures = candidate["figures"]
    nodes = [node for each in chosen if each["device"] == candidate["device"] for node in each["nodes"]]
    return [
        candidate["device"],
        ", ".join(nodes) or "-",
        candidate["reason"],
        f"{figures['expected_ms']:.1f} ms",
        figures["waiting"] + figures["in_flight"],
        f"{figures['batch_ms']:.1f} ms",
        f"{figures['network_ms']:.1f} ms",
        f"{100 * figures['error_rate']:.0f} %",
    ]


def _management(network: Path) -> Management:
    read_network(network)
    return Management(Layout(network).socket("management"))
