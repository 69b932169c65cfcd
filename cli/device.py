"""`hsm-endorser device`: run one endorsement device, and operate one that runs, over its control socket.

PINs are asked for at a prompt, or read from standard input; they are never arguments.
"""

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cli import services
from cli.device_control import DRAIN_SECONDS, DeviceControl
from cli.errors import UsageError
from cli.output import JsonFlag, Output
from cli.plan import checked_name
from protocol.keys import Scheme

if TYPE_CHECKING:
    from cli import device_replacement as replacement

app = typer.Typer(
    help="Endorsement devices: run one, drain, resume, unlock, release, change its PIN, revoke, replace.",
    invoke_without_command=True,
)

ConfigFile = Annotated[
    Path, typer.Option("--config", help="The device's TOML file.", exists=True, dir_okay=False, readable=True)
]

NetworkFolder = Annotated[Path, typer.Option("--network", help="The network folder.")]
Administrators = Annotated[
    list[str] | None,
    typer.Option("--administrator", help="An administrator who signs; again for each. As many as needed, if none."),
]


@app.callback()
def run(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The device's TOML file.", exists=True, dir_okay=False, readable=True),
    ] = None,
) -> None:
    """Run one endorsement device (--config FILE), or operate one that runs (see the commands)."""
    if context.invoked_subcommand is not None:
        if config is not None:
            raise UsageError("--config stands after the command", advice="hsm-endorser device COMMAND --config FILE")
        return
    if config is None:
        raise UsageError("Missing option '--config'.", advice="see hsm-endorser device --help")
    services.device(config)


@app.command()
def status(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Show whether the device is ready, and if not, why."""
    with DeviceControl(config) as control:
        _tell(Output(as_json=as_json), control.status(), "")


@app.command()
def drain(
    config: ConfigFile,
    wait: Annotated[int, typer.Option(min=0, max=600, help="Seconds to wait for what is under way.")] = DRAIN_SECONDS,
    as_json: JsonFlag = False,
) -> None:
    """Let the device finish what it has and take nothing new. It stays so until `resume` or a restart."""
    with DeviceControl(config) as control:
        _tell(Output(as_json=as_json), control.order(f"/v1/drain?wait={wait}"), "is drained: it can be stopped now")


@app.command()
def resume(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Let a drained device take requests again."""
    with DeviceControl(config) as control:
        _tell(Output(as_json=as_json), control.order("/v1/resume"), "takes requests again")


@app.command()
def unlock(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Enter the PIN of a device that has no PIN file. It is tried once, and forgotten when the device stops."""
    with DeviceControl(config) as control:
        _tell(Output(as_json=as_json), control.order("/v1/unlock", _ask("PIN").encode()), "is unlocked")


@app.command()
def release(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Put a token back into service after you have looked: it must prove itself as at any start."""
    with DeviceControl(config) as control:
        _tell(Output(as_json=as_json), control.order("/v1/release"), "is back in service")


@app.command("change-pin")
def change_pin(
    config: ConfigFile,
    ask_old: Annotated[
        bool, typer.Option("--ask-old", help="Ask for the present PIN, instead of taking the one that the device has.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Change the token's PIN, on the token and in the PIN file; what is under way is finished before."""
    output = Output(as_json=as_json)
    old = _ask("Present PIN") if ask_old else None
    new = _ask("New PIN")
    if sys.stdin.isatty() and new != _ask("New PIN again"):
        raise UsageError("the two new PINs differ", advice="nothing was changed; try again")
    body = {"new": new} if old is None else {"new": new, "old": old}
    with DeviceControl(config) as control:
        _tell(output, control.order("/v1/change-pin", msgspec.json.encode(body)), "has a new PIN")


@app.command()
def revoke(
    *,
    name: Annotated[str, typer.Argument(help="The device's name in the registry.")],
    reason: Annotated[str, typer.Option(help="Such as key-compromise or cessation-of-operation.")],
    network: NetworkFolder,
    suspected: Annotated[
        str, typer.Option(help="From when on others may have had the token: 2026-11-21T10:00:00Z, or milliseconds.")
    ] = "",
    administrator: Administrators = None,
    as_json: JsonFlag = False,
) -> None:
    """Refuse every key on a device from the next block on, for ever (requirement K-14)."""
    from cli import revoking  # noqa: PLC0415

    row = revoking.find(network, f"device/{name}")
    wish = revoking.Wish(network, row, reason, suspected, tuple(administrator or ()))
    revoking.revoke(Output(as_json=as_json), wish)


@app.command()
def replace(
    *,
    old: Annotated[str, typer.Argument(help="The device whose token is lost or is to be retired.")],
    new: Annotated[str, typer.Option("--new", help="The name of the device that takes its place.")],
    network: NetworkFolder,
    uri: Annotated[
        str, typer.Option(help="The new token (RFC 7512, with module-path and pin-source); a SoftHSM token, if none.")
    ] = "",
    environment: Annotated[
        list[str] | None, typer.Option("--environment", help="NAME=VALUE for the token's module; again for each.")
    ] = None,
    scheme: Annotated[
        Scheme, typer.Option(help="Of all new keys, where the token makes none of the usual ones.")
    ] = "ecdsa-p256-sha256",
    rsa_bits: Annotated[int, typer.Option(min=2048, max=4096, help="The size of new RSA keys.")] = 3072,
    deadline_ms: Annotated[
        int, typer.Option(min=50, max=60_000, help="How long one call to the new token may take.")
    ] = 1000,
    reason: Annotated[str, typer.Option(help="Why the old one is revoked.")] = "cessation-of-operation",
    suspected: Annotated[
        str, typer.Option(help="From when on others may have had the old token; now, if nothing is said.")
    ] = "",
    lifetime: Annotated[int, typer.Option(min=1, max=36_500, help="Days until the new keys expire.")] = 730,
    administrator: Administrators = None,
    as_json: JsonFlag = False,
) -> None:
    """Give everything that a device served to a new device with new keys, and revoke the old one (requirement K-14).

    Say what the old keys had signed last. Interrupted, the same command goes on.
    """
    from cli import device_replacement as replacement  # noqa: PLC0415  PKCS#11 is needed from here on
    from cli import revoking  # noqa: PLC0415

    output = Output(as_json=as_json)
    wish = replacement.Wish(
        network=network,
        old=old,
        new=checked_name("a device", new, "choose another --new name"),
        days=lifetime,
        reason=revoking.reason_of(reason),
        suspected=revoking.moment(suspected),
        uri=uri,
        environment=dict(_pair(each) for each in environment or ()),
        scheme=scheme,
        rsa_bits=rsa_bits,
        deadline_ms=deadline_ms,
        administrators=revoking.known(network, tuple(administrator or ())),
    )
    done = replacement.replace(wish, output.say)
    _tell_replaced(output, wish, done)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--environment {text!r} is not of the form NAME=VALUE")
    return name, value


def _tell_replaced(output: Output, wish: "replacement.Wish", done: "replacement.Replaced") -> None:
    if done.committed:
        output.plain(
            f"{wish.new} is in {wish.old}'s place from height {done.committed.height + 1} on: block "
            f"{done.committed.height}, signed by {', '.join(done.committed.signers)}."
        )
    else:
        output.plain(f"{wish.new} is in {wish.old}'s place already; the folder's files name it now.")
    rows: list[list[object]] = [
        [each.holder, f"{each.key[:16]}…", "nothing" if each.height is None else f"height {each.height}"]
        for each in done.last
    ]
    output.table(f"What the keys on {wish.old} had signed last", ["holder", "key", "last in"], rows)
    output.plain(f"The last tree of votes of {wish.old} that the chain shows has number {done.sequence}.")
    output.plain("All of it: hsm-endorser key trace KEY. The keys stay on the old token until it is re-initialised.")
    output.plain(f"Start again what runs, so that it knows {wish.new}: hsm-endorser network up {wish.network}")
    output.result(
        {
            "old": wish.old,
            "new": wish.new,
            "nodes": list(done.had.nodes),
            "centers": list(done.had.centers),
            "registrars": list(done.had.registrars),
            "keys": done.keys,
            "height": done.committed.height if done.committed else None,
            "transaction": done.committed.transaction if done.committed else None,
            "signed_last": [msgspec.to_builtins(each) for each in done.last],
            "sequence": done.sequence,
        }
    )


def _ask(what: str) -> str:
    """A secret from the terminal, unseen, or the next line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    line = sys.stdin.readline().removesuffix("\n")
    if not line:
        raise UsageError(f"standard input holds no line for the {what}", advice="run it on a terminal, or give a line")
    return line


def _tell(output: Output, status: dict[str, Any], done: str) -> None:
    name = status["device"]
    if done:
        output.plain(f"{name} {done}.")
    output.plain(f"{name} is ready." if status["ready"] else f"{name} is not ready: {status['reason']}")
    output.result(status)
