"""Whether the files that a command is to write can be written, asked before its work and not after it."""

import os
from pathlib import Path

from cli.errors import UsageError


def require(*files: Path | None) -> None:
    """Raise `UsageError` for a file that cannot be written, or that is named twice; None is no file."""
    named = [file for file in files if file is not None]
    for number, file in enumerate(named):
        reason = _obstacle(file)
        if reason:
            raise UsageError(f"cannot write {file}: {reason}", advice="choose another file")
        if file.resolve() in {each.resolve() for each in named[:number]}:
            raise UsageError(f"{file} is named for two files", advice="choose another file for one of them")


def _obstacle(file: Path) -> str:
    if file.is_dir():
        return "it is a folder"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        return "you may not write there"
    return ""
