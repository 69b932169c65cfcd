"""A compliance run as people and pipelines read it: terminal, page, JSON, JUnit. It judges nothing anew."""

import datetime as dt
from typing import Any, Final

import msgspec

from cli.junit import Case, Outcome, Suite
from cli.output import Output
from hsm_endorser.compliance.catalogue import CATALOGUE, PARTS
from hsm_endorser.compliance.result import Report, Row

SHOWN: Final = {"pass": "pass", "fail": "FAIL", "not-tested": "not tested", "info": "info"}
_OUTCOMES: Final[dict[str, Outcome]] = {"pass": "pass", "info": "pass", "fail": "fail", "not-tested": "skipped"}


def parts(report: Report) -> dict[str, list[Row]]:
    """The rows by the part of the report in which they are shown, in the order of `PARTS`."""
    found: dict[str, list[Row]] = {part: [] for part in PARTS.values()}
    for row in report.rows:
        found[PARTS[row.check.partition(".")[0]]].append(row)
    return {part: rows for part, rows in found.items() if rows}


def tell(report: Report, output: Output) -> None:
    """The report on the terminal."""
    token = report.token
    output.plain(f"Module {report.module}: {token.library} {_version(token.library_version)}".rstrip())
    output.plain(f"Token {token.label!r}: {token.manufacturer} {token.model}, serial {token.serial}")
    if report.software:
        output.plain(f"This is a software token: {report.why_software}.")
    output.table(
        "Compliance run",
        ["check", "measured", "verdict", "what it means for a device on this module"],
        [
            [_name(row), _printable(row.measured), SHOWN[row.verdict], row.means]
            for rows in parts(report).values()
            for row in rows
        ],
    )
    counts = ", ".join(f"{count} {SHOWN[verdict]}" for verdict, count in tally(report).items() if count)
    output.plain(f"Verdict: {SHOWN[report.verdict]} ({counts}), in {report.seconds:.0f} s.")
    for row in report.findings:
        output.plain(f"FAIL {_name(row)}: {_printable(row.measured)}. {row.means[0].upper()}{row.means[1:]}.")


def tally(report: Report) -> dict[str, int]:
    """How many rows have each verdict."""
    return {verdict: sum(row.verdict == verdict for row in report.rows) for verdict in SHOWN}


def pretty(report: Report) -> bytes:
    """The report as JSON."""
    document = {"verdict": report.verdict, **msgspec.to_builtins(report)}
    return bytes(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"


def suites(report: Report) -> list[Suite]:
    """The report as JUnit: a suite for each part."""
    properties = {
        "module": report.module,
        "token": report.token.label,
        "model": report.token.model,
        "serial": report.token.serial,
        "tool": report.tool,
    }
    moment = dt.datetime.fromtimestamp(report.time / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return [
        Suite(name=part, cases=tuple(_case(row) for row in rows), properties=properties, timestamp=moment)
        for part, rows in parts(report).items()
    ]


def page_values(report: Report) -> dict[str, Any]:
    """What `pages/compliance.html` shows."""
    return {
        "report": report,
        "when": dt.datetime.fromtimestamp(report.time / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "library": f"{report.token.library} {_version(report.token.library_version)}",
        "parts": parts(report),
        "tally": tally(report),
        "catalogue": CATALOGUE,
    }


def _case(row: Row) -> Case:
    return Case(
        group=f"compliance.{row.check.partition('.')[0]}",
        name=_name(row),
        outcome=_OUTCOMES[row.verdict],
        reason=f"{row.measured}: {row.means}" if row.verdict == "fail" else row.means,
        text=f"{CATALOGUE[row.check]}: {row.measured}. {row.means}",
        seconds=row.seconds,
    )


def _name(row: Row) -> str:
    return f"{row.check} ({row.subject})" if row.subject else row.check


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
