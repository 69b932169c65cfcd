"""`hsm-endorser evidence`: verified where there is no network, no token and no database, and told to people."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.evidence import page_of
from cli.plan import Layout
from ledger.evidence import make_evidence, trusted_head, verify_evidence
from ledger.receipt import make_receipt
from tests.chain_builder import Network
from tests.cli.conftest import Result
from tests.ledger.evidence_world import History

PROJECT = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]

OFFLINE = """
import sys
import types

# The parser of arguments reads what is installed by a module for mail, which wants to know the name `socket`: it gets
# one without a socket in it.
sys.modules["socket"] = types.ModuleType("socket")

class Nothing:
    FORBIDDEN = {
        "pkcs11", "httpx2", "httpcore2", "_socket", "ssl", "_ssl", "asyncio", "sqlalchemy", "sqlite3",
        "fastapi", "starlette", "uvicorn", "hsm_endorser", "management", "peer", "softhsm", "transport",
    }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.FORBIDDEN:
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Nothing())
for name in Nothing.FORBIDDEN:
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} could be imported")

def forbid(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "ctypes.dlopen"):
        raise SystemExit(f"{event} was tried: {arguments}")

sys.addaudithook(forbid)
import importlib
importlib.import_module(sys.argv[1]).app(sys.argv[2:], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A chain on which the centers changed three times."""
    made = History(tmp_path_factory.mktemp("evidence"))
    yield made
    made.store.close()


@pytest.fixture
def files(history: History, tmp_path: Path) -> tuple[Path, Path]:
    """Evidence of an issue, and the genesis block."""
    file, genesis = tmp_path / "evidence.json", tmp_path / "genesis.json"
    file.write_bytes(make_evidence(history.store, history.issue.id))
    genesis.write_bytes(history.genesis)
    return file, genesis


@pytest.mark.requirement("K-15")
def test_verified_with_nothing_but_two_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Where sockets, HTTP, PKCS#11, databases and the services cannot be imported, evidence verifies, page and all."""
    file, genesis = files
    page, head = tmp_path / "evidence.html", tmp_path / "head.json"
    done = offline("cli.evidence", "verify", file, "--genesis", genesis, "--html", page, "--write-head", head, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["verified"], document["code"], document["nodes"]) == (True, "valid", ["A", "B"])
    assert "<h1>Evidence: assets.issue by c1</h1>" in page.read_text(encoding="utf-8")
    assert head.stat().st_size > 0


def offline(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command where hardly anything can be imported."""
    return subprocess.run(
        [sys.executable, "-c", OFFLINE, command, *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.requirement("K-15")
def test_a_receipt_is_verified_in_the_same_way(history: History, files: tuple[Path, Path], tmp_path: Path) -> None:
    """Receipts need no more than evidence does."""
    receipt = tmp_path / "receipt.json"
    receipt.write_bytes(make_receipt(history.store, history.late.id))
    done = offline("cli.receipt", "verify", receipt, "--genesis", files[1], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["code"] == "valid"


@pytest.mark.requirement("K-15")
def test_each_step_is_explained(run: Run, files: tuple[Path, Path]) -> None:
    """People read what was found in each step and what it means; the whole command needs no PKCS#11 library."""
    file, genesis = files
    result = run("evidence", "verify", file, "--genesis", genesis)
    assert (result.code, result.err) == (0, "")
    for step in ("form", "genesis", "handovers", "header", "transaction", "outcome", "registry", "client"):
        assert f"✓ {step}: " in result.out
    assert "the centers are changed 3 times; each change is signed by the centers before it" in result.out
    assert "A, B endorsed it, which satisfies the policy OutOf(2, 'A', 'B', 'C')" in result.out
    assert "assets.issue by c1, block 9, 2027-01-15 08:00:04 UTC: valid" in result.out


@pytest.mark.requirement("K-15")
def test_a_changed_byte_is_refused_with_its_step(run: Run, files: tuple[Path, Path]) -> None:
    """Exit code 4, the stable code, and the step that failed."""
    file, genesis = files
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"code":"valid"', b'"code":"vali1"', 1))
    result = run("evidence", "verify", file, "--genesis", genesis, "--json")
    assert result.code == 4
    error = result.document["error"]
    assert (error["code"], error["reason"]) == ("bad-evidence", "outcome: it is not under the header's outcome root")
    assert error["advice"] == "do not rely on this evidence"
    shown = run("evidence", "verify", file, "--genesis", genesis)
    assert (shown.code, shown.out) == (4, "")
    assert "outcome: it is not under" in shown.err


def test_another_genesis_is_named(run: Run, files: tuple[Path, Path]) -> None:
    """What is no genesis block, or another network's, is not trusted."""
    file, genesis = files
    genesis.write_bytes(Network("other").genesis())
    result = run("evidence", "verify", file, "--genesis", genesis, "--json")
    assert (result.code, result.document["error"]["reason"].partition(":")[0]) == (4, "handovers")
    genesis.write_bytes(b"{}")
    result = run("evidence", "verify", file, "--genesis", genesis, "--json")
    assert (result.code, result.document["error"]["reason"].partition(":")[0]) == (4, "genesis")
    assert "name the genesis.json that you trust" in result.document["error"]["advice"]


@pytest.mark.requirement("K-15")
def test_heads(run: Run, history: History, files: tuple[Path, Path], tmp_path: Path) -> None:
    """A verified file gives a head; from there on a later file is verified, and not without it."""
    file, genesis = files
    early, head = tmp_path / "early.json", tmp_path / "head.json"
    early.write_bytes(make_evidence(history.store, history.middle.id))
    result = run("evidence", "verify", early, "--genesis", genesis, "--write-head", head)
    assert (result.code, f"Wrote the head of block 5: {head}" in result.out) == (0, True)
    assert head.read_bytes() == trusted_head(early.read_bytes())
    assert run("evidence", "verify", file, "--genesis", genesis, "--head", head).code == 0
    file.write_bytes(make_evidence(history.store, history.issue.id, start=5))
    result = run("evidence", "verify", file, "--genesis", genesis, "--head", head)
    assert (result.code, "from block 5 on, what decides who the centers are changed once" in result.out) == (0, True)
    refused = run("evidence", "verify", file, "--genesis", genesis, "--json")
    assert refused.code == 4
    assert "give the head that you trust" in refused.document["error"]["reason"]


def test_the_page_is_one_file_for_people(history: History) -> None:
    """Who, what, when, every step with its meaning, every key with its tier; nothing is fetched, nothing is run."""
    report = verify_evidence(make_evidence(history.store, history.issue.id), history.genesis)
    page = page_of(report, "evidence <1>.json")
    assert "evidence &lt;1&gt;.json" in page
    assert not re.search(r"""(src|href)\s*=|<script|@import|url\(""", page)
    for step in report.steps:
        assert step.found.replace("'", "&#39;") in page
        assert step.meaning.replace("'", "&#39;") in page
    for used in (*report.authors, *report.signers, *(vote.key for vote in report.votes)):
        assert used.id in page
    assert page.count("a software token") >= 3
    assert "there was no key ceremony" in page
    assert report.policy is not None
    assert report.policy.expression.replace("'", "&#39;") in page


def test_a_page_of_a_registry_transaction(history: History) -> None:
    """What administrators signed has no policy and no votes."""
    report = verify_evidence(make_evidence(history.store, history.rotation.id), history.genesis)
    page = page_of(report, "x")
    assert "it changes the registry" in page
    assert "administrator admin-1" in page
    assert "Endorsement</h2>" not in page


def test_export_needs_a_running_peer(run: Run, built: tuple[Path, Network], tmp_path: Path) -> None:
    """Evidence comes from a peer: an unknown one is a usage error, a silent one is named, and nothing is written."""
    out = tmp_path / "out.json"
    options = ("evidence", "export", "0" * 64, "--network", built[0], "-o", out, "--json")
    result = run(*options)
    assert (result.code, result.document["error"]["code"]) == (3, "unreachable")
    result = run(*options, "--peer", "peer-9")
    assert (result.code, result.document["error"]["advice"]) == (2, "its peers are peer-1, peer-2")
    result = run(*options, "--from", Layout(built[0]).genesis)
    assert (result.code, "is no head" in result.document["error"]["reason"]) == (2, True)
    assert not out.exists()
