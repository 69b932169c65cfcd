"""`hsm-endorser receipt`: one file that proves a transaction, fetched from a peer and verified by anyone, offline."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from cli.errors import VerificationFailedError
from cli.output import JsonFlag, Output
from ledger.exhibit import ExhibitError
from ledger.receipt import ReceiptReport, verify_receipt

app = typer.Typer(
    help="Receipts: a file that proves a transaction to anybody who has genesis.json.", no_args_is_help=True
)


@app.command()
def export(
    transaction: Annotated[str, typer.Argument(help="The id of a committed transaction.")],
    network: Annotated[Path, typer.Option(help="The network folder.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    as_json: JsonFlag = False,
) -> None:
    """Fetch the receipt of a committed transaction from a peer."""
    output = Output(as_json=as_json)
    data = fetch(network, transaction)
    out.write_bytes(data)
    output.say(f"Wrote {out} ({len(data)} bytes).")
    output.say(f"Verify it with: hsm-endorser receipt verify {out} --genesis {network / 'genesis.json'}")
    output.result({"transaction": transaction, "file": str(out), "bytes": len(data)})


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The receipt.", exists=True, dir_okay=False)],
    genesis: Annotated[Path, typer.Option(help="The network's genesis.json.", exists=True, dir_okay=False)],
    as_json: JsonFlag = False,
) -> None:
    """Verify a receipt step by step. Needs no network, no token and no PKCS#11 library."""
    output = Output(as_json=as_json)
    report = check(file.read_bytes(), genesis.read_bytes())
    for step in report.steps:
        output.say(f"[green]✓[/] {escape(step)}")
    when = dt.datetime.fromtimestamp(report.time / 1000, dt.UTC).isoformat(timespec="milliseconds")
    output.say(f"{report.kind} by {report.client}, block {report.height}, {when}: {report.code}")
    output.result({"verified": True, **msgspec.to_builtins(report)})


def fetch(network: Path, transaction: str) -> bytes:
    """The receipt of a transaction, from the first peer of the folder that answers."""
    from cli.asking import ask_peers  # noqa: PLC0415  who verifies needs no connections

    return ask_peers(network, lambda peer: peer.receipt(transaction))[1]


def check(receipt: bytes, genesis: bytes) -> ReceiptReport:
    """What a receipt proves; raises `VerificationFailedError` that names the step."""
    try:
        return verify_receipt(receipt, genesis)
    except ExhibitError as error:
        raise VerificationFailedError(str(error), code=error.code, advice="do not rely on this receipt") from None
