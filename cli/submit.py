"""`hsm-endorser submit`: sign and hand in one transaction, or a file of them."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from cli import exit_codes, keys, registry
from cli.api import Management
from cli.errors import UsageError
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network
from cli.submission import BATCH, Signed, Submission, is_valid
from protocol.errors import ProtocolError

SHOWN_REASONS: Final = 10


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a file: what a transaction asks for."""

    contract: str
    operation: str
    arguments: dict[str, Any]


class ClientSigner:
    """Signs wishes for one client of a network folder."""

    def __init__(self, layout: Layout, client: str) -> None:
        view = registry.in_force(layout.folder)
        self._network = view.channel.network
        self._valid_until = registry.valid_until(view)
        self._client = client
        self._key = keys.SoftwareKey.load(layout.client_key(client))

    def sign(self, wish: Wish) -> Signed:
        """The signed transaction."""
        kind = f"{wish.contract}.{wish.operation}"
        payload = keys.payload(self._network, self._client, kind, wish.arguments, valid_until=self._valid_until)
        return keys.sign(payload, [self._key])


def submit(
    *,
    network: Annotated[Path, typer.Option(help="The network folder.")],
    client: Annotated[str, typer.Option(help="The client that signs (its key is DIR/clients/NAME.key).")],
    contract: Annotated[str, typer.Option(help="The contract: assets or evidence.")] = "",
    operation: Annotated[str, typer.Option(help="Its operation: issue, transfer, record.")] = "",
    argument: Annotated[
        list[str] | None, typer.Option(help="name=value, again for each argument; the value is JSON, or else text.")
    ] = None,
    arguments_file: Annotated[Path | None, typer.Option(help="A JSON file with all arguments.")] = None,
    file: Annotated[
        Path | None, typer.Option(help='NDJSON: one {"contract":…,"operation":…,"arguments":{…}} a line.')
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the commit of a single transaction.")] = 20.0,
    as_json: JsonFlag = False,
) -> None:
    """Sign and hand in one transaction, or all of a file in batches, and tell what became of them.

    Example: hsm-endorser submit --network net --client alice --contract evidence --operation record
    --argument subject=pump-7 --argument digest=<64 hex digits> --argument 'attributes={"site":"north"}'
    """
    output = Output(as_json=as_json)
    layout = Layout(network)
    read_network(network)
    signer = ClientSigner(layout, client)
    if file is not None:
        if contract or operation or argument or arguments_file:
            raise UsageError("--file brings contract, operation and arguments of its own; leave the others out")
        _submit_file(output, layout, signer, file)
        return
    if not contract or not operation:
        raise UsageError(
            "name what to do: --contract and --operation, or --file", advice="see hsm-endorser submit --help"
        )
    wish = Wish(contract, operation, _arguments(argument or [], arguments_file))
    _submit_one(output, layout, signer.sign(wish), wait)


def _submit_one(output: Output, layout: Layout, signed: Signed, wait: float) -> None:
    identity, raw = signed
    with Management(layout.socket("management")) as management:
        status = management.submit(raw, wait=wait)
    registry.require_committed(status)
    output.say(f"Committed in block {status.height}: transaction {identity}")
    output.result({"transaction": identity, "status": status.status, "height": status.height, "code": status.code})


def _submit_file(output: Output, layout: Layout, signer: ClientSigner, file: Path) -> None:
    wishes = _wishes(file)
    with Management(layout.socket("management")) as management:
        start = management.network().height + 1
    submission = Submission(layout.socket("management"), start=start)
    batches = ([signer.sign(wish) for wish in wishes[at : at + BATCH]] for at in range(0, len(wishes), BATCH))
    interrupted = False
    with output.progress("transactions", len(wishes)) as progress:
        try:
            submission.run(batches, progress)
        except KeyboardInterrupt:
            interrupted = True
    refused = _tell(output, submission, len(wishes))
    if interrupted:
        raise KeyboardInterrupt
    if refused:
        raise typer.Exit(exit_codes.REFUSED)


def _tell(output: Output, submission: Submission, total: int) -> int:
    """Say what became of all of them; returns how many were refused."""
    ends = submission.ends
    committed = sum(map(is_valid, ends.values()))
    reasons: Counter[str] = Counter()
    detail: dict[str, str] = {}
    for identity, end in ends.items():
        if not is_valid(end):
            reasons[end.code] += 1
            detail.setdefault(end.code, end.problem.detail if end.problem else f"transaction {identity}")
    output.say(f"Committed: {committed} of {total}; refused: {sum(reasons.values())}; pending: {submission.pending}")
    for code, count in reasons.most_common(SHOWN_REASONS):
        output.say(f"  {count} with {code}: {detail[code]}")
    output.result(
        {
            "total": total,
            "committed": committed,
            "refused": dict(reasons),
            "reasons": detail,
            "pending": submission.pending,
        }
    )
    return sum(reasons.values())


def _arguments(given: list[str], file: Path | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if file is not None:
        arguments = _decode(_read(file), dict[str, Any], str(file))
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise UsageError(f"--argument {each!r} is not of the form name=value")
        try:
            arguments[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            arguments[name] = value
    return arguments


def _wishes(file: Path) -> list[Wish]:
    lines = _read(file).splitlines()
    return [_decode(line, Wish, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def _decode(data: bytes, kind: Any, where: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ProtocolError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: {error}") from None
