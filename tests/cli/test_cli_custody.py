"""A custody statement is verified offline, shown to people and pipelines, and refused when any byte has changed."""

import asyncio
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from cli import custody_forms, custody_report, exit_codes, junit, page
from cli.custody_report import SOFTWARE_TOKEN, Report
from cli.main import main
from cli.output import Output
from hsm_endorser.custody import profile
from hsm_endorser.token import Token
from protocol import canonical, custody
from protocol.custody import Row
from protocol.envelope import Envelope
from tests import custody_samples, software_keys
from tests.chain_builder import Network
from tests.custody_samples import IDENTITY
from tests.hsm_endorser.device_world import SoftToken, new_token


def report_on(**changes: object) -> Report:
    """The report on the sample, arranged by the profile that it names."""
    envelope = custody_samples.envelope(custody_samples.predicate(**changes))
    return custody_report.arrange(envelope, custody.decode(envelope), profile.load("strict"))


@pytest.fixture
def statement(tmp_path: Path) -> Path:
    """The sample statement in a file."""
    path = tmp_path / "audit.json"
    path.write_bytes(canonical.encode(custody_samples.envelope()))
    return path


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """The public half of the key that signed it."""
    path = tmp_path / "identity.pem"
    public = IDENTITY.private.public_key()
    path.write_bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.mark.requirement("K-6")
def test_a_statement_is_verified_with_a_given_key(
    statement: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer has the verdict, who signed, and each finding with what to do."""
    assert main(["custody", "verify", str(statement), "--identity", str(identity), "--json"]) == exit_codes.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["verified"], document["key"], document["verdict"]) == (True, IDENTITY.public.id, "fail")
    assert {finding["check"] for finding in document["findings"]} == {"key.extractable", "attack.wrap"}
    assert all(finding["do"] and finding["controls"] for finding in document["findings"])


@pytest.mark.requirement("K-6")
def test_a_statement_is_verified_by_the_device_that_genesis_names(
    statement: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key comes from the device's entry; a statement of a device that is not there is refused."""
    network = Network()
    network.devices["device-a"] = IDENTITY
    genesis = tmp_path / "genesis.json"
    genesis.write_bytes(network.genesis())
    assert main(["custody", "verify", str(statement), "--genesis", str(genesis)]) == exit_codes.OK
    assert "signed by the registered identity key of device-a" in capsys.readouterr().out
    elsewhere = custody_samples.envelope(custody_samples.predicate(device="device-x"))
    statement.write_bytes(canonical.encode(elsewhere))
    code = main(["custody", "verify", str(statement), "--genesis", str(genesis), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["code"]) == (exit_codes.VERIFICATION_FAILED, "wrong-device")


@pytest.mark.requirement("K-6")
def test_any_changed_byte_is_refused(statement: Path, identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every 97th byte of the file, flipped in one bit: never verified, always exit code 4."""
    data = statement.read_bytes()
    for position in range(0, len(data), 97):
        statement.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        code = main(["custody", "verify", str(statement), "--identity", str(identity), "--json"])
        assert code == exit_codes.VERIFICATION_FAILED, position
        assert json.loads(capsys.readouterr().out)["error"]["advice"]


@pytest.mark.requirement("K-6")
@pytest.mark.parametrize("kind", ["another key", "nobody", "two keys"])
def test_a_statement_that_the_key_did_not_sign_alone_is_refused(
    kind: str, statement: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another key, no key, or a second key beside it."""
    made = custody_samples.envelope()
    other = software_keys.ecdsa("somebody else").signature(custody.PAYLOAD_TYPE, made.payload)
    signatures = {"another key": (other,), "nobody": (), "two keys": (*made.signatures, other)}[kind]
    statement.write_bytes(canonical.encode(Envelope(made.payload, made.payload_type, signatures)))
    code = main(["custody", "verify", str(statement), "--identity", str(identity), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    expected = "unsigned" if kind == "nobody" else "bad-signature"
    assert (code, error["code"]) == (exit_codes.VERIFICATION_FAILED, expected)


def test_verification_asks_for_exactly_one_key(
    statement: Path, identity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key nothing is called verified; nor is a private key or another profile taken."""
    assert main(["custody", "verify", str(statement)]) == exit_codes.USAGE
    assert "by which key" in capsys.readouterr().err
    words = ["custody", "verify", str(statement), "--identity", str(identity), "--profile", "module-survey"]
    assert main(words) == exit_codes.USAGE
    assert "was judged by strict with SHA-256" in capsys.readouterr().err
    identity.write_bytes(IDENTITY.pem())
    assert main(["custody", "verify", str(statement), "--identity", str(identity)]) == exit_codes.USAGE
    assert "holds no public key" in capsys.readouterr().err


@pytest.mark.requirement("K-6")
def test_verification_needs_no_pkcs11_library(statement: Path, identity: Path) -> None:
    """A fresh process verifies, and has not loaded the module `pkcs11`."""
    code = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from cli.main import main\n"
        f"raise SystemExit(main(['custody', 'verify', {str(statement)!r}, '--identity', {str(identity)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (exit_codes.OK, f"This is {SOFTWARE_TOKEN}.\n")


@pytest.mark.requirement("K-5", "K-6")
def test_every_form_of_the_report_calls_a_software_token_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Terminal, page, JSON and JUnit say it; none says that a standard is met."""
    report = report_on()
    custody_forms.tell(report, Output(as_json=False))
    shown = capsys.readouterr()
    assert SOFTWARE_TOKEN in shown.err.replace("\n", " ")
    assert "does not meet FIPS 140, EN 419 221-5" in page.render("custody", **custody_forms.page_values(report, ""))
    assert custody_forms.document(report)["software_token"] == SOFTWARE_TOKEN
    assert 'name="software-token" value="true"' in junit.document(custody_forms.suites(report)).decode()
    hardware = msgspec.structs.replace(custody_samples.predicate().token, software=False)
    assert "FIPS 140, EN" not in page.render("custody", **custody_forms.page_values(report_on(token=hardware), ""))


@pytest.mark.requirement("K-6")
def test_the_page_is_one_file_and_escapes_what_tokens_say() -> None:
    """Labels are text on it; nothing is loaded from elsewhere; findings stand before the rows."""
    text = page.render("custody", **custody_forms.page_values(report_on(), "Signed by nobody."))
    assert "node/B &lt;b&gt;&amp;" in text
    assert "<b>&" not in text
    assert not [word for word in ("src=", "<link", "url(", "@import", "<script") if word in text]
    assert text.index("the private key left the token") < text.index("Keys at a glance") < text.index("The token</h2>")


@pytest.mark.requirement("K-6")
def test_junit_has_a_case_for_each_row_and_a_failure_for_each_finding(tmp_path: Path) -> None:
    """What was not tested and what is informative is skipped with its reason, and never a pass."""
    report = report_on()
    junit.write(tmp_path / "custody.xml", custody_forms.suites(report))
    root = ET.parse(tmp_path / "custody.xml").getroot()  # noqa: S314  we wrote it
    cases = root.findall("testsuite/testcase")
    assert (len(cases), root.get("tests")) == (len(custody_samples.predicate().rows), str(len(cases)))
    assert len(root.findall("testsuite")) == 4  # the token, two keys, one probe
    failed = {case.get("name", "").partition(":")[0] for case in cases if case.find("failure") is not None}
    assert failed == {"key.extractable", "attack.wrap"}
    skipped = {case.find("skipped").get("message") for case in cases if case.find("skipped") is not None}
    assert skipped == {
        "informative in this profile: SoftHSM is a software token",
        "informative in this profile: 2 weak mechanisms",
        "done on probe-1",
    }
    assert (root.get("failures"), root.get("skipped")) == ("2", "3")


def test_junit_holds_text_that_xml_does_not(tmp_path: Path) -> None:
    """Control characters and halves of surrogates in labels become their code points."""
    case = junit.Case(group="a\0b", name="\x1b[31m", outcome="fail", reason="\ud800", text="fine\n<&>")
    junit.write(tmp_path / "odd.xml", [junit.Suite(name="odd", cases=(case,), properties={"a": "\uffff"})])
    element = ET.parse(tmp_path / "odd.xml").getroot().find("testsuite/testcase")  # noqa: S314  we wrote it
    assert element is not None
    assert element.attrib | {"time": ""} == {"classname": "a\\u0000b", "name": "\\u001b[31m", "time": ""}
    failure = element.find("failure")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ("\\ud800", "fine\n<&>")


def test_a_finding_on_many_keys_is_told_once() -> None:
    """The same check with the same answer on three targets is one finding that names all three."""
    rows = tuple(
        Row("key.modifiable", target, "read CKA_MODIFIABLE", "true", "fail", "false is expected")
        for target in ("probe-1", "probe-2", custody_samples.GOOD.public.id)
    )
    (finding,) = report_on(rows=rows).findings
    assert finding.targets == ("node/A", "probe-1", "probe-2")


def test_a_statement_by_an_unknown_profile_is_shown_without_severities() -> None:
    """All that failed counts as found, and the page says which profile is not at hand."""
    unknown = custody.Profile("theirs", "0" * 64)
    report = report_on(profile=unknown)
    assert (report.profile, {finding.line.severity for finding in report.findings}) == (None, {None})
    assert len(report.findings) == 4
    text = page.render("custody", **custody_forms.page_values(report, ""))
    assert "is not at hand, so severities and controls are not shown" in text


def test_a_profile_of_another_is_not_taken_for_ours_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Terminal and page say that a file called `strict` is not the `strict` of hsm-endorser."""
    report = report_on(profile=custody.Profile("strict", "0" * 64))
    custody_forms.tell(report, Output(as_json=False))
    expected = "profile strict (not one of hsm-endorser's own; SHA-256 0000000000000000…)"
    assert expected in capsys.readouterr().out
    assert expected.replace("'", "&#39;") in page.render("custody", **custody_forms.page_values(report, ""))
    assert report_on().judged_by == "strict"


def test_what_read_only_left_out_is_to_be_tried_and_not_to_be_repaired() -> None:
    """A finding that was never tried advises another audit, and accuses no key."""
    reason = "the audit was told to write nothing: --read-only"
    row = Row("attack.wrap", custody_samples.GOOD.public.id, "nothing", "", "not-tested", reason)
    report = report_on(rows=(row,))
    assert {each.line.advice for each in (*report.findings, *report.untested)} == {custody_report.AGAIN}


def test_a_statement_of_odd_values_is_shown_all_the_same() -> None:
    """A time beyond the calendar, checks and targets that nobody knows, keys without an id, the same key twice."""
    good = custody_samples.GOOD.public.id
    keys = (
        custody.AuditedKey("", "", "", "claimed", "fail"),
        custody.AuditedKey(good, "node/A", "0a", "probed", "pass"),
        custody.AuditedKey(good, "node/A again", "0c", "claimed", "fail"),
    )
    rows = (
        Row("key.of-tomorrow", "somewhere", "", "", "fail"),
        Row("key.pair", "id:none#3", "count", "0", "fail", "no public half"),
        Row("attack.probe", good, "make one", "", "pass"),
    )
    report = report_on(time=canonical.MAX_INTEGER, keys=keys, rows=rows)
    assert report.when == f"{canonical.MAX_INTEGER} ms after the epoch"
    assert [finding.line.row.check for finding in report.findings] == ["key.pair", "key.of-tomorrow"]
    titles = {section.title: section.verdict for section in report.sections}
    assert titles == {
        "the token": "pass",
        "node/A": "fail",
        "somewhere": "fail",
        "key without a label, id none": "fail",
    }
    custody_forms.tell(report, Output(as_json=False))
    assert junit.document(custody_forms.suites(report))
    assert page.render("custody", **custody_forms.page_values(report, ""))


def test_an_audit_names_a_device_or_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither or both is a wrong use; `--json` is a file here, so the error comes in words."""
    assert main(["custody", "audit", "--json", str(tmp_path / "x.json")]) == exit_codes.USAGE
    assert "give either --config" in capsys.readouterr().err
    words = ["custody", "audit", "--uri", "pkcs11:token=x?module-path=/x", "--profile", "strickt"]
    assert main(words) == exit_codes.USAGE
    assert "there are code-signing, module-survey, strict" in capsys.readouterr().err


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """A token with an identity key and a node's, of which no device is told."""
    made = new_token(tmp_path_factory.mktemp("audited") / "token")

    async def generate() -> None:
        opened = await Token.start(made.config)
        try:
            for label in ("identity", "node/A"):
                await opened.generate(label, "ecdsa-p256-sha256")
        finally:
            await opened.close()

    asyncio.run(generate())
    return made


@pytest.fixture
def uri(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its URI; what its module needs stands in the environment, as for any PKCS#11 program."""
    for name, value in token.created.environment.items():
        monkeypatch.setenv(name, value)
    return token.created.uri


@pytest.mark.requirement("K-3", "K-6")
def test_any_token_is_audited_and_the_report_written_in_every_form(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, four files, signed by the token's identity key, verified with a copy of that."""
    out, page_file, data, cases = (tmp_path / name for name in ("a.st", "a.html", "a.json", "a.xml"))
    words = ["--output", str(out), "--html", str(page_file), "--json", str(data), "--junit", str(cases)]
    assert main(["custody", "audit", "--uri", uri, *words]) == exit_codes.OK
    assert "Verdict: pass, no findings." in capsys.readouterr().out
    document = json.loads(data.read_bytes())
    subjects = {each["name"]: each["digest"]["sha256"] for each in document["statement"]["subject"]}
    assert (document["signed_by"], set(subjects)) == (subjects["identity"], {"identity", "node/A"})
    assert {key["tier"] for key in document["statement"]["predicate"]["keys"]} == {"probed"}
    assert ET.parse(cases).getroot().get("failures") == "0"  # noqa: S314  we wrote it
    assert "node/A" in page_file.read_text()
    envelope = msgspec.json.decode(out.read_bytes(), type=Envelope)
    assert envelope.signatures[0].keyid == subjects["identity"]


@pytest.mark.usefixtures("uri")
def test_a_token_without_keys_gives_a_report_that_nobody_signed(
    token: SoftToken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that nobody signed and that nothing was shown, which is no success for a pipeline."""
    bare = new_token(token.folder, "bare")
    out = tmp_path / "a.st"
    words = ["custody", "audit", "--uri", bare.created.uri, "--read-only", "-o", str(out)]
    assert main(words) == exit_codes.REFUSED
    shown = capsys.readouterr()
    assert "Not signed: the token holds no keys labelled 'identity'" in shown.out
    assert "No private key was found on this token" in shown.err
    assert msgspec.json.decode(out.read_bytes(), type=Envelope).signatures == ()


@pytest.mark.requirement("S-6")
def test_a_pin_is_entered_where_the_uri_names_none(
    uri: str, token: SoftToken, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right, the audit runs; wrong, it does not, and the PIN is tried once and shown nowhere."""
    asked = uri.partition("&pin-source")[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{token.pin}\n"))
    assert main(["custody", "audit", "--uri", asked, "--read-only"]) == exit_codes.REFUSED
    shown = capsys.readouterr()
    assert "Signed by the key" in shown.out
    assert token.pin not in shown.out + shown.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("wrong-pin-9876\n"))
    assert main(["custody", "audit", "--uri", asked, "--read-only"]) == exit_codes.USAGE
    shown = capsys.readouterr()
    assert "PinIncorrect" in shown.err
    assert "wrong-pin-9876" not in shown.out + shown.err


def test_an_audit_that_cannot_run_ends_with_exit_code_2(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token that is not there, and a module that is none; nothing is called a finding."""
    assert main(["custody", "audit", "--uri", uri.replace("token=token-a", "token=token-b")]) == exit_codes.USAGE
    assert "the token cannot be opened" in capsys.readouterr().err
    module = tmp_path / "module.so"
    module.write_bytes(b"no module")
    wrong = f"pkcs11:token=x?module-path={module}&pin-source=file:{tmp_path / 'pin'}"
    assert main(["custody", "audit", "--uri", wrong]) == exit_codes.USAGE
    assert "the token cannot be opened" in capsys.readouterr().err


def test_profiles_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The list names each; one by name is printed byte for byte, to start from."""
    assert main(["custody", "profiles"]) == exit_codes.OK
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == list(profile.names())
    assert main(["custody", "profiles", "strict"]) == exit_codes.OK
    assert capsys.readouterr().out == profile.load("strict").text
