"""`hsm-endorser policy`: what a policy means, what it would come to now, and how administrators set one."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from cli import registry
from cli.answers import Simulation
from cli.api import Management
from cli.errors import UsageError
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network, rotation
from ledger.contracts.registry_rules import check_policy
from ledger.errors import RejectedError
from ledger.registry_view import RegistryView
from protocol import distinct
from protocol import policy as policies
from protocol.errors import LimitExceededError, PolicySyntaxError
from protocol.policy import Policy
from protocol.registry import EndorsementPolicy, Partitioned, Replicated, Rotation, Routing

app = typer.Typer(help="Endorsement policies: which nodes must approve a transaction.", no_args_is_help=True)

RoutingName = Literal["partitioned", "replicated", "rotation"]

Expression = Annotated[str, typer.Argument(help="Such as \"AND('A', 'B')\", \"OutOf(2, 'A', 'B', 'C')\", MAJORITY.")]
RoutingOption = Annotated[RoutingName, typer.Option("--routing", help="How devices are chosen.")]
SequenceOption = Annotated[
    str, typer.Option("--sequence", help="The groups of a rotation, such as 'device-a;device-b,device-c'.")
]
DistinctOption = Annotated[
    bool, typer.Option("--distinct-devices", help="Each node that counts must sign on a token of its own.")
]


@app.command()
def check(
    expression: Expression,
    *,
    network: Annotated[Path | None, typer.Option(help="A network folder: judge against its nodes and devices.")] = None,
    routing: RoutingOption = "partitioned",
    sequence: SequenceOption = "",
    distinct_devices: DistinctOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Parse a policy and say in words what it asks for, and which nodes cannot be missing."""
    output = Output(as_json=as_json)
    entry = _entry("check", expression, routing, sequence, distinct_devices=distinct_devices)
    policy = policies.parse(expression)
    view = registry.in_force(network) if network else None
    members = view.node_names if view else tuple(sorted(policy.nodes(())))
    targets = tuple(sorted(policy.nodes(members)))
    if view:
        _require_possible(policy, entry, view)
    minimal = policy.minimal(members, members) or ()
    indispensable = [node for node in targets if policy.minimal(members, sorted({*members} - {node})) is None]
    output.say(f"It asks for {policy.meaning}.")
    if distinct_devices:
        output.say(_DISTINCT)
    output.say(_routing_in_words(entry.routing))
    if minimal:
        output.say(f"It counts the nodes {', '.join(targets)}; {', '.join(minimal)} would be enough.")
        named = ", ".join(indispensable)
        output.say(f"Without {named} it cannot be satisfied." if named else "No single node is indispensable.")
    else:
        output.say("Which nodes those are depends on the network: add --network DIR.")
    output.result(
        {
            "expression": expression,
            "meaning": policy.meaning,
            "routing": msgspec.to_builtins(entry.routing),
            "distinct_devices": distinct_devices,
            "nodes": targets,
            "minimal": minimal,
            "indispensable": indispensable,
        }
    )


@app.command()
def simulate(
    network: Annotated[Path, typer.Option(help="The folder of a running network.")],
    kind: Annotated[str, typer.Argument(help="A transaction type, such as assets.issue; all policies without.")] = "",
    lost: Annotated[str, typer.Option("--lost", help="A device: which transaction types stop without it?")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Ask the running network: would this be endorsed now, by whom, on which devices? What if a device is lost?"""
    output = Output(as_json=as_json)
    layout = Layout(network)
    read_network(network)
    kinds = [kind] if kind else _kinds(registry.in_force(network))
    with Management(layout.socket("management")) as management:
        now = [management.simulation(each) for each in kinds]
        later = [management.simulation(each, without=lost) for each in kinds] if lost else []
    if not lost:
        for each in now:
            _explain(output, each)
        output.result({"simulations": [msgspec.to_builtins(each) for each in now]})
        return
    stops = [new.kind for old, new in zip(now, later, strict=True) if old.goes_on and not new.goes_on]
    goes_on = [each.kind for each in later if each.goes_on]
    stopped = [each.kind for each in now if not each.goes_on]
    output.say(f"Without {lost}:")
    for title, named in (("these stop", stops), ("these go on", goes_on), ("these stand still already", stopped)):
        if named:
            output.say(f"  {title}: {', '.join(named)}")
    for each in later:
        if each.kind in stops:
            _explain(output, each)
    output.result(
        {
            "lost": lost,
            "stops": stops,
            "goes_on": goes_on,
            "stopped_already": stopped,
            "simulations": [msgspec.to_builtins(each) for each in later],
        }
    )


@app.command("set")
def set_policy(
    kind: Annotated[str, typer.Argument(help="A transaction type (assets.issue) or a contract (assets).")],
    expression: Expression,
    *,
    network: Annotated[Path, typer.Option(help="The network folder.")],
    routing: RoutingOption = "partitioned",
    sequence: SequenceOption = "",
    distinct_devices: DistinctOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Put a policy into the registry, signed by as many administrators as the network asks for."""
    entry = _entry(kind, expression, routing, sequence, distinct_devices=distinct_devices)
    _require_possible(policies.parse(expression), entry, registry.in_force(network))
    registry.change(Output(as_json=as_json), network, "put", {"entries": [registry.builtins(entry)]})


_DISTINCT = "Each node that counts must sign on a token of its own: two slots of one box, or an HA group, count once."


def _entry(
    kind: str, expression: str, routing: RoutingName, sequence: str, *, distinct_devices: bool
) -> EndorsementPolicy:
    try:
        policy = policies.parse(expression)
        if distinct_devices:
            distinct.check_size(policy, policy.nodes(()))
    except (PolicySyntaxError, LimitExceededError) as error:
        raise UsageError(str(error), code=error.code) from None
    return EndorsementPolicy(
        name=kind, expression=expression, routing=_routing(routing, sequence), distinct_devices=distinct_devices
    )


def _routing(name: RoutingName, sequence: str) -> Routing:
    if (name == "rotation") != bool(sequence):
        raise UsageError("a rotation, and nothing else, has a --sequence, such as 'device-a;device-b,device-c'")
    match name:
        case "partitioned":
            return Partitioned()
        case "replicated":
            return Replicated()
        case "rotation":
            return rotation(sequence)


def _require_possible(policy: Policy, entry: EndorsementPolicy, view: RegistryView) -> None:
    """What the registry would refuse is refused here, before anybody signs it."""
    unknown = sorted(policy.nodes(view.node_names) - {*view.node_names})
    if unknown:
        raise UsageError(f"the policy names {', '.join(unknown)}; the network's nodes are {', '.join(view.node_names)}")
    try:
        check_policy(entry, view)
    except RejectedError as error:
        raise UsageError(str(error), code=error.code) from None


def _kinds(view: RegistryView) -> list[str]:
    return [key.partition("/")[2] for key in view.entries.under("policy")]


def _routing_in_words(routing: Routing) -> str:
    match routing:
        case Partitioned():
            return "Each node is asked on a device that holds its key (partitioned)."
        case Replicated():
            return "Each node is asked on the best of all devices that hold a key of it (replicated)."
        case Rotation(sequence):
            return f"Groups of devices take turns (rotation): {', then '.join(' with '.join(g) for g in sequence)}."


def _explain(output: Output, found: Simulation) -> None:
    without = f" without {found.without}" if found.without else ""
    asked = found.policy if found.policy == found.kind else f"{found.kind} (by the policy for {found.policy})"
    output.say(f"{asked} asks for {found.meaning} ({found.routing}).")
    output.say(f"  It would {'' if found.endorsed else 'not '}be endorsed now{without}:")
    for turn in found.turns:
        votes = ", ".join(f"{vote.node} on {vote.device}" for vote in turn.votes)
        output.plain(f"    {votes or turn.reason}")
    for missing in found.missing:
        reasons = "; ".join(f"{device}: {reason}" for device, reason in missing.devices.items())
        output.plain(f"    nobody can sign for {missing.node} ({reasons or 'no key of it counts'})")
    if found.blocks:
        output.plain(f"  And {found.blocks}.")
