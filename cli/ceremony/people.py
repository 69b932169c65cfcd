"""The people at a ceremony: who is there, where each key is, and whether each agrees to the next step."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from cli import secret
from cli.ceremony.plan import AdministratorTable
from cli.errors import CommandError, UsageError
from cli.exit_codes import REFUSED
from cli.output import Output


class NotAgreedError(CommandError):
    """A role holder did not agree to a step: it is not done, and the ceremony can be taken up again later."""

    exit_code = REFUSED
    code = "not-agreed"


class People(Protocol):
    """How the role holders are reached."""

    async def present(self, holders: Sequence[AdministratorTable]) -> Mapping[str, str]:
        """Who is there, and where each one's key is: a path or a pkcs11: URI, by name."""

    async def agree(self, names: Sequence[str], number: int, words: Sequence[str]) -> None:
        """Let each one agree to a step; raises `NotAgreedError`."""

    async def pin(self, what: str) -> str:
        """A PIN that no file holds."""


class NamedPeople:
    """Those whom the command line names, who agree to everything: for rehearsals and automation."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given

    async def present(self, holders: Sequence[AdministratorTable]) -> Mapping[str, str]:
        """See `People`."""
        held = {each.name: each.held for each in holders}
        strangers = [name for name in self._given if name not in held]
        if strangers:
            raise UsageError(f"{', '.join(strangers)} is no administrator of the plan")
        found = {name: where or held[name] for name, where in self._given.items()}
        nowhere = [name for name, where in found.items() if not where]
        if nowhere:
            raise UsageError(f"the plan does not say where the key of {nowhere[0]} is", advice="--holder NAME=KEY")
        return found

    async def agree(self, names: Sequence[str], number: int, words: Sequence[str]) -> None:
        """See `People`."""

    async def pin(self, what: str) -> str:
        """See `People`."""
        raise UsageError(
            f"nobody can be asked for the PIN of {what}", advice="name a pin-source in its URI, or leave out --holder"
        )


class AskedPeople:
    """Those at the keyboard, one after the other. Answers are lines of standard input."""

    def __init__(self, output: Output) -> None:
        self._say = output.warn if output.as_json else output.plain  # questions are seen with --json, too

    async def present(self, holders: Sequence[AdministratorTable]) -> Mapping[str, str]:
        """See `People`."""
        found: dict[str, str] = {}
        for holder in holders:
            known = f" [{holder.held}]" if holder.held else ""
            said = await self._ask(
                f"Administrator {holder.name}: where is your key{known}? "
                "(its file, or the pkcs11: URI of your token; '-' for who is not here)"
            )
            if said == "-":
                continue
            if said or holder.held:
                found[holder.name] = said or holder.held
        return found

    async def agree(self, names: Sequence[str], number: int, words: Sequence[str]) -> None:
        """See `People`."""
        self._say(f"Step {number}:")
        for line in words:
            self._say(f"  {line}")
        for name in names:
            said = await self._ask(f"{name}, do you sign this step? (yes/no)")
            if said.lower() not in {"yes", "y"}:
                raise NotAgreedError(
                    f"{name} does not sign step {number}; it was not done",
                    advice="what was done before stays; run the same command again to go on from here",
                )

    async def pin(self, what: str) -> str:
        """See `People`."""
        return await asyncio.to_thread(secret.ask, f"PIN of {what}")

    async def _ask(self, question: str) -> str:
        self._say(question)
        line: str = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            raise UsageError(
                "standard input has ended", advice="run it on a terminal, or name who is there: --holder NAME=KEY"
            )
        return line.strip()
