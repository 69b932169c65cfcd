"""`hsm-endorser key trace`: everything that a key ever signed, split where it may have been lost (requirement K-14).

What the chain proves comes from a peer's index. What the archived journals of devices claim besides is laid beside it:
signatures of which no block tells, and signatures in blocks that no journal knows.
"""

import datetime as dt
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from cli import page, writable
from cli.api import Peer
from cli.errors import UsageError
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network
from protocol.keys import PublicKey
from protocol.registry import decode_entry, spkis_of
from protocol.trace import Signing
from transport.problem import ProblemError

if TYPE_CHECKING:
    from hsm_endorser.journal_archive import Archive

KEY_ID_DIGITS: Final = 64
REPLACED: Final = ("center", "registrar", "administrator", "client")
"""Kinds of holders whose entry holds the latest key alone."""
SHOWN: Final = 40
"""Rows in the table on the terminal; the JSON document and the page have all of them."""


class Claimed(msgspec.Struct, frozen=True):
    """A signature that only a journal knows: by which device's, when (ms), what for, over which digest."""

    device: str
    number: int
    time: int
    purpose: str
    digest: str


class Trace(msgspec.Struct, frozen=True):
    """The signatures of one key. `height` is how far the chain was looked at; `suspected` is in milliseconds."""

    key: str
    holder: str
    height: int
    suspected: int | None
    proven: tuple[Signing, ...]
    claimed: tuple[Claimed, ...]
    gaps: tuple[str, ...]

    def split(self) -> tuple[list[Signing], list[Signing]]:
        """What the chain proves from before the suspected time, and from then on; all of it is before without one."""
        if self.suspected is None:
            return list(self.proven), []
        edge = self.suspected
        return [each for each in self.proven if each.time < edge], [each for each in self.proven if each.time >= edge]

    @property
    def touched(self) -> list[str]:
        """The transactions that signatures from the suspected time on touch: the loss to look at."""
        return list(dict.fromkeys(each for signing in self.split()[1] for each in signing.transactions))


def trace(
    *,
    key: Annotated[str, typer.Argument(help="A key id (64 hexadecimal digits), or a holder such as node/A.")],
    network: Annotated[Path, typer.Option("--network", help="The network's folder.")],
    peer: Annotated[str, typer.Option(help="The peer to ask; the first one if none is named.")] = "",
    journal: Annotated[
        list[Path] | None,
        typer.Option(
            help="An archived journal (hsm-endorser device journal); may be repeated.", exists=True, dir_okay=False
        ),
    ] = None,
    suspected: Annotated[
        str | None,
        typer.Option(help="From when on others may have had the key: 2026-11-21T10:00:00Z, or milliseconds."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for people to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List everything that a key ever signed, and what of it is in doubt."""
    output = Output(as_json=as_json)
    layout = Layout(network)
    names = read_network(network).peers
    edge = None if suspected is None else point_in_time(suspected)
    writable.require(html)
    archives = [_read(path) for path in journal or ()]
    with Peer(layout.socket(peer or names[0])) as asked:
        found = [_trace(asked, key_id, holder, archives, edge) for key_id, holder in _keys(asked, key)]
    for each in found:
        _tell(output, each)
    if html:
        html.write_text(page.render("trace", traces=found, moment=_words))
        output.plain(f"written: {html}")
    output.result({"traces": [_document(each) for each in found]})


def _keys(peer: Peer, asked: str) -> list[tuple[str, str]]:
    """The keys that are meant, each with its holder where that is known."""
    if len(asked) == KEY_ID_DIGITS and not asked.strip("0123456789abcdef"):
        return [(asked, "")]
    try:
        entry = decode_entry(asked, peer.state(f"registry/{asked}"))
    except ProblemError as error:
        if error.problem.status != HTTPStatus.NOT_FOUND:
            raise
        raise UsageError(
            f"the registry has no {asked}",
            advice="name a key id, or a holder such as node/A, center/center-1, client/alice",
        ) from None
    keys = [PublicKey.load(spki) for spki in spkis_of(entry)]
    if not keys:
        raise UsageError(f"{asked} holds no key")
    return [(key.id, asked) for key in keys]


def _trace(peer: Peer, key: str, holder: str, archives: Sequence["Archive"], suspected: int | None) -> Trace:
    proven: list[Signing] = []
    start: int | None = 0
    height = 0
    while start is not None:
        part = peer.trace(key, start)
        proven += part.signings
        start, height = part.next, part.height
    claimed, gaps = _compare(key, proven, archives)
    return Trace(key, holder, height, suspected, tuple(proven), tuple(claimed), (*_earlier(holder, proven), *gaps))


def _earlier(holder: str, proven: Sequence[Signing]) -> list[str]:
    """That the holder had keys before this one: only the entries of nodes and devices name all that count."""
    if holder.partition("/")[0] not in REPLACED or all(each.kind != "announcement" for each in proven):
        return []
    return [f"{holder} had another key before this one: what that signed is listed when you name its id"]


def _compare(key: str, proven: Sequence[Signing], archives: Sequence["Archive"]) -> tuple[list[Claimed], list[str]]:
    """What journals alone claim, and where chain and journals do not cover each other."""
    if not archives:
        return [], ["no archived journal was given: signatures that are in no block are not in this list"]
    rows = [(each.heading.device, row) for each in archives for row in each.rows if row.entry.key == key]
    if not rows:
        return [], ["none of the journals has an entry of this key: give the archive of the device that held it"]
    known, recorded = {each.digest for each in proven}, {row.entry.digest for _, row in rows}
    claimed = [
        Claimed(device, row.number, row.time, row.entry.purpose, row.entry.digest)
        for device, row in rows
        if row.entry.digest not in known
    ]
    places = ", ".join(sorted({device for device, _ in rows}))
    gaps = [
        f"block {each.height} holds a signature that the journal of {places} does not know: {each.subject}"
        for each in proven
        if each.digest not in recorded
    ]
    return claimed, gaps


def _read(path: Path) -> "Archive":
    from hsm_endorser import journal_archive  # noqa: PLC0415  this room is loaded by commands that need it alone
    from hsm_endorser.errors import GuardError  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            return journal_archive.read(iter(file))
    except GuardError as error:
        raise UsageError(f"{path}: {error}", code="bad-journal", advice="archive it again from the device") from None


def point_in_time(text: str) -> int:
    """A time in milliseconds since the epoch, within the calendar; raises `UsageError`."""
    try:
        moment = (
            dt.datetime.fromtimestamp(int(text) / 1000, dt.UTC) if text.isdecimal() else dt.datetime.fromisoformat(text)
        )
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{text!r} is no time", advice="write 2026-11-21T10:00:00Z, or milliseconds") from None
    if moment.tzinfo is None:
        raise UsageError(f"{text!r} has no time zone", advice="end it with Z for UTC, or with an offset such as +01:00")
    return int(text) if text.isdecimal() else int(moment.timestamp() * 1000)


def _words(time: int) -> str:
    return dt.datetime.fromtimestamp(time / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _tell(output: Output, found: Trace) -> None:
    name = f"{found.holder} " if found.holder else ""
    before, late = found.split()
    output.plain(f"{name}key {found.key}")
    output.plain(
        f"{_number(len(found.proven), 'signature')} in blocks 0 to {found.height}, "
        f"{len(found.claimed)} in journals alone."
    )
    _table(output, "what the chain proves" if found.suspected is None else "before the suspected time", before)
    if found.suspected is not None:
        _table(output, f"in doubt: from {_words(found.suspected)} on", late)
        output.plain(f"Touched by signatures in doubt: {_number(len(found.touched), 'transaction')}.")
    if found.claimed:
        rows: list[list[object]] = [
            [each.device, each.number, _words(each.time), each.purpose] for each in found.claimed
        ]
        output.table("what journals alone claim", ["device", "entry", "time", "purpose"], rows[-SHOWN:])
    for gap in found.gaps:
        output.warn(gap)


def _table(output: Output, title: str, signings: Sequence[Signing]) -> None:
    rows: list[list[object]] = [[each.height, _words(each.time), each.kind, each.subject] for each in signings]
    if len(rows) > SHOWN:
        title += f" (the last {SHOWN} of {len(rows)}; --json has all)"
    output.table(title, ["height", "time", "kind", "what"], rows[-SHOWN:])


def _document(found: Trace) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(found)
    before, late = found.split()
    return document | {"before": len(before), "in_doubt": len(late), "touched": found.touched}


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
