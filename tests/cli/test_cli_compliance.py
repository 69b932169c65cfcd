"""`hsm-endorser compliance run` writes its report in every form, and says what to do when it cannot run (K-7)."""

import io
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import compliance_report, exit_codes, junit, page
from cli.output import Output
from hsm_endorser.compliance.catalogue import CATALOGUE
from hsm_endorser.compliance.result import Report, Row
from hsm_endorser.custody.probe_messages import TokenInfo
from softhsm.installation import find
from tests.cli.conftest import Result
from tests.hsm_endorser.device_world import SoftToken, new_token
from tests.hsm_endorser.shimmed_token import shimmed

Run = Callable[..., Result]
INFO = TokenInfo(
    manufacturer="Maker", model="Model", serial="1", label="<b>&token", flags=0, hardware=(1, 0), firmware=(1, 2),
    slot=0, slot_description="slot", slot_manufacturer="Maker", slot_flags=0, library="library",
    library_manufacturer="Maker", library_version=(2, 6), cryptoki=(2, 40),
)  # fmt: skip


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    """An empty token; what its module needs stands in the environment, as for any PKCS#11 program."""
    made = new_token(tmp_path / "token")
    for name, value in made.created.environment.items():
        monkeypatch.setenv(name, value)
    return made


def arguments(token: SoftToken, *more: object) -> list[object]:
    """A run with the token's PIN file."""
    return ["compliance", "run", "--module", find().module, "--pin-file", token.folder / "pin", *more]


def report(*rows: Row) -> Report:
    """A report with these rows."""
    return Report(
        module="/lib/module.so", token=INFO, software=False, why_software="", tool="hsm-endorser", time=0, seconds=1.0,
        objects_before=0, objects_after=0, rows=rows,
    )  # fmt: skip


@pytest.mark.requirement("K-7")
def test_one_command_reports_in_every_form(run: Run, token: SoftToken, tmp_path: Path) -> None:
    """Exit code 0; the table, JSON, JUnit and the page say the same of every row."""
    data, cases, shown = (tmp_path / name for name in ("r.json", "r.xml", "r.html"))
    answer = run(*arguments(token, "--quick", "--json", data, "--junit", cases, "--html", shown))
    assert (answer.code, answer.err) == (exit_codes.OK, "")
    document = json.loads(data.read_bytes())
    assert document["verdict"] == "pass"
    assert {row["check"] for row in document["rows"]} == set(CATALOGUE)
    assert (document["objects_before"], document["objects_after"]) == (0, 0)
    root = ET.parse(cases).getroot()  # noqa: S314  we wrote it
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == (str(len(document["rows"])), "0", "3")
    text = shown.read_text()
    assert all(f">{check}<" in text for check in CATALOGUE)
    assert "This is a software token:" in text
    assert "http" not in text, "a page that needs nothing else"
    assert "Verdict: pass" in answer.out
    assert token.pin not in answer.out + data.read_text() + text


@pytest.mark.requirement("K-7")
def test_a_finding_is_exit_code_1(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module whose signatures are wrong: the report is there, and the exit code says that it is not all well."""
    faulty = shimmed(tmp_path / "faulty")
    for name, value in faulty.config.environment.items():
        monkeypatch.setenv(name, value)
    faulty.control.set("sign", "corrupt")
    pin, cases = faulty.soft.folder / "pin", tmp_path / "r.xml"
    words = ["--module", faulty.config.uri.module, "--pin-file", pin, "--quick", "--junit", cases]
    answer = run("compliance", "run", *words)
    assert answer.code == exit_codes.REFUSED
    assert "FAIL algorithm.works (ed25519): the signature does not verify" in answer.out
    assert ET.parse(cases).getroot().get("failures") == "4"  # noqa: S314  we wrote it


@pytest.mark.requirement("K-7")
def test_what_cannot_run_says_what_to_do(run: Run, token: SoftToken, tmp_path: Path) -> None:
    """Exit code 2 for a wrong module, token or PIN; each with the remedy, and the PIN is shown nowhere."""
    pin = token.folder / "pin"
    missing = run("compliance", "run", "--module", "/no/module.so", "--pin-file", pin)
    assert (missing.code, "there is no PKCS#11 module /no/module.so" in missing.err) == (exit_codes.USAGE, True)
    no_module = tmp_path / "text.so"
    no_module.write_text("not a library")
    other = run("compliance", "run", "--module", no_module, "--pin-file", pin)
    assert (other.code, "is a PKCS#11 module for this machine" in other.err) == (exit_codes.USAGE, True)
    stranger = run(*arguments(token, "--token", "another"))
    assert (stranger.code, "label of an initialised token" in stranger.err) == (exit_codes.USAGE, True)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong-pin-9876\n")
    wrong.chmod(0o600)
    refused = run("compliance", "run", "--module", find().module, "--pin-file", wrong)
    assert (refused.code, "it was given once" in refused.err) == (exit_codes.USAGE, True)
    assert "wrong-pin-9876" not in refused.out + refused.err
    wrong.chmod(0o644)
    readable = run("compliance", "run", "--module", find().module, "--pin-file", wrong)
    assert (readable.code, "others could read it" in readable.err) == (exit_codes.USAGE, True)
    new_token(token.folder, "token-b")
    several = run(*arguments(token))
    assert (several.code, "name one by its label with --token" in several.err) == (exit_codes.USAGE, True)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--sacrificial"], "--sacrificial --token LABEL"),
        (["--lose-command", "true"], "--return-command, or neither"),
        (["--json", "/no/such/folder/r.json"], "choose another file"),
    ],
)
def test_a_wrong_use_tries_nothing(run: Run, token: SoftToken, words: list[str], advice: str) -> None:
    """It is refused before the token is opened, with what to write instead."""
    answer = run(*arguments(token, *words))
    assert (answer.code, advice in answer.err) == (exit_codes.USAGE, True)


@pytest.mark.requirement("S-6")
@pytest.mark.usefixtures("token")
def test_a_pin_is_asked_for_where_no_file_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read unseen; a wrong one is refused and shown nowhere."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("wrong-pin-9876\n"))
    answer = run("compliance", "run", "--module", find().module, "--token", "token-a")
    assert (answer.code, "PinIncorrect" in answer.err) == (exit_codes.USAGE, True)
    assert "wrong-pin-9876" not in answer.out + answer.err


def test_words_of_a_module_are_text_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Labels and answers may hold anything: markup, control characters."""
    row = Row("labels.kept", "newline", "[red]<script>\x1b[0m\n", "fail", "it means something")
    odd = report(row)
    compliance_report.tell(odd, Output(as_json=False))
    shown = capsys.readouterr().out
    assert "[red]" in shown
    assert "\x1b[0m\n" not in shown.split("Verdict")[0].partition("script")[2][:8]
    text = page.render("compliance", **compliance_report.page_values(odd))
    assert "&lt;b&gt;&amp;token" in text
    assert "<script>" not in text
    assert b"\\u001b" in junit.document(compliance_report.suites(odd))
