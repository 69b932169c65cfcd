"""`hsm-endorser compliance run`: what a PKCS#11 module can do of what a device needs (K-7).

Exit codes: 0 no findings, 1 findings, 2 the run could not be made.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import exit_codes, junit, page
from cli.errors import CommandError, UsageError
from cli.output import Output
from cli.secret import ask

if TYPE_CHECKING:  # the device's room is loaded where it is needed
    from hsm_endorser.compliance.result import Report

app = typer.Typer(help="Run the conformance suite against a PKCS#11 module of yours.", no_args_is_help=True)

START_SECONDS: Final = 30.0
"""How long an unknown module may take to load and to log in."""
_ADVICE: Final = {
    "NoModule": "give the module's own file: --module /usr/lib/…/module.so",
    "AmbiguousToken": "the module shows several tokens: name one by its label with --token",
    "NoSuchToken": (
        "give the label of an initialised token with --token; what the module needs to find it (a store, a server) "
        "is named in its own environment variables, which are handed on"
    ),
    "PinIncorrect": "correct the PIN; it was given once and is not given again, since tokens lock themselves",
    "PinLocked": "the token is locked: its security officer must unlock it",
    "PinFile": "write the PIN into a file of mode 0600, and name it with --pin-file",
    "ArgumentsBad": "NSS and its like need parameters when they start: load them through p11-kit-proxy.so",
}
_OTHERWISE: Final = "see whether --module is a PKCS#11 module for this machine, and what its own log says"


class NotRunError(CommandError):
    """The compliance run could not be made: nothing was found, and nothing was shown to be right."""

    exit_code = exit_codes.USAGE
    code = "compliance-not-run"


@app.callback()
def _group() -> None:
    """Run the conformance suite against a PKCS#11 module of yours."""


@app.command()
def run(
    *,
    module: Annotated[Path, typer.Option("--module", help="The PKCS#11 module: a shared library.")],
    token: Annotated[str, typer.Option("--token", help="The token's label; not needed when there is one.")] = "",
    pin_file: Annotated[
        Path | None, typer.Option("--pin-file", help="Where the PIN stands (mode 0600); otherwise it is asked for.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page that can be printed.")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write the report as JUnit XML.")] = None,
    sacrificial: Annotated[
        bool, typer.Option("--sacrificial", help="The token named by --token may lock itself: count its wrong PINs.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Measure shorter, and among fewer keys.")] = False,
    lose: Annotated[str, typer.Option("--lose-command", help="A command that takes the token away.")] = "",
    back: Annotated[str, typer.Option("--return-command", help="The command that brings it back.")] = "",
) -> None:
    """Measure what a device needs of a module, and say what it means: algorithms, rates, sessions, processes, labels,
    many keys, loss and return, PIN lockout. Keys are made on the token and removed again.

    Exit code 0: no findings, 1: findings, 2: the run could not be made.
    """
    from cli import compliance_report as report  # noqa: PLC0415  the device's room is loaded where it is needed

    if sacrificial and not token:
        raise UsageError("which token may be locked?", advice="name it: --sacrificial --token LABEL")
    if bool(lose) != bool(back):
        raise UsageError(
            "loss and return need both commands", advice="give --lose-command and --return-command, or neither"
        )
    _check_writable(json, html, junit_file)
    output = Output(as_json=False)
    asked = _Asked(module, token, pin_file, sacrificial=sacrificial, quick=quick, commands=(lose, back))
    found = _run(asked, output)
    report.tell(found, output)
    _write(json, lambda: report.pretty(found), "the report as JSON", output)
    _write(html, lambda: page.render("compliance", **report.page_values(found)).encode(), "the page", output)
    _write(junit_file, lambda: junit.document(report.suites(found), name="compliance"), "the JUnit file", output)
    if found.verdict != "pass":
        raise typer.Exit(exit_codes.REFUSED)


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the run."""

    module: Path
    token: str
    pin_file: Path | None
    _: KW_ONLY
    sacrificial: bool
    quick: bool
    commands: tuple[str, str]


def _run(asked: _Asked, output: Output) -> "Report":
    from hsm_endorser.compliance.bench import QUICK, Effort  # noqa: PLC0415
    from hsm_endorser.compliance.loss import Rehearsal  # noqa: PLC0415
    from hsm_endorser.compliance.run import Wishes, run  # noqa: PLC0415
    from hsm_endorser.custody.errors import ProbeRefusedError  # noqa: PLC0415
    from hsm_endorser.errors import DeviceError, PinFileError  # noqa: PLC0415
    from hsm_endorser.pin import check_pin_file, checked  # noqa: PLC0415
    from hsm_endorser.token_config import TokenConfig  # noqa: PLC0415
    from hsm_endorser.uri import TokenUri  # noqa: PLC0415
    from hsm_endorser.worker_messages import Pin  # noqa: PLC0415

    async def interruptible() -> "Report":
        task = asyncio.current_task()
        if task:  # SIGINT does the same already: what was made is removed before the end
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with output.progress("Examining", 13) as done:
            told: list[str] = []

            def tell(what: str) -> None:
                told.append(what)
                done(len(told))

            return await run(config, wishes, pin=pin, tell=tell)

    try:
        if asked.pin_file:
            check_pin_file(asked.pin_file)
        if not asked.module.is_file():
            raise NotRunError(f"there is no PKCS#11 module {asked.module}", advice=_ADVICE["NoModule"])
        pin = None if asked.pin_file else Pin(checked(ask("PIN of the token").encode(), "the PIN that was entered"))
        uri = TokenUri(
            module=asked.module.resolve(),
            token=asked.token or None,
            pin_file=asked.pin_file and asked.pin_file.resolve(),
        )
        config = TokenConfig(uri=uri, environment=_environment(), start_seconds=START_SECONDS)
        rehearsal = Rehearsal(*asked.commands) if asked.commands[0] else None
        wishes = Wishes(rehearsal, asked.sacrificial, QUICK if asked.quick else Effort())
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise typer.Abort from None
    except PinFileError as error:
        raise NotRunError(str(error), advice=_ADVICE["PinFile"]) from None
    except ProbeRefusedError as error:
        raise NotRunError(str(error), advice=_ADVICE.get(error.ckr, _OTHERWISE)) from None
    except DeviceError as error:
        raise NotRunError(str(error), advice=_OTHERWISE) from None


def _environment() -> dict[str, str]:
    """What modules may need to know of ours: stores, configuration files and servers are named in the environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _check_writable(*paths: Path | None) -> None:
    """A minute's work is not to be lost for want of a folder."""
    for path in paths:
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"cannot write {path}: there is no folder {path.parent}", advice="choose another file")


def _write(path: Path | None, data: Callable[[], bytes], what: str, output: Output) -> None:
    if path is None:
        return
    try:
        path.write_bytes(data())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", advice="choose another file") from None
    output.plain(f"Wrote {what} to {path}.")
