"""`hsm-endorser ca`: certificates for nodes and services, what was issued, what is revoked (docs/key-life-cycle.md)."""

import datetime as dt
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli import client_request
from cli.api import Management
from cli.errors import UsageError
from cli.operators_door import open_door
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network

app = typer.Typer(
    help="The CA: certificates for nodes and services, and the list of revoked ones.", no_args_is_help=True
)
issue = typer.Typer(help="Certify a node's keys, or a service's TLS key.", no_args_is_help=True)
app.add_typer(issue, name="issue")

COLUMNS: Final = ["kind", "name", "state", "days left", "until", "serial", "key"]
SHOWN: Final = 12
"""So many digits of a serial number and of a key's id stand in the table; `--json` has all of them."""
WARNED: Final = ("renew-now", "expired")

NetworkFolder = Annotated[Path, typer.Option("--network", help="The network folder.")]


class Kind(StrEnum):
    """Whose certificates."""

    client = "client"
    node = "node"
    service = "service"


class Reason(StrEnum):
    """Why a service's certificates are revoked: the reasons of RFC 5280 that are final."""

    unspecified = "unspecified"
    key_compromise = "key-compromise"
    affiliation_changed = "affiliation-changed"
    superseded = "superseded"
    cessation_of_operation = "cessation-of-operation"


@issue.command("node")
def issue_node(
    name: Annotated[str, typer.Argument(help="The node's name in the registry.")],
    network: NetworkFolder,
    device: Annotated[str, typer.Option(help="The one key that lives on this device; all that count, if none.")] = "",
    output_folder: Annotated[
        Path | None, typer.Option("--output", help="The folder to write to; DIR/certificates, if none.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Certify the keys of a node that count now. They stay on their tokens; a key has one certificate."""
    output, layout = Output(as_json=as_json), Layout(network)
    with open_door(layout) as control:
        issued = control.certify_node(name, device)
    folder = output_folder or layout.folder / "certificates"
    written = []
    for each in issued:
        path = folder / f"node-{name}-{each['key'][:16]}.crt"
        _write(path, each["certificate"])
        output.plain(f"{name}: key {each['key'][:16]}… until {_day(each['not_after'])}: {path}")
        written.append({**_told(each), "file": str(path)})
    output.result({"certificates": written})


@issue.command("service")
def issue_service(
    *,
    csr: Annotated[Path, typer.Option("--csr", help="The service's certificate signing request (PEM or DER).")],
    network: NetworkFolder,
    name: Annotated[str, typer.Option(help="The service's name; that of the CSR's file, if none.")] = "",
    dns: Annotated[
        list[str] | None, typer.Option(help="A DNS name; again for each. Those in the CSR, if none.")
    ] = None,
    address: Annotated[list[str] | None, typer.Option(help="An IP address; again for each.")] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", help="Where to write the certificate; beside the CSR, if none.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Certify a service's TLS key for its DNS names and addresses. The key stays with the service."""
    output, request = Output(as_json=as_json), client_request.read(csr)
    with open_door(Layout(network)) as control:
        issued = control.certify_service(name or csr.stem, request.pem, dns or [], address or [])
    path = request.write_certificate(issued["certificate"], output_file)
    output.plain(f"{issued['name']} is certified until {_day(issued['not_after'])}: {path}")
    output.result({**_told(issued), "file": str(path)})


@app.command()
def revoke(
    service: Annotated[str, typer.Argument(help="The service's name.")],
    reason: Annotated[Reason, typer.Option(help="Why; it stands on the list.")],
    network: NetworkFolder,
    certificate: Annotated[
        Path | None,
        typer.Option(help="A certificate (PEM) that the list of issued ones has lost.", exists=True, dir_okay=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put the certificates of a service on the list of revoked ones.

    Clients' and nodes' keys are revoked on the chain (client revoke, key revoke): their certificates follow.
    """
    output = Output(as_json=as_json)
    with open_door(Layout(network)) as control:
        serials = control.revoke_service(service, reason.value, certificate.read_text() if certificate else None)
    output.plain(f"{service}: {len(serials)} revoked; they are on the list: hsm-endorser ca crl --network {network}")
    output.result({"service": service, "reason": reason.value, "serials": serials})


@app.command("list")
def list_certificates(
    network: NetworkFolder,
    kind: Annotated[Kind | None, typer.Option(help="Only these.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what the CA has issued: for whom, how long it lasts, and whether it counts."""
    output = Output(as_json=as_json)
    with open_door(Layout(network)) as control:
        found = control.certificates(kind.value if kind else "")
    rows: list[list[object]] = [
        [
            each["kind"],
            each["name"],
            each["state"],
            each["days_left"],
            _day(each["not_after"]),
            f"{each['serial'][:SHOWN]}…",
            f"{each['key'][:SHOWN]}…",
        ]
        for each in found
    ]
    output.table("Certificates", COLUMNS, rows)
    for each in found:
        if each["state"] in WARNED:
            output.warn(
                f"{each['kind']} {each['name']}: {each['state']}, {each['days_left']} days left: {_advice(each)}"
            )
    output.result({"certificates": found})


@app.command()
def crl(
    network: NetworkFolder,
    issuer: Annotated[str, typer.Option(help="The id of an earlier key of the CA; the key in force, if none.")] = "",
    file: Annotated[Path | None, typer.Option("--output", help="Where to write it (DER); ca.crl, if none.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch the list of revoked certificates as it is now, and show what is on it."""
    from cryptography import x509  # noqa: PLC0415  not needed by the other commands

    output, layout = Output(as_json=as_json), Layout(network)
    read_network(network)
    with Management(layout.socket("management")) as management:
        data = management.crl(issuer)
    path = file or Path("ca.crl")
    path.write_bytes(data)
    revoked = x509.load_der_x509_crl(data)
    listed = [
        {
            "serial": f"{each.serial_number:x}",
            "since": each.revocation_date_utc.isoformat(),
            "reason": _reason(each),
        }
        for each in revoked
    ]
    number = revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    until = revoked.next_update_utc
    output.table("Revoked", ["serial", "since", "reason"], [list(each.values()) for each in listed])
    output.plain(f"List {number}, the next one is due by {until:%Y-%m-%d}: {path}")
    output.result(
        {"number": number, "next_update": until.isoformat() if until else None, "revoked": listed, "file": str(path)}
    )


def _reason(revoked: Any) -> str:
    from cryptography import x509  # noqa: PLC0415  as above

    try:
        return str(revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except x509.ExtensionNotFound:
        return "unspecified"


def _advice(each: dict[str, Any]) -> str:
    if each["kind"] == "client":
        return f"hsm-endorser client renew {each['name']}"
    if each["kind"] == "node":
        return f"hsm-endorser key rotate {each['name']}, then ca issue node {each['name']}"
    return "make a new key, and ca issue service --csr FILE"


def _told(each: dict[str, Any]) -> dict[str, Any]:
    return {name: each[name] for name in ("name", "kind", "key", "serial", "not_before", "not_after")}


def _day(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).strftime("%Y-%m-%d")


def _write(path: Path, certificate: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != certificate:
        raise UsageError(f"there is another file at {path}", advice="move it away, or choose --output FOLDER")
    path.write_text(certificate)
