"""The `hsm-endorser` command: its commands, and what becomes of their errors."""

import sys
from typing import Final

import httpx2
import structlog
import typer

from cli import (
    backup,
    ca,
    chain,
    client,
    compliance,
    custody,
    device,
    evidence,
    exit_codes,
    guard,
    journal,
    key,
    network,
    policy,
    receipt,
    route,
    services,
    submit,
    trace,
)
from cli.bench import command as bench
from cli.ceremony import command as ceremony
from cli.demo import command as demo
from cli.errors import CommandError, RefusedError, UnreachableError, UsageError
from cli.output import Output
from protocol.errors import ProtocolError
from transport.address import AddressError
from transport.problem import ProblemError

app = typer.Typer(
    name="hsm-endorser",
    help="Endorsement for consortium blockchains: signing keys stay on PKCS#11 tokens, everybody else verifies.",
    epilog="Start with: hsm-endorser demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(network.app, name="network")
app.add_typer(ceremony.app, name="ceremony")
app.add_typer(backup.app, name="backup")
app.add_typer(client.app, name="client")
app.add_typer(ca.app, name="ca")
app.add_typer(receipt.app, name="receipt")
app.add_typer(evidence.app, name="evidence")
app.add_typer(chain.app, name="chain")
app.add_typer(policy.app, name="policy")
app.add_typer(route.app, name="route")
app.add_typer(guard.app, name="guard")
app.add_typer(custody.app, name="custody")
app.add_typer(compliance.app, name="compliance")
key.app.command("trace")(trace.trace)
app.add_typer(key.app, name="key")
app.command("submit")(submit.submit)
device.app.command("journal")(journal.journal)
app.add_typer(device.app, name="device")
app.command("management")(services.management)
app.command("peer")(services.peer)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)

REPORTS: Final = (["custody", "audit"], ["compliance", "run"])
"""Commands whose `--json` names the file of their report."""

_CommandLineError: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises for any wrong argument; typer gives it no public name."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is one of `cli.exit_codes`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _log_to_standard_error()
    output = Output(as_json="--json" in arguments and arguments[:2] not in REPORTS)
    try:
        return app(arguments, prog_name="hsm-endorser", standalone_mode=False) or exit_codes.OK
    except KeyboardInterrupt:
        output.warn("interrupted")
        return exit_codes.INTERRUPTED
    except typer.Abort:
        return exit_codes.INTERRUPTED
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command has shown its help
            return exit_codes.USAGE
        text = getattr(error, "format_message", error.__str__)()
        return _fail(output, UsageError(text, advice="see hsm-endorser [COMMAND] --help"))
    except CommandError as error:
        return _fail(output, error)
    except ProblemError as error:
        return _fail(output, RefusedError(error.problem))
    except httpx2.HTTPError as error:
        return _fail(output, UnreachableError(f"a service did not answer: {error}", advice=_ADVICE_UNREACHABLE))
    except (AddressError, ProtocolError) as error:
        return _fail(output, UsageError(str(error)))
    except OSError as error:
        return _fail(output, CommandError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")))


_ADVICE_UNREACHABLE = "see whether it runs: hsm-endorser network status DIR; its log is in DIR/logs"


def _log_to_standard_error() -> None:
    """What is logged on the way, such as what a token did not take: standard output is the command's own."""
    if not structlog.is_configured():
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def _fail(output: Output, error: CommandError) -> int:
    output.error(error)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
