"""The forms of a custody report: for the terminal, as JSON, as JUnit suites, and what its page shows (K-6)."""

from typing import Any, Final

import msgspec

from cli.custody_report import SOFTWARE_TOKEN, TIERS, TOKEN, Finding, Line, Report, Section, moment
from cli.junit import Case, Outcome, Suite
from cli.output import Output
from hsm_endorser.custody.profile import SEVERITIES
from protocol.custody import Verdict

SHOWN_UNTESTED: Final = 8
WORDS: Final[dict[Verdict, str]] = {"pass": "pass", "fail": "FAIL", "not-tested": "not tested"}


def tell(report: Report, output: Output) -> None:
    """The report on the terminal: keys at a glance, then what was found and what to do."""
    predicate = report.statement.predicate
    token = predicate.token
    whose = f"{predicate.device}, network {predicate.network}" if predicate.device else "a token that is no device's"
    output.plain(f"Custody audit of {whose}, {report.when}, by profile {report.judged_by}.")
    output.plain(f"Token {token.label!r}: {token.manufacturer} {token.model}, serial {token.serial or 'none'}.")
    if token.software:
        output.warn(f"This is {SOFTWARE_TOKEN}.")
    if predicate.read_only:
        output.plain("Read-only: nothing was made on the token, so most attacks were not tested.")
    rows: list[list[object]] = [
        [
            section.title,
            section.key.tier if section.key else "",
            WORDS[section.verdict],
            str(section.tally("token." if section.target == TOKEN else "key.")),
            str(report.attacks(section)),
        ]
        for section in report.sections
        if section.target not in report.probes
    ]
    output.table("At a glance", ["", "tier", "verdict", "read back", "attacks"], rows)
    for number, finding in enumerate(report.findings, 1):
        _tell_finding(number, finding, output)
    if report.untested:
        checks = list(dict.fromkeys(finding.line.row.check for finding in report.untested))
        shown = ", ".join(checks[:SHOWN_UNTESTED]) + (", …" if len(checks) > SHOWN_UNTESTED else "")
        output.plain(f"Not tested, and never counted as a pass: {shown}. The page and the files say why.")
    output.say(f"Verdict: [bold]{WORDS[predicate.verdict]}[/], {_number(len(report.findings), 'finding')}.")


def document(report: Report) -> dict[str, Any]:
    """The report as one JSON document: the statement as it was signed, and how its findings are read."""
    return {
        "verdict": report.statement.predicate.verdict,
        "signed_by": report.signer or None,
        "digest": report.digest,
        "software_token": SOFTWARE_TOKEN if report.statement.predicate.token.software else None,
        "findings": [
            {
                "check": finding.line.row.check,
                "severity": finding.line.severity,
                "targets": list(finding.targets),
                "seen": [
                    {"tried": line.row.tried, "answer": line.row.answer, "reason": line.row.reason}
                    for line in finding.lines
                ],
                "do": finding.line.advice,
                "controls": list(finding.line.controls),
            }
            for finding in report.findings
        ],
        "controls": _controls(report),
        "statement": msgspec.to_builtins(report.statement),
    }


def suites(report: Report) -> list[Suite]:
    """The report for pipelines: a suite for the token, for each key and each probe; a failure for each finding."""
    predicate = report.statement.predicate
    properties = {
        "profile": predicate.profile.name,
        "profile-digest": predicate.profile.digest,
        "token": f"{predicate.token.manufacturer} {predicate.token.model} {predicate.token.serial}",
        "software-token": str(predicate.token.software).lower(),
        "statement": report.digest,
        "signed-by": report.signer or "nobody",
    }
    made = moment(predicate.time)
    time = made.isoformat(timespec="seconds") if made else ""
    return [
        Suite(
            name=f"custody: {section.title}",
            timestamp=time,
            properties={**properties, "tier": section.key.tier, "key": section.key.key} if section.key else properties,
            cases=tuple(_case(section, line) for line in section.lines),
        )
        for section in report.sections
    ]


def page_values(report: Report, checked: str) -> dict[str, Any]:
    """What the page `custody` shows; `checked` says in words what is known of the signature."""
    predicate = report.statement.predicate
    used = {control for section in report.sections for line in section.lines for control in line.controls}
    controls = [
        (name, each) for name, each in (report.profile.controls.items() if report.profile else ()) if name in used
    ]
    return {
        "report": report,
        "predicate": predicate,
        "checked": checked,
        "software": SOFTWARE_TOKEN if predicate.token.software else "",
        "mechanisms": [
            line
            for section in report.sections
            for line in section.lines
            if line.row.check.startswith("token.mechanisms-")
        ],
        "controls": controls,
        "sources": report.profile.sources if report.profile else {},
        "tiers": TIERS,
        "findings_by_severity": {
            severity: sum(finding.line.severity == severity for finding in report.findings) for severity in SEVERITIES
        },
    }


def _tell_finding(number: int, finding: Finding, output: Output) -> None:
    line = finding.line
    grave = f" ({line.severity})" if line.severity else ""
    output.say()
    output.plain(f"{number}. {WORDS[line.row.verdict]} {line.row.check}{grave}: {', '.join(finding.targets)}")
    for each in finding.shown:
        output.plain(f"   tried  {each.row.tried}: {each.row.answer or 'nothing'}")
        if each.row.reason and (each is line or each.row.reason != line.row.reason):
            output.plain(f"   why    {each.row.reason}")
    if finding.more:
        output.plain(f"          and {finding.more} more like these")
    if line.advice:
        output.plain(f"   to do  {line.advice}")


def _case(section: Section, line: Line) -> Case:
    row = line.row
    told = [row.tried, f"answer: {row.answer}"]
    told += [f"to do: {line.advice}"] if line.finding and line.advice else []
    told += [f"controls: {', '.join(line.controls)}"] if line.controls else []
    outcome: Outcome = "pass" if row.verdict == "pass" else "fail" if line.finding else "skipped"
    noted = "informative in this profile: " if row.verdict == "fail" and not line.finding else ""
    return Case(
        group=f"{section.title}.{row.check.partition('.')[0]}",
        name=f"{row.check}: {row.tried}" if row.tried else row.check,
        outcome=outcome,
        reason=f"{noted}{row.reason}",
        text="\n".join(told),
    )


def _controls(report: Report) -> dict[str, Any]:
    """Each control that the profile maps to, with its source, and how the checks that speak to it ended."""
    if report.profile is None:
        return {}
    told: dict[str, Any] = {}
    for name, control in report.profile.controls.items():
        lines = [line for section in report.sections for line in section.lines if name in line.controls]
        told[name] = {
            "asks": control.asks,
            "source": f"{report.profile.sources[control.source].title}, {control.section}",
            "read_at": report.profile.sources[control.source].where,
            **{verdict: sum(line.row.verdict == verdict for line in lines) for verdict in WORDS},
        }
    return told


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
