"""Secrets that people enter: at a prompt, unseen, or as the next line of standard input. Never as an argument."""

import getpass
import sys

from cli.errors import UsageError


def ask(what: str) -> str:
    """The secret; raises `UsageError` when standard input is no terminal and has no further line."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    line = sys.stdin.readline().removesuffix("\n")
    if not line:
        raise UsageError(f"standard input holds no line for the {what}", advice="run it on a terminal, or give a line")
    return line
