"""`hsm-endorser policy`: check what an endorsement policy means, and set one with the administrators' signatures."""

from pathlib import Path
from typing import Annotated

import typer

from cli import registry
from cli.errors import UsageError
from cli.output import JsonFlag, Output
from protocol import policy as policies
from protocol.errors import PolicySyntaxError
from protocol.policy import Policy
from protocol.registry import EndorsementPolicy

app = typer.Typer(help="Endorsement policies: which nodes must approve a transaction.", no_args_is_help=True)

Expression = Annotated[str, typer.Argument(help="Such as \"AND('A', 'B')\", \"OutOf(2, 'A', 'B', 'C')\", MAJORITY.")]


@app.command()
def check(
    expression: Expression,
    network: Annotated[Path | None, typer.Option(help="A network folder: judge against its nodes.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Parse a policy and say in words what it asks for, and which nodes cannot be missing."""
    output = Output(as_json=as_json)
    policy = _parse(expression)
    members = registry.in_force(network).node_names if network else tuple(sorted(policy.nodes(())))
    targets = tuple(sorted(policy.nodes(members)))
    unknown = sorted(set(targets) - set(members))
    if unknown:
        raise UsageError(f"the policy names {', '.join(unknown)}; the network's nodes are {', '.join(members)}")
    minimal = policy.minimal(members, members) or ()
    indispensable = [node for node in targets if policy.minimal(members, sorted({*members} - {node})) is None]
    output.say(f"It asks for {policy.meaning}.")
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
            "nodes": targets,
            "minimal": minimal,
            "indispensable": indispensable,
        }
    )


@app.command("set")
def set_policy(
    kind: Annotated[str, typer.Argument(help="A transaction type (assets.issue) or a contract (assets).")],
    expression: Expression,
    network: Annotated[Path, typer.Option(help="The network folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Put a policy into the registry, signed by as many administrators as the network asks for."""
    _parse(expression)
    entry = EndorsementPolicy(name=kind, expression=expression)
    registry.change(Output(as_json=as_json), network, "put", {"entries": [registry.builtins(entry)]})


def _parse(expression: str) -> Policy:
    try:
        return policies.parse(expression)
    except PolicySyntaxError as error:
        raise UsageError(str(error), code=error.code) from None
