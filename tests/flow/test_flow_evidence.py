"""Evidence from a running network: endorsed on tokens, fetched from a peer, verified with two files."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.flow.running_network import RunningNetwork


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `hsm-endorser` with arguments; its exit code and its document."""

    def run(*arguments: object) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def committed(network: RunningNetwork, subject: str) -> str:
    """A record that every peer has applied; its transaction id."""
    wish = network.evidence(subject)
    with network.management() as management:
        status = management.submit(wish.raw, wait=30)
    assert status.code == "valid"
    network.wait_level(status.height or 0)
    return wish.id


@pytest.mark.requirement("K-15", "E-17")
def test_evidence_of_what_tokens_signed(network: RunningNetwork, run: Any, tmp_path: Path) -> None:
    """Any peer gives the same file; it verifies offline, and a changed byte does not."""
    folder, genesis = network.layout.folder, network.layout.genesis
    identity = committed(network, "turbine-1")
    files = [tmp_path / f"{name}.json" for name in network.peers]
    for name, file in zip(network.peers, files, strict=True):
        code, _ = run("evidence", "export", identity, "--network", folder, "--peer", name, "-o", file)
        assert code == 0
    assert len({file.read_bytes() for file in files}) == 1

    page = tmp_path / "evidence.html"
    code, document = run("evidence", "verify", files[0], "--genesis", genesis, "--html", page)
    assert (code, document["verified"], document["code"], document["client"]) == (0, True, "valid", "alice")
    assert len(document["nodes"]) >= 2
    assert [each["height"] for each in document["centers"]] == [0]
    assert identity in page.read_text(encoding="utf-8")

    bad = bytearray(files[0].read_bytes())
    bad[len(bad) // 2] ^= 1
    files[0].write_bytes(bytes(bad))
    code, document = run("evidence", "verify", files[0], "--genesis", genesis)
    assert (code, document["error"]["code"]) == (4, "bad-evidence")


@pytest.mark.requirement("K-15")
def test_evidence_from_a_trusted_head(network: RunningNetwork, run: Any, tmp_path: Path) -> None:
    """Who has verified one file keeps its head, and later files begin there."""
    folder, genesis, head = network.layout.folder, network.layout.genesis, tmp_path / "head.json"
    first, later = tmp_path / "first.json", tmp_path / "later.json"
    run("evidence", "export", committed(network, "turbine-2"), "--network", folder, "-o", first)
    code, document = run("evidence", "verify", first, "--genesis", genesis, "--write-head", head)
    assert code == 0
    identity = committed(network, "turbine-3")
    code, _ = run("evidence", "export", identity, "--network", folder, "--from", head, "-o", later)
    assert code == 0
    code, after = run("evidence", "verify", later, "--genesis", genesis, "--head", head)
    assert (code, after["transaction"], after["start"]["height"]) == (0, identity, document["height"] - 1)
    code, refused = run("evidence", "verify", later, "--genesis", genesis)
    assert (code, "give the head that you trust" in refused["error"]["reason"]) == (4, True)


def test_there_is_no_evidence_of_an_unknown_transaction(network: RunningNetwork, run: Any, tmp_path: Path) -> None:
    """A refusal by the peer, with its reason; nothing is written."""
    out = tmp_path / "none.json"
    code, document = run("evidence", "export", "0" * 64, "--network", network.layout.folder, "-o", out)
    assert (code, document["error"]["code"]) == (1, "unknown-transaction")
    assert not out.exists()


@pytest.mark.requirement("K-15", "K-5", "K-12")
def test_evidence_shows_custody_and_the_centers_new_key(network: RunningNetwork, run: Any, tmp_path: Path) -> None:
    """After an audit and a rotation of the center's key: the tier of a node's key, a software token, a handover."""
    layout = network.layout
    statement, out = tmp_path / "statement.json", tmp_path / "evidence.json"
    audit = ["custody", "audit", "--config", layout.device("device-a") / "device.toml", "-o", statement]
    assert main([str(each) for each in audit]) in {0, 1}
    assert run("custody", "register", statement, "--network", layout.folder)[0] == 0
    before = committed(network, "turbine-4")
    assert run("key", "rotate", "center/center-1", "--network", layout.folder)[0] == 0
    after = committed(network, "turbine-5")

    shown = []
    for identity in (before, after):
        assert run("evidence", "export", identity, "--network", layout.folder, "-o", out)[0] == 0
        code, document = run("evidence", "verify", out, "--genesis", layout.genesis)
        assert code == 0, document
        shown.append(document)
    old, new = shown
    assert (len(old["centers"]), len(new["centers"])) == (1, 2)
    assert old["signers"][0]["id"] != new["signers"][0]["id"]
    audited = {each["name"]: each["statement"] for each in new["devices"]}["device-a"]
    assert (audited["token"]["software"], audited["profile"]) == (True, "strict")
    receipt = tmp_path / "receipt.json"
    assert run("receipt", "export", after, "--network", layout.folder, "-o", receipt)[0] == 0
    assert run("receipt", "verify", receipt, "--genesis", layout.genesis)[0] == 0
