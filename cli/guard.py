"""`hsm-endorser guard`: start the guard of a device anew, by an order that administrators sign (docs/guard.md).

Drawn up and signed with `order` (others add their signatures with `sign`), carried out on the device's machine with
`apply` while the device stands still, written into the chain with `anchor`.
"""

import contextlib
import secrets
import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from cli import registry, role_holder
from cli.api import Management
from cli.errors import CommandError, UnreachableError, UsageError
from cli.exit_codes import REFUSED
from cli.output import JsonFlag, Output
from cli.plan import Layout, NetworkFile, read_network
from ledger.store import ChainStore, url_of
from protocol import canonical, guard_order
from protocol.envelope import Envelope
from protocol.guard_order import Order
from protocol.registry import GuardOrder

MANAGEMENT_SECONDS: Final = 3.0

app = typer.Typer(help="The guard of a device: start a lost one anew, by order of the administrators.")

NetworkFolder = Annotated[Path, typer.Option("--network", help="The network folder.")]
OrderFile = Annotated[Path, typer.Argument(help="The order's file.", exists=True, dir_okay=False, readable=True)]
Administrators = Annotated[
    list[str] | None, typer.Option("--admin", help="An administrator who signs; may be given several times.")
]


@app.command()
def order(
    *,
    network: NetworkFolder,
    device: Annotated[str, typer.Option(help="The device whose guard was lost.")],
    reason: Annotated[str, typer.Option(help="What happened; it stands in the order.")],
    admin: Administrators = None,
    valid_from: Annotated[int | None, typer.Option(help="Least valid_from to vote on; two above the chain's.")] = None,
    seen: Annotated[
        int,
        typer.Option("--height", min=0, help="The greatest height that anybody has seen, where the folder is behind."),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; guard-order.json in the device's folder.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw up and sign the order to start a device's guard anew.

    Without --admin as many administrators of the folder sign as the network asks for.
    """
    output, layout, known = Output(as_json=as_json), Layout(network), read_network(network)
    in_force = registry.in_force(network)
    if in_force.device(device) is None:
        raise UsageError(f"the registry of network {known.network} has no device {device}")
    height, sequence = _chain(output, layout, known, device)
    height = max(height, seen)
    drafted = guard_order.draft(
        network=known.network,
        device=device,
        height=height,
        sequence=sequence,
        reason=reason,
        time=time.time_ns() // 1_000_000,
        nonce=secrets.token_hex(16),
        valid_from=valid_from,
    )
    unsigned = Envelope(canonical.encode(drafted), guard_order.PAYLOAD_TYPE, ())
    guard_order.decode(unsigned)  # a valid_from that is too early is refused here
    known_keys = role_holder.reachable(network, known.administrators)
    names = admin or list(known_keys[: in_force.channel.administrators_needed])
    path = out or layout.device(device) / "guard-order.json"
    if path.exists():
        raise UsageError(f"there is an order at {path} already", advice="move it away, or choose another --out")
    _sign_and_tell(output, layout, path, unsigned, names=names, needed=in_force.channel.administrators_needed)


@app.command()
def sign(
    file: OrderFile,
    network: NetworkFolder,
    admin: Annotated[list[str], typer.Option("--admin", help="An administrator who signs.")],
    as_json: JsonFlag = False,
) -> None:
    """Add signatures of further administrators to an order, after reading it."""
    in_force = registry.in_force(network)
    _sign_and_tell(
        Output(as_json=as_json),
        Layout(network),
        file,
        _read(file),
        names=admin,
        needed=in_force.channel.administrators_needed,
    )


@app.command()
def apply(
    file: OrderFile,
    config: Annotated[Path, typer.Option("--config", help="The device's TOML file.", exists=True, dir_okay=False)],
    as_json: JsonFlag = False,
) -> None:
    """Carry an order out on the device's machine: a new guard in the place of the old one, which is kept aside."""
    from hsm_endorser import guard_order as device_order  # noqa: PLC0415  the room of the device, where it is needed
    from hsm_endorser.config import load  # noqa: PLC0415
    from hsm_endorser.errors import ConfigError, GuardError, RefusedError  # noqa: PLC0415
    from hsm_endorser.service import open_replica  # noqa: PLC0415

    output, envelope = Output(as_json=as_json), _read(file)
    try:
        settings = load(config)
        replica = open_replica(settings)
        with contextlib.closing(replica.store):
            started = device_order.apply(settings.guard, envelope, replica, settings.name)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except RefusedError as error:
        raise _OrderRefusedError(str(error), code=error.reason) from None
    except GuardError as error:
        raise CommandError(str(error), code=error.code) from None
    output.plain(f"Device {settings.name} has a new guard, by order of {', '.join(started.signers)}.")
    output.plain(
        f"It votes on transactions that are valid from height {started.since} on, "
        f"and signs headers from height {started.headers_since} on."
    )
    if started.kept:
        output.plain(f"The old guard is kept at {started.kept}.")
    output.plain(f"Start the device, then: hsm-endorser guard anchor {file} --network DIR")
    output.result(
        {
            "device": settings.name,
            "digest": started.digest,
            "valid_from": started.since,
            "headers_from": started.headers_since,
            "kept": str(started.kept) if started.kept else None,
            "signers": list(started.signers),
        }
    )


@app.command()
def anchor(file: OrderFile, network: NetworkFolder, as_json: JsonFlag = False) -> None:
    """Write an order into the registry on the chain: it, and the guard before it, count no more then."""
    envelope = _read(file)
    wanted = guard_order.decode(envelope)
    entry = GuardOrder(wanted.device, guard_order.digest_of(envelope), wanted.valid_from)
    registry.change(Output(as_json=as_json), network, "put", {"entries": [registry.builtins(entry)]})


class _OrderRefusedError(CommandError):
    exit_code = REFUSED


def _chain(output: Output, layout: Layout, known: NetworkFile, device: str) -> tuple[int, int]:
    """The greatest height of the chain that can be seen from the folder, and the last tree of the device on it."""
    height, sequence = 0, 0
    for database in [*(layout.peer(peer) / "chain.db" for peer in known.peers), layout.device(device) / "chain.db"]:
        if database.exists():
            with contextlib.closing(ChainStore.open(url_of(database))) as store:
                height = max(height, store.height())
                sequence = max(sequence, store.device_sequences().get(device, 0))
    try:
        with Management(layout.socket("management"), timeout=MANAGEMENT_SECONDS) as management:
            height = max(height, management.network().height)
    except UnreachableError:
        output.warn(
            f"management does not answer, so the order goes by the copies in the folder: height {height}. "
            "Where the chain may be higher, give --height"
        )
    return height, sequence


def _read(file: Path) -> Envelope:
    return canonical.decode(file.read_bytes(), _envelope_decoder)


def _sign_and_tell(
    output: Output, layout: Layout, path: Path, envelope: Envelope, *, names: list[str], needed: int
) -> None:
    wanted = guard_order.decode(envelope)
    have = {signature.keyid for signature in envelope.signatures}
    signatures = role_holder.sign(layout.folder, names, envelope.payload, guard_order.PAYLOAD_TYPE)
    added = [signature for signature in signatures if signature.keyid not in have]
    envelope = msgspec.structs.replace(envelope, signatures=(*envelope.signatures, *added))
    path.write_bytes(canonical.encode(envelope))
    count = len({signature.keyid for signature in envelope.signatures})
    output.plain(
        f"Order for the guard of {wanted.device}: it votes on transactions that are valid from height "
        f"{wanted.valid_from} on, and signs headers above height {wanted.height}. Reason: {wanted.reason}"
    )
    output.plain(f"{path} carries {count} of {needed} signatures.")
    output.plain(_next_step(path, wanted, enough=count >= needed))
    output.result(_document(path, envelope, wanted, count, needed))


def _next_step(path: Path, wanted: Order, *, enough: bool) -> str:
    if enough:
        return f"Stop {wanted.device}, then on its machine: hsm-endorser guard apply {path} --config device.toml"
    return f"Another administrator signs it with: hsm-endorser guard sign {path} --network DIR --admin NAME"


def _document(path: Path, envelope: Envelope, wanted: Order, count: int, needed: int) -> dict[str, Any]:
    return {
        "file": str(path),
        "digest": guard_order.digest_of(envelope),
        "order": msgspec.to_builtins(wanted),
        "signatures": count,
        "needed": needed,
    }


_envelope_decoder = msgspec.json.Decoder(Envelope)
