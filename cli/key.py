"""`hsm-endorser key`: the life of the network's keys: list them, rotate one, revoke one (docs/key-life-cycle.md)."""

from pathlib import Path
from typing import Annotated, Final

import typer

from cli import key_rotation, key_table, registry, revoking
from cli.errors import UsageError
from cli.key_rotation import Rotated, Wish
from cli.output import JsonFlag, Output
from cli.plan import Layout

app = typer.Typer(help="Keys: list them, rotate one, revoke one, trace what one has signed.", no_args_is_help=True)

DEFAULT_OVERLAP: Final = 20
DEFAULT_DAYS: Final = 730

NetworkFolder = Annotated[Path, typer.Option("--network", help="The network folder.")]
Administrators = Annotated[
    list[str] | None,
    typer.Option("--administrator", help="An administrator who signs; again for each. As many as needed, if none."),
]


@app.command("list")
def list_keys(
    network: NetworkFolder,
    warn_days: Annotated[int, typer.Option(min=0, help="Warn of keys that expire within so many days.")] = 30,
    clients: Annotated[bool, typer.Option(help="Clients' keys as well.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """List all keys: who holds them, where they live, how long they count, and whether they count now."""
    output = Output(as_json=as_json)
    view = registry.in_force(network)
    height, now = registry.head(network)
    rows = key_table.rows(view, height=height + 1, time=now, clients=clients)
    output.table(f"Keys of {view.channel.network} at height {height}", key_table.COLUMNS, [row.cells() for row in rows])
    for row in key_table.expiring_soon(rows, warn_days):
        output.warn(key_table.warning(row))
    output.result(
        {"network": view.channel.network, "height": height, "time": now, "keys": [r.document() for r in rows]}
    )


@app.command()
def rotate(
    *,
    holder: Annotated[str, typer.Argument(help="node/A (or A), center/center-1, registrar/ca, administrator/admin-1.")],
    network: NetworkFolder,
    device: Annotated[str, typer.Option(help="The device; all that hold a key of the node, one by one, if none.")] = "",
    since: Annotated[int | None, typer.Option(min=1, help="From which height on a node's new key counts.")] = None,
    overlap: Annotated[
        int, typer.Option(min=0, max=100_000, help="For how many blocks both keys of a node count.")
    ] = DEFAULT_OVERLAP,
    lifetime: Annotated[int, typer.Option(min=1, max=36_500, help="Days until the new key expires.")] = DEFAULT_DAYS,
    unannounced: Annotated[
        bool,
        typer.Option(
            "--unannounced", help="The old key has expired or was revoked: by the administrators' word alone."
        ),
    ] = False,
    administrator: Administrators = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a holder a new key, made where the old one lives and announced by both (requirement K-12).

    The old key stays on its token until that is re-initialised; what it signed stays verifiable for ever.
    """
    output = Output(as_json=as_json)
    name = holder if "/" in holder else f"node/{holder}"
    wish = Wish(
        network,
        name,
        lifetime,
        overlap,
        since=since,
        administrators=revoking.known(network, tuple(administrator or ())),
    )
    done: list[Rotated] = []
    if name.startswith("administrator/"):
        done.append(key_rotation.rotate_administrator(wish))
    elif unannounced:
        view = registry.in_force(network)
        devices = [device] if device else key_rotation.devices_for(view, name)
        done += [key_rotation.put_unannounced(each, wish, output.say) for each in devices]
    else:
        devices = key_rotation.devices_of(registry.in_force(network), Layout(network), name)
        if device and device not in devices:
            raise UsageError(
                f"device {device} holds no key of {name} to be rotated", advice=f"one lives on {', '.join(devices)}"
            )
        done += [key_rotation.rotate_on(each, wish, output.say) for each in ([device] if device else devices)]
    for each_done in done:
        output.plain(each_done.sentence())
    output.plain("The old key stays on its token, unused, until the token is re-initialised.")
    output.result({"rotated": [_document(each) for each in done]})


@app.command()
def revoke(
    *,
    key: Annotated[str, typer.Argument(help="A key id (or the beginning of one), or a holder with one key.")],
    reason: Annotated[str, typer.Option(help=f"One of: {', '.join(revoking.REASONS)}.")],
    network: NetworkFolder,
    suspected: Annotated[
        str, typer.Option(help="From when on others may have had the key: 2026-11-21T10:00:00Z, or milliseconds.")
    ] = "",
    administrator: Administrators = None,
    as_json: JsonFlag = False,
) -> None:
    """Refuse a key from the next block on, for ever (requirement K-14)."""
    row = revoking.find(network, key)
    wish = revoking.Wish(network, row, reason, suspected, tuple(administrator or ()))
    revoking.revoke(Output(as_json=as_json), wish)


def _document(done: Rotated) -> dict[str, object]:
    return {
        "holder": done.holder,
        "device": done.device,
        "old": done.old,
        "new": done.new,
        "since": done.since,
        "last": done.last,
        "until": done.until,
        "transaction": done.committed.transaction,
        "height": done.committed.height,
        "signers": list(done.committed.signers),
    }
