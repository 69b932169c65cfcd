"""`hsm-endorser device`: run one endorsement device, and operate one that runs, over its control socket.

PINs are asked for at a prompt, or read from standard input; they are never arguments.
"""

import getpass
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Self

import msgspec
import typer

from cli import services
from cli.api import Service
from cli.errors import UnreachableError, UsageError
from cli.output import JsonFlag, Output

app = typer.Typer(
    help="Endorsement devices: run one, drain, resume, unlock, release, change its PIN.", invoke_without_command=True
)

DRAIN_SECONDS: Final = 30
TIMEOUT_SECONDS: Final = 60.0

ConfigFile = Annotated[
    Path, typer.Option("--config", help="The device's TOML file.", exists=True, dir_okay=False, readable=True)
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
    with _Control(config) as control:
        _tell(Output(as_json=as_json), control.status(), "")


@app.command()
def drain(
    config: ConfigFile,
    wait: Annotated[int, typer.Option(min=0, max=600, help="Seconds to wait for what is under way.")] = DRAIN_SECONDS,
    as_json: JsonFlag = False,
) -> None:
    """Let the device finish what it has and take nothing new. It stays so until `resume` or a restart."""
    with _Control(config) as control:
        _tell(Output(as_json=as_json), control.order(f"/v1/drain?wait={wait}"), "is drained: it can be stopped now")


@app.command()
def resume(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Let a drained device take requests again."""
    with _Control(config) as control:
        _tell(Output(as_json=as_json), control.order("/v1/resume"), "takes requests again")


@app.command()
def unlock(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Enter the PIN of a device that has no PIN file. It is tried once, and forgotten when the device stops."""
    with _Control(config) as control:
        _tell(Output(as_json=as_json), control.order("/v1/unlock", _ask("PIN").encode()), "is unlocked")


@app.command()
def release(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Put a token back into service after you have looked: it must prove itself as at any start."""
    with _Control(config) as control:
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
    with _Control(config) as control:
        _tell(output, control.order("/v1/change-pin", msgspec.json.encode(body)), "has a new PIN")


class _Control(Service):
    """The operator's listener of the device that a configuration describes."""

    def __init__(self, config: Path) -> None:
        from hsm_endorser.config import load  # noqa: PLC0415  this room is loaded by device commands alone
        from hsm_endorser.errors import ConfigError  # noqa: PLC0415

        try:
            settings = load(config)
        except ConfigError as error:
            raise UsageError(str(error)) from None
        if settings.control is None:
            raise UsageError(
                f"{config} has no control listener",
                advice='write control = "unix:control.sock" into it, and restart the device',
            )
        try:
            super().__init__(settings.control, timeout=TIMEOUT_SECONDS + DRAIN_SECONDS)
        except UnreachableError as error:
            raise UnreachableError(
                error.reason, advice=f"start the device first: hsm-endorser device --config {config}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self) -> dict[str, Any]:
        """What the device says of itself."""
        found: dict[str, Any] = msgspec.json.decode(self._get("/v1/status"))
        return found

    def order(self, path: str, body: bytes = b"") -> dict[str, Any]:
        """Give an order; what the device says of itself afterwards."""
        answer: dict[str, Any] = msgspec.json.decode(self._post(path, body, timeout=TIMEOUT_SECONDS + 600))
        return answer


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
