"""`hsm-endorser evidence`: one file for an auditor, fetched from a peer and verified anywhere, offline (K-15).

Verifying imports nothing that knows of connections, tokens or databases: what only `export` needs is imported there.
"""

import datetime as dt
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.markup import escape

from cli import writable
from cli.errors import UsageError, VerificationFailedError
from cli.output import JsonFlag, Output
from ledger.errors import LedgerError
from ledger.evidence import EvidenceReport, trusted_head, verify_evidence
from ledger.exhibit import ExhibitError, read_head
from ledger.handover import Start, UsedKey
from protocol.errors import ProtocolError

app = typer.Typer(
    help="Evidence: all that proves a transaction and the custody of its keys, in one file.", no_args_is_help=True
)

ID_DIGITS: Final = 64


@app.command()
def export(
    *,
    transaction: Annotated[str, typer.Argument(help="The id of a committed transaction.")],
    network: Annotated[Path, typer.Option(help="The network folder.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    peer: Annotated[str, typer.Option(help="The peer to ask; the first one that answers if none is named.")] = "",
    head: Annotated[
        Path | None,
        typer.Option("--from", help="A head that the reader trusts: begin there.", exists=True, dir_okay=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch the evidence of a committed transaction from a peer."""
    output = Output(as_json=as_json)
    if len(transaction) != ID_DIGITS or transaction.strip("0123456789abcdef"):
        raise UsageError(
            f"{transaction!r} is no transaction's id: it has {ID_DIGITS} hexadecimal digits, in lower case",
            advice="give the whole id, as hsm-endorser submit told it",
        )
    writable.require(out)
    start = None if head is None else _start(head)
    data = fetch(network, transaction, peer=peer, start=start)
    out.write_bytes(data)
    given = "" if head is None else f" --head {head}"
    output.say(f"Wrote {escape(str(out))} ({len(data)} bytes).")
    output.plain(f"Verify it with: hsm-endorser evidence verify {out} --genesis {network / 'genesis.json'}{given}")
    output.result({"transaction": transaction, "file": str(out), "bytes": len(data)})


@app.command()
def verify(
    *,
    file: Annotated[Path, typer.Argument(help="The evidence.", exists=True, dir_okay=False)],
    genesis: Annotated[Path, typer.Option(help="The network's genesis.json.", exists=True, dir_okay=False)],
    head: Annotated[
        Path | None, typer.Option(help="A later head that you trust, to hold the file to.", exists=True, dir_okay=False)
    ] = None,
    write_head: Annotated[
        Path | None, typer.Option(help="Write the head that was verified here: later files can begin with it.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for people to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify evidence step by step. Needs no network, no token and no PKCS#11 library."""
    output = Output(as_json=as_json)
    writable.require(html, write_head)
    data = file.read_bytes()
    report = check(data, genesis.read_bytes(), None if head is None else head.read_bytes())
    for step in report.steps:
        output.say(f"[green]✓[/] [bold]{step.name}[/]: {escape(step.found)}")
        output.say(f"    [dim]{escape(step.meaning)}[/]")
    output.plain(f"{report.kind} by {report.client}, block {report.height}, {moment(report.time)}: {report.code}")
    if html:
        html.write_text(page_of(report, file.name), encoding="utf-8")
        output.plain(f"Wrote the page {html}.")
    if write_head:
        write_head.write_bytes(trusted_head(data))
        output.plain(f"Wrote the head of block {report.height - 1}: {write_head}")
    output.result({"verified": True, **msgspec.to_builtins(report)})


def fetch(network: Path, transaction: str, *, peer: str = "", start: Start | None = None) -> bytes:
    """The evidence of a transaction, from a peer of the folder: the one named, or the first that answers.

    With `start`, it begins with that head. Raises `VerificationFailedError` when the peer has another block there.
    """
    from cli.asking import ask_peers  # noqa: PLC0415  who verifies needs no connections

    name, data = ask_peers(network, lambda asked: asked.evidence(transaction, start.height if start else 0), only=peer)
    if start is not None and _begins(data) != start:
        raise VerificationFailedError(
            f"block {start.height} of {name} is not the one of the head",
            code="fork",
            advice="find out on which of the two the network stands: one of them was forged",
        )
    return data


def check(evidence: bytes, genesis: bytes, head: bytes | None = None) -> EvidenceReport:
    """What evidence proves; raises `VerificationFailedError` that names the step."""
    try:
        return verify_evidence(evidence, genesis, head)
    except ExhibitError as error:
        raise VerificationFailedError(str(error), code=error.code, advice=_ADVICE.get(error.step, _DO_NOT)) from None


def page_of(report: EvidenceReport, name: str) -> str:
    """The page for people; `name` is the file's."""
    from cli import page  # noqa: PLC0415  needed for pages alone

    return page.render(
        "evidence",
        report=report,
        file=name,
        moment=moment,
        holder=_holder,
        arguments=msgspec.json.format(msgspec.json.encode(report.arguments, order="sorted"), indent=2).decode(),
    )


def moment(time: int) -> str:
    """A block's time (milliseconds since the epoch), for people."""
    try:
        return dt.datetime.fromtimestamp(time / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError):  # a center may have signed any time
        return f"{time} ms"


def _holder(used: UsedKey) -> str:
    kind, _, name = used.holder.partition("/")
    return f"{kind} {name}"


def _start(head: Path) -> Start:
    try:
        trust = read_head(head.read_bytes())
    except (ProtocolError, LedgerError) as error:
        raise UsageError(
            f"{head} is no head: {error}", advice="verify evidence with --write-head FILE to make one"
        ) from None
    return Start(trust.height, trust.authentication)


def _begins(evidence: bytes) -> Start:
    class Begin(msgspec.Struct):
        start: Start

    return msgspec.json.decode(evidence, type=Begin).start


_DO_NOT = "do not rely on this evidence"
_ADVICE = {
    "genesis": "name the genesis.json that you trust: the network's administrators signed it",
    "head": "the head that you gave and this file do not go together; do not rely on one of them",
}
