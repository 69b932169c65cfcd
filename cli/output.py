"""What commands print: text for people, or with `--json` one document on standard output and nothing else."""

import contextlib
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.errors import CommandError, RefusedError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]


UNSEEN_WIDTH: Final = 160
"""Columns of a table that goes into a file or a pipe: names and ids are not torn there."""


class Output:
    """Where a command speaks."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False, quiet=as_json, soft_wrap=True)
        self._err = Console(highlight=False, stderr=True, soft_wrap=True)
        if not self._out.is_terminal:
            self._out.width = max(self._out.width, UNSEEN_WIDTH)

    def say(self, text: str = "") -> None:
        """A line for people; rich markup."""
        self._out.print(text)

    def plain(self, text: str) -> None:
        """A line for people in which nothing is markup."""
        self._out.print(escape(text))

    def warn(self, text: str) -> None:
        """A line that must be seen while the command goes on: standard error, with `--json` too. No markup."""
        self._err.print(escape(text), style="yellow")

    def table(self, title: str, columns: list[str], rows: list[list[object]]) -> None:
        """A table for people."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self._out.print(table)

    def result(self, document: dict[str, Any]) -> None:
        """The one document of `--json`; people have read the same in words."""
        if self.as_json:
            sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
            sys.stdout.buffer.flush()

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar; the function that it gives sets how much is done. Silent where nobody watches."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._err if self.as_json else self._out,
            disable=self.as_json and not self._err.is_terminal,
            refresh_per_second=4,
        ) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.update(task, completed=done, total=max(done, total))

    def error(self, error: CommandError) -> None:
        """Tell why the command failed, which devices were tried, and what to do."""
        if self.as_json:
            self.result({"error": error.document()})
            return
        self._err.print(f"[bold red]{escape(error.code)}[/]: {escape(error.reason)}")
        if isinstance(error, RefusedError):
            for line in devices_tried(error.problem.devices):
                self._err.print(f"  {escape(line)}")
        if error.advice:
            self._err.print(f"[bold]What to do:[/] {escape(error.advice)}")


def escape(text: str) -> str:
    """Text as it is: no markup, and nothing that moves a terminal's cursor or the order of what is read.

    Labels of tokens and files of others may hold anything; such characters are shown as their code points.
    """
    shown = (each if _is_harmless(each) else f"\\u{ord(each):04x}" for each in text)
    return escape_markup("".join(shown))


def _is_harmless(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def devices_tried(devices: tuple[dict[str, Any], ...]) -> list[str]:
    """One line for each device that was tried: its name, then what it said."""
    lines = []
    for device in devices:
        name = device.get("device", "?")
        said = ", ".join(f"{key}: {value}" for key, value in device.items() if key != "device")
        lines.append(f"device {name} tried: {said}")
    return lines
