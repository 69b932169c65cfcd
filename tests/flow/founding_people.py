"""People who found a network in a ceremony: a plan from the template, filled in, checked, run, and verified by others.

Three role holders have keys of their own in files, outside the network's folder; two of them are there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from cli import exit_codes
from cli.main import main

HOLDERS: Final = ("anna", "bert", "carla")
PRESENT: Final = ("anna", "bert")


class FirstToken(msgspec.Struct, frozen=True):
    """An empty token that a device gets: all that the plan says of it."""

    uri: str
    environment: Mapping[str, str]
    deadline_ms: int = 1000


class Founders:
    """The folder where they meet; `network` becomes the network's folder."""

    def __init__(self, folder: Path, tokens: Mapping[str, FirstToken]) -> None:
        self.plan = folder / "plan.toml"
        self.network = folder / "net"
        self.tokens = tokens
        for name in HOLDERS:
            _run("ceremony", "key", "--key", folder / f"{name}.key")
        given = [word for name in HOLDERS for word in ("--administrator", name)]
        given += [word for name, token in tokens.items() for word in ("--device", f"{name}={token.uri}")]
        _run("ceremony", "plan", self.plan, *given)
        self.plan.write_text(self._filled_in(self.plan.read_text()))

    def found(self) -> None:
        """The dry run, then the ceremony."""
        _run("ceremony", "check", self.plan)
        present = [word for name in PRESENT for word in ("--holder", name)]
        _run("ceremony", "run", self.plan, "--into", self.network, *present)

    @property
    def transcript(self) -> Path:
        """What they did."""
        return self.network / "ceremony" / "transcript"

    def key(self, name: str) -> Path:
        """The file of a role holder's key."""
        return self.plan.with_name(f"{name}.key")

    def _filled_in(self, text: str) -> str:
        """The template with what it leaves open: where the keys are, and what the tokens' modules need."""
        head, *tables = text.split("\n[[")
        return "\n[[".join([head, *map(self._table, tables)])

    def _table(self, table: str) -> str:
        name = next((json.loads(line[7:]) for line in table.splitlines() if line.startswith("name = ")), "")
        if table.startswith("administrator"):
            return f"{table}held = {json.dumps(f'{name}.key')}\n"
        if table.startswith("device"):
            token = self.tokens[name]
            needed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in token.environment.items())
            return f"{table}environment = {{ {needed} }}\ndeadline_ms = {token.deadline_ms}\n"
        return table


def _run(*words: Any) -> None:
    assert main([*map(str, words), "--json"]) == exit_codes.OK, words
