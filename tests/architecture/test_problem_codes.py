"""Every stable code that a room can answer stands in docs/problems.md, and nothing else stands there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protocol", "transport", "ledger", "hsm_endorser", "management", "peer")
CODE_AT = {
    "ProblemError": 1,
    "RejectedError": 0,
    "BlockRefusedError": 0,
    "AuthorizationError": 0,
    "EnrolmentError": 0,
    "RefusedError": 0,
    "LedgerError": 0,
    "Failure": 0,
    "_NoVoteError": 0,
}
FROM_DATA = {
    # Codes that reach an answer by way of a name or a table rather than a literal.
    "already-executed": "ledger/replica.py",
    "expired": "ledger/verifier.py",
    "not-yet-valid": "ledger/verifier.py",
    "validity-too-long": "ledger/verifier.py",
    "unknown-state": "peer/queries.py",
    "no-answer": "management/endorsing.py",
    "pool-full": "management/intake.py",
    "not-found": "transport/problem.py",
    "method-not-allowed": "transport/problem.py",
    "http-error": "transport/problem.py",
    "bad-copy": "ledger/errors.py",
    "not-next": "ledger/errors.py",
    "diverged": "ledger/errors.py",
    "store": "ledger/errors.py",
}
NEVER_ANSWERED = {
    "protocol-error": "a family's name",
    "management-error": "a family's name",
    "device-error": "a family's name",
    "refused": "a family's name: its reason is answered",
    "bad-config": "ends a start",
    "bad-configuration": "ends a start",
    "bad-uri": "ends a start",
    "bad-pin-file": "ends a start",
    "bad-proof": "a device's answer that does not hold is `bad-answer`",
}


def _codes(path: Path) -> Iterator[str]:
    """The codes that a module gives to an error, by its literals."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            place = node.args[CODE_AT[name]] if name in CODE_AT and len(node.args) > CODE_AT[name] else None
            named = [each.value for each in node.keywords if each.arg == "code"] if name == "Refusal" else []
            yield from (each.value for each in (place, *named) if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == ["code"]:
            yield from (each.value for each in [node.value] if isinstance(each, ast.Constant))


def _in_code() -> set[str]:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {code for path in paths for code in _codes(path) if isinstance(code, str) and code}
    return (found | set(FROM_DATA)) - set(NEVER_ANSWERED)


def _documented() -> list[str]:
    return re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs/problems.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_code_is_documented() -> None:
    """What it means and what to do stands beside each code; no row is about a code that is gone."""
    documented = set(_documented())
    assert sorted(_in_code() - documented) == []
    assert sorted(documented - _in_code()) == []


def test_codes_that_are_not_literals_exist() -> None:
    """The list above speaks of what is there."""
    for code, path in FROM_DATA.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        # peer/queries.py names what is unknown, and peer/app.py puts "unknown-" before it.
        assert f'"{code}"' in text or f'"{code.removeprefix("unknown-")}"' in text, code


def test_a_code_has_one_place_in_each_table() -> None:
    """A table does not explain a code twice."""
    text = (ROOT / "docs/problems.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        codes = re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE)
        assert sorted(codes) == sorted(set(codes)), section.partition("\n")[0]
