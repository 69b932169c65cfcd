"""`hsm-endorser device|management|peer`: one service alone, in this process, until SIGTERM or Ctrl-C."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import exit_codes
from cli.errors import CommandError, UsageError
from transport import service

ConfigFile = Annotated[
    Path, typer.Option("--config", help="The service's TOML file.", exists=True, dir_okay=False, readable=True)
]


def device(config: ConfigFile) -> None:
    """Run one endorsement device: the process that alone holds a token's PIN."""
    from hsm_endorser import service as room  # noqa: PLC0415  the only service that needs PKCS#11
    from hsm_endorser.config import load  # noqa: PLC0415
    from hsm_endorser.errors import ConfigError  # noqa: PLC0415

    _run(config, load, room.serve, ConfigError)


def management(config: ConfigFile) -> None:
    """Run one management service: it routes transactions to devices, verifies, and cuts blocks. No private keys."""
    from management import service as room  # noqa: PLC0415  each service loads its own room alone
    from management.config import load  # noqa: PLC0415
    from management.errors import ConfigError  # noqa: PLC0415

    _run(config, load, room.serve, ConfigError)


def peer(config: ConfigFile) -> None:
    """Run one peer: it follows the chain, verifies every block with public keys alone, executes and stores it."""
    from peer import service as room  # noqa: PLC0415
    from peer.config import load  # noqa: PLC0415
    from peer.errors import ConfigError  # noqa: PLC0415

    _run(config, load, room.serve, ConfigError)


def _run(path: Path, load: Any, serve: Any, config_error: type[Exception]) -> None:
    try:
        config = load(path)
    except config_error as error:
        raise UsageError(str(error)) from None
    wrong: list[Exception] = []

    async def run(stop: asyncio.Event) -> None:
        try:
            await serve(config, stop)
        except config_error as error:
            wrong.append(error)
            raise

    if service.run(config.name, run) != exit_codes.OK:
        if wrong:  # a start with the same files ends in the same way: the exit code tells a supervisor so
            raise UsageError(str(wrong[0]))
        raise CommandError(f"{config.name} failed", advice="its log, above, says why")
