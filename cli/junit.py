"""Results for pipelines: JUnit XML, as CI systems read it.

There is no standard; what is written here is what Jenkins, GitLab and GitHub actions agree on: `testsuites` with
`testsuite`s with `testcase`s, each of which passed, holds a `failure`, or was `skipped`.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from cli.errors import UsageError

Outcome = Literal["pass", "fail", "skipped"]

_FORBIDDEN: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold (section 2.2)."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tested. `group` becomes the class name, under which CI systems sort."""

    group: str
    name: str
    outcome: Outcome
    reason: str = ""
    """Why it failed or was skipped, in one line."""
    text: str = ""
    """What was tried and what came of it."""
    seconds: float = 0.0


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """Cases that belong together; `properties` say on what they were run."""

    name: str
    cases: tuple[Case, ...]
    properties: dict[str, str] = {}
    timestamp: str = ""
    """When it was run, ISO 8601."""

    def count(self, outcome: Outcome) -> int:
        """How many cases ended so."""
        return sum(case.outcome == outcome for case in self.cases)


def document(suites: Iterable[Suite], *, name: str = "hsm-endorser") -> bytes:
    """The XML document."""
    listed = list(suites)
    root = ET.Element("testsuites", {"name": _text(name), **_totals(listed)})
    for suite in listed:
        root.append(_suite(suite))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def write(path: Path, suites: Iterable[Suite], *, name: str = "hsm-endorser") -> None:
    """Write the document to a file; raises `UsageError` when that is not possible."""
    try:
        path.write_bytes(document(suites, name=name))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", advice="choose another file for --junit") from None


def _suite(suite: Suite) -> ET.Element:
    element = ET.Element("testsuite", {"name": _text(suite.name), **_totals([suite])})
    if suite.timestamp:
        element.set("timestamp", suite.timestamp)
    if suite.properties:
        properties = ET.SubElement(element, "properties")
        for key, value in suite.properties.items():
            ET.SubElement(properties, "property", {"name": _text(key), "value": _text(value)})
    for case in suite.cases:
        element.append(_case(case))
    return element


def _case(case: Case) -> ET.Element:
    attributes = {"classname": _text(case.group), "name": _text(case.name), "time": f"{case.seconds:.3f}"}
    element = ET.Element("testcase", attributes)
    if case.outcome == "fail":
        failure = ET.SubElement(element, "failure", {"message": _text(case.reason), "type": "finding"})
        failure.text = _text(case.text)
    elif case.outcome == "skipped":
        ET.SubElement(element, "skipped", {"message": _text(case.reason)})
    if case.text and case.outcome != "fail":
        ET.SubElement(element, "system-out").text = _text(case.text)
    return element


def _totals(suites: list[Suite]) -> dict[str, str]:
    cases = [case for suite in suites for case in suite.cases]
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.outcome == "fail" for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.outcome == "skipped" for case in cases)),
        "time": f"{sum(case.seconds for case in cases):.3f}",
    }


def _text(value: str) -> str:
    """Labels on tokens may hold anything; what XML cannot hold is shown as its code point."""
    return _FORBIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
