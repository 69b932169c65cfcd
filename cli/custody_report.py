"""A custody statement, arranged by keys and findings for whoever reads it (see `custody_forms`). It judges nothing.

Controls and severities come from the profile whose file has the digest that the statement names. Where that file is
not at hand, the rows are shown without them.
"""

import datetime as dt
from collections.abc import Iterable
from typing import Final

import msgspec

from hsm_endorser.custody.advice import ADVICE
from hsm_endorser.custody.catalogue import CATALOGUE
from hsm_endorser.custody.profile import SEVERITIES, Profile, Severity, by_digest
from protocol import custody
from protocol.custody import AuditedKey, Row, Statement, Verdict
from protocol.envelope import Envelope

SOFTWARE_TOKEN: Final = (
    "a software token: it does not meet FIPS 140, EN 419 221-5, GM/T 0028 or the code-signing baseline requirements, "
    "whatever the attributes say"
)
TOKEN: Final = "token"
AGAIN: Final = "run the audit again without --read-only"
SHOWN_LINES: Final = 6
SHOWN_KEYS: Final = 3
TIERS: Final = {
    "claimed": "somebody says so",
    "read-back": "the token's attributes say so",
    "probed": "attacks on it, or on a key of the same template, failed",
    "attested": "the token's vendor signed it",
}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A row, and what the profile and the catalogue say of its check."""

    row: Row
    holds: str
    """What the check asks, in a line."""
    finding: bool
    severity: Severity | None
    controls: tuple[str, ...]
    advice: str


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How many lines passed, failed, failed without being a finding, and were not tested."""

    passed: int
    failed: int
    noted: int
    untested: int

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            passed=self.passed + other.passed,
            failed=self.failed + other.failed,
            noted=self.noted + other.noted,
            untested=self.untested + other.untested,
        )

    def __str__(self) -> str:
        words = [f"{self.passed} pass"] if self.passed else []
        words += [f"{self.failed} FAIL"] if self.failed else []
        words += [f"{self.noted} noted"] if self.noted else []
        words += [f"{self.untested} not tested"] if self.untested else []
        return ", ".join(words) or "none"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """All lines on one target."""

    target: str
    title: str
    key: AuditedKey | None
    verdict: Verdict
    lines: tuple[Line, ...]
    probe: str = ""
    """The target that stands for this key in the attacks, where one was made."""

    @property
    def merged(self) -> list[tuple[Line, str]]:
        """The lines for a page: neighbours that passed a check with one answer are one, with all that was tried."""
        merged: list[tuple[Line, str]] = []
        for line in self.lines:
            row = line.row
            last = merged[-1][0].row if merged else None
            alike = last is not None and (last.check, last.answer, last.verdict) == (row.check, row.answer, row.verdict)
            if alike and row.verdict == "pass":
                merged[-1] = (merged[-1][0], f"{merged[-1][1]}; {row.tried}")
            else:
                merged.append((line, row.tried))
        return merged

    def tally(self, part: str) -> "Tally":
        """How the lines of a part ("key.", "attack.", "token.") ended."""
        lines = [line for line in self.lines if line.row.check.startswith(part)]
        return Tally(
            passed=sum(line.row.verdict == "pass" for line in lines),
            failed=sum(line.row.verdict == "fail" and line.finding for line in lines),
            noted=sum(line.row.verdict == "fail" and not line.finding for line in lines),
            untested=sum(line.row.verdict == "not-tested" for line in lines),
        )


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The same found on one or more targets: one check, and each different thing that was tried and seen."""

    line: Line
    """The first of `lines`."""
    lines: tuple[Line, ...]
    targets: tuple[str, ...]

    @property
    def more(self) -> int:
        """How many lines are too many to be shown at once."""
        return max(0, len(self.lines) - SHOWN_LINES)

    @property
    def shown(self) -> tuple[Line, ...]:
        """The lines that are shown at once."""
        return self.lines[:SHOWN_LINES]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A statement, arranged."""

    statement: Statement
    digest: str
    signer: str
    """The id of the key that signed; empty for a report that nobody signed."""
    profile: Profile | None
    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]
    untested: tuple[Finding, ...]
    """What was not tested and is no finding."""

    @property
    def keys(self) -> list[Section]:
        """The sections of keys."""
        return [section for section in self.sections if section.key]

    @property
    def probes(self) -> set[str]:
        """Targets that stand for keys: they are counted with these."""
        return {section.probe for section in self.keys if section.probe}

    def attacks(self, section: Section) -> Tally:
        """The attacks on a key, and on the probe that stands for it."""
        return sum(
            (each.tally("attack.") for each in self.sections if each.target == section.probe), section.tally("attack.")
        )

    @property
    def judged_by(self) -> str:
        """The profile's name, and that it is none of ours where it is not: a lax one can be called `strict`."""
        named = self.statement.predicate.profile
        if by_digest(named.digest):
            return named.name
        return f"{named.name} (not one of hsm-endorser's own; SHA-256 {named.digest[:16]}…)"

    @property
    def when(self) -> str:
        """When the audit was, UTC."""
        return when(self.statement.predicate.time)


def arrange(envelope: Envelope, statement: Statement, profile: Profile | None) -> Report:
    """The report on a statement; `profile` is used only when it is the one that the statement names."""
    predicate = statement.predicate
    known = profile if profile and profile.digest == predicate.profile.digest else None
    lines: dict[str, list[Line]] = {TOKEN: []}
    lines.update({key.key: [] for key in predicate.keys if key.key})
    found = set(known.findings(predicate.rows) if known else (row for row in predicate.rows if row.verdict == "fail"))
    for row in predicate.rows:
        lines.setdefault(row.target, []).append(_line(row, known, finding=row in found))
    sections = tuple(_section(target, some, predicate.keys) for target, some in lines.items())
    sections = tuple(_named(section, sections) for section in sections)
    titles = {section.target: section.title for section in sections}
    every = [line for section in sections for line in section.lines]
    return Report(
        statement=statement,
        digest=custody.digest_of(envelope),
        signer=envelope.signatures[0].keyid if envelope.signatures else "",
        profile=known,
        sections=sections,
        findings=_together((line for line in every if line.finding), titles),
        untested=_together((each for each in every if each.row.verdict == "not-tested" and not each.finding), titles),
    )


def when(time: int) -> str:
    """A time in milliseconds since the epoch as people read it, UTC."""
    made = moment(time)
    return made.strftime("%Y-%m-%d %H:%M:%S UTC") if made else f"{time} ms after the epoch"


def moment(time: int) -> dt.datetime | None:
    """None for times beyond the calendar: a signed statement may state any."""
    try:
        return dt.datetime.fromtimestamp(time / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _line(row: Row, profile: Profile | None, *, finding: bool) -> Line:
    check = profile.checks.get(row.check) if profile else None
    return Line(
        row=row,
        holds=CATALOGUE.get(row.check, ""),
        finding=finding,
        severity=check.severity if check else None,
        controls=check.controls if check else (),
        advice=AGAIN if row.verdict == "not-tested" and "--read-only" in row.reason else ADVICE.get(row.check, ""),
    )


def _section(target: str, lines: list[Line], keys: Iterable[AuditedKey]) -> Section:
    mine = [key for key in keys if target == _target(key) or target.startswith(f"{_target(key)}#")]
    found = {line.row.verdict for line in lines if line.finding} | {key.verdict for key in mine}
    verdict: Verdict = "fail" if "fail" in found else "not-tested" if "not-tested" in found else "pass"
    key = mine[0] if mine else None
    return Section(
        target=target, title=_title(target, key), key=key, verdict=verdict, lines=tuple(lines), probe=_probe(lines)
    )


def _named(section: Section, sections: Iterable[Section]) -> Section:
    """A probe under the names of the keys that it stands for."""
    keys = [each.title for each in sections if each.probe == section.target]
    if not keys:
        return section
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    title = f"{section.target}, for {', '.join(keys[:SHOWN_KEYS])}{more}"
    return msgspec.structs.replace(section, title=title)


def _target(key: AuditedKey) -> str:
    """What the rows of a key name as their target: its id, or its CKA_ID (and a number) where it has none."""
    return key.key or f"id:{key.id[:64] or 'none'}"


def _probe(lines: list[Line]) -> str:
    """Which probe stands for a key: the row of its making names it first."""
    made = [line.row.answer for line in lines if line.row.check == "attack.probe" and line.row.verdict == "pass"]
    return made[0].partition(",")[0] if made else ""


def _title(target: str, key: AuditedKey | None) -> str:
    if target == TOKEN:
        return "the token"
    if key is None:
        return target
    return key.label or f"key without a label, id {key.id or 'none'}"


def _together(lines: Iterable[Line], titles: dict[str, str]) -> tuple[Finding, ...]:
    """One finding for each check and the targets that share all that was seen."""
    by_target: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        by_target.setdefault((line.row.check, line.row.target), []).append(line)
    groups: dict[tuple[object, ...], list[list[Line]]] = {}
    for (check, _), some in by_target.items():
        seen = tuple((line.row.tried, line.row.answer, line.row.reason) for line in some)
        groups.setdefault((check, seen), []).append(some)
    findings = [
        Finding(
            line=alike[0][0],
            lines=tuple(alike[0]),
            targets=tuple(dict.fromkeys(titles[some[0].row.target] for some in alike)),
        )
        for alike in groups.values()
    ]
    grave = {severity: number for number, severity in enumerate(SEVERITIES)}
    return tuple(sorted(findings, key=lambda finding: grave.get(finding.line.severity or "low", len(grave))))
