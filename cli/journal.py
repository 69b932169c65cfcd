"""`hsm-endorser device journal`: archives what a device's keys signed, for tracing them when they are lost (K-14)."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.device import ConfigFile
from cli.errors import CommandError, UsageError
from cli.output import JsonFlag, Output


def journal(
    config: ConfigFile,
    output: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    as_json: JsonFlag = False,
) -> None:
    """Archive the device's journal of signatures, while it runs or not; keep archives away from the device."""
    from hsm_endorser import journal_archive  # noqa: PLC0415  this room is loaded by device commands alone
    from hsm_endorser.config import load  # noqa: PLC0415
    from hsm_endorser.errors import ConfigError, GuardError  # noqa: PLC0415

    try:
        guard = load(config).guard
        with output.open("xb") as file:
            heading = journal_archive.write(guard, file)
            file.flush()
            os.fsync(file.fileno())
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except FileExistsError:
        raise UsageError(f"{output} exists already", advice="archives are never overwritten: name a new file") from None
    except GuardError as error:
        output.unlink(missing_ok=True)
        raise CommandError(str(error), code="bad-journal", advice="see docs/guard.md") from None
    said = Output(as_json=as_json)
    said.plain(f"{heading.entries} entries of {heading.device} on {heading.network} are in {output}.")
    said.result({"device": heading.device, "network": heading.network, "entries": heading.entries, "tip": heading.tip})
