"""`hsm-endorser chain verify` and `receipt verify`: offline, over chains that these tests built."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.plan import Layout
from ledger.receipt import make_receipt
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.block import Block
from tests.chain_builder import Network
from tests.cli.conftest import Result

PROJECT = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]


def receipt_of(folder: Path) -> bytes:
    """The receipt of the transaction of block 2."""
    store = ChainStore.open(url_of(Layout(folder).peer("peer-1") / "chain.db"))
    data = store.block(2)
    assert data is not None
    receipt = make_receipt(store, Block.decode(data).transactions[0].id)
    store.close()
    return receipt


@pytest.mark.requirement("E-14", "E-17")
def test_both_peers_verify_from_genesis(run: Run, built: tuple[Path, Network]) -> None:
    """Every block is verified anew on every peer: same height, same head, same state."""
    result = run("chain", "verify", built[0], "--json")
    assert result.code == 0
    first, second = result.document["chains"]
    assert (first["height"], first["transactions"]) == (3, 3)
    assert {**first, "source": ""} == {**second, "source": ""}


def test_one_peer_is_verified_by_its_folder(run: Run, built: tuple[Path, Network]) -> None:
    """A peer's own folder can be named; people read a table."""
    result = run("chain", "verify", Layout(built[0]).peer("peer-2"))
    assert result.code == 0
    assert "peer-2" in result.out
    assert "peer-1" not in result.out


@pytest.mark.requirement("E-16")
def test_a_state_that_does_not_follow_from_the_blocks_is_found(run: Run, built: tuple[Path, Network]) -> None:
    """A peer whose state was edited in its database does not verify."""
    with sqlite3.connect(Layout(built[0]).peer("peer-1") / "chain.db") as database:
        changed = database.execute("UPDATE state SET value = x'7b7d' WHERE key = 'evidence/pump-1'").rowcount
    database.close()
    assert changed == 1
    result = run("chain", "verify", built[0], "--json")
    assert result.code == 4
    assert result.document["error"]["code"] == "diverged"


def test_a_block_that_was_edited_is_found(run: Run, built: tuple[Path, Network]) -> None:
    """A block whose bytes were edited in the database does not verify, and its height is named."""
    with sqlite3.connect(Layout(built[0]).peer("peer-1") / "chain.db") as database:
        (body,) = database.execute("SELECT body FROM blocks WHERE height = 2").fetchone()
        edited = bytes(body).replace(b'"height":2', b'"height":3', 1) + b" "
        database.execute("UPDATE blocks SET body = ? WHERE height = 2", (edited,))
    database.close()
    result = run("chain", "verify", Layout(built[0]).peer("peer-1"), "--json")
    assert result.code == 4
    assert result.document["error"]["reason"].startswith("block 2 does not hold: ")


def test_two_chains_of_one_network_are_a_fork(run: Run, built: tuple[Path, Network]) -> None:
    """Chains that each verify and differ at one height are called a fork."""
    folder, network = built
    database = Layout(folder).peer("peer-2") / "chain.db"
    database.unlink()
    store = ChainStore.create(url_of(database))
    replica = Replica.create(store, Layout(folder).genesis.read_bytes())
    replica.apply(network.block(replica, [network.evidence("another")]).encode())
    store.close()
    result = run("chain", "verify", folder, "--json")
    assert result.code == 4
    assert result.document["error"]["code"] == "fork"


def test_another_genesis_is_another_network(run: Run, built: tuple[Path, Network], tmp_path: Path) -> None:
    """A chain that does not begin with the genesis block that is trusted does not verify."""
    other = tmp_path / "other.json"
    other.write_bytes(Network("other").genesis())
    result = run("chain", "verify", built[0], "--genesis", other, "--json")
    assert result.code == 4
    assert result.document["error"]["code"] == "other-network"


def test_a_folder_without_a_chain_is_a_usage_error(run: Run, built: tuple[Path, Network], tmp_path: Path) -> None:
    """No chain, no network folder: usage errors that say what to name."""
    Layout(built[0]).peer("peer-1").joinpath("chain.db").unlink()
    assert (
        run("chain", "verify", built[0], "--json").document["error"]["advice"] == "name a peer's folder: DIR/peers/NAME"
    )
    result = run("chain", "verify", tmp_path / "nothing", "--json")
    assert result.code == 2
    assert "is no network folder" in result.document["error"]["reason"]


def test_a_receipt_verifies_step_by_step(run: Run, built: tuple[Path, Network], tmp_path: Path) -> None:
    """A receipt verifies against genesis.json, each step in words."""
    file = tmp_path / "receipt.json"
    file.write_bytes(receipt_of(built[0]))
    result = run("receipt", "verify", file, "--genesis", Layout(built[0]).genesis)
    assert result.code == 0
    assert "satisfies the policy OutOf(2, 'A', 'B', 'C')" in result.out
    document = run("receipt", "verify", file, "--genesis", Layout(built[0]).genesis, "--json").document
    assert (document["verified"], document["code"], document["nodes"]) == (True, "valid", ["A", "B"])


def test_a_forged_receipt_names_the_step_that_failed(run: Run, built: tuple[Path, Network], tmp_path: Path) -> None:
    """A receipt in which one byte of the outcome differs fails with exit code 4 and the step."""
    data = receipt_of(built[0])
    forged = data.replace(b'"code":"valid"', b'"code":"vali1"', 1)
    assert forged != data
    file = tmp_path / "receipt.json"
    file.write_bytes(forged)
    result = run("receipt", "verify", file, "--genesis", Layout(built[0]).genesis, "--json")
    assert result.code == 4
    assert result.document["error"]["code"] == "bad-receipt"
    assert result.document["error"]["reason"].startswith("outcome: ")


def test_a_receipt_is_verified_without_pkcs11(built: tuple[Path, Network], tmp_path: Path) -> None:
    """Verifying a receipt works where python-pkcs11 cannot be imported at all."""
    file = tmp_path / "receipt.json"
    file.write_bytes(receipt_of(built[0]))
    genesis = tmp_path / "genesis.json"
    shutil.copy(Layout(built[0]).genesis, genesis)
    code = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from cli.main import main\n"
        f"code = main(['receipt', 'verify', {str(file)!r}, '--genesis', {str(genesis)!r}])\n"
        "assert 'hsm_endorser' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_export_needs_a_running_peer(run: Run, built: tuple[Path, Network], tmp_path: Path) -> None:
    """A receipt comes from a peer; when none answers the exit code says unreachable and nothing is written."""
    result = run("receipt", "export", "0" * 64, "--network", built[0], "-o", tmp_path / "out.json", "--json")
    assert result.code == 3
    assert result.document["error"]["code"] == "unreachable"
    assert not (tmp_path / "out.json").exists()
