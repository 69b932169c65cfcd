"""What a compliance run found: rows, and whose they are."""

import time
from typing import Final, Literal

import msgspec

from hsm_endorser.compliance.catalogue import CATALOGUE
from hsm_endorser.custody.probe_messages import TokenInfo

Verdict = Literal["pass", "fail", "not-tested", "info"]
LIST: Final = 32
"""Signatures asked for at once."""


class Row(msgspec.Struct, frozen=True):
    """One thing that was measured, on what, what came of it, and what that means for a device on this module."""

    check: str
    subject: str
    measured: str
    verdict: Verdict
    means: str
    figures: dict[str, float] = {}
    """The measured numbers, for programs: rates per second, times in seconds, counts."""
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run. `time` is in milliseconds since the epoch, UTC."""

    module: str
    token: TokenInfo
    software: bool
    why_software: str
    tool: str
    time: int
    seconds: float
    objects_before: int
    objects_after: int | None
    rows: tuple[Row, ...]

    @property
    def findings(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.verdict == "fail")

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """Pass when nothing failed; what was not tested neither passes nor fails, and is shown."""
        return "fail" if self.findings else "pass"


class Rows:
    """The rows so far. A row takes the time since the one before it, or since `begin`."""

    def __init__(self) -> None:
        self.all: list[Row] = []
        self.current = ("", "")
        self._since = time.monotonic()

    def begin(self, check: str, subject: str = "") -> None:
        """From now on it is this that is tried: what fails without a row of its own is put down to it."""
        self.current = (check, subject)
        self._since = time.monotonic()

    def add(
        self,
        check: str,
        verdict: Verdict,
        measured: str,
        means: str,
        *,
        subject: str = "",
        figures: dict[str, float] | None = None,
    ) -> None:
        """One row. Raises `KeyError` for a check that the catalogue does not have."""
        CATALOGUE[check]
        now = time.monotonic()
        self.all.append(Row(check, subject, measured, verdict, means, figures or {}, now - self._since))
        self._since = now

    def tried(self, check: str, subject: str | None = None) -> bool:
        """Whether there is a row of a check (on a subject)."""
        return any(row.check == check and subject in {None, row.subject} for row in self.all)
