"""No signature without the token: over a full run, what the tokens signed is what the journals say (requirement K-8).

The counts: `.venv/bin/python -m pytest tests/flow/test_flow_token_counts.py -o log_cli=true -o log_cli_level=INFO`.
"""

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from cli.plan import Layout
from hsm_endorser import journal
from hsm_endorser.guard_records import JournalEntry, JournalRow
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.block import Block
from protocol.keys import PublicKey
from protocol.registry import Device, decode_entry
from softhsm.shim import Control
from tests.flow import no_software_keys
from tests.flow.running_network import Load
from tests.flow.shimmed_network import shimmed_network

LOAD_SECONDS = 2.0
figures = logging.getLogger("figures")


class Run(msgspec.Struct, frozen=True):
    """A network that was loaded and stopped, behind modules that counted; what its journals say since then."""

    layout: Layout
    forbidden: Path
    pids: dict[str, int]
    controls: dict[str, Control]
    journals: dict[str, list[JournalRow]]
    committed: int

    @property
    def entries(self) -> set[JournalEntry]:
        """Everything that any device was asked to sign."""
        return {row.entry for rows in self.journals.values() for row in rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Clients registered (CA doors), a load committed (heads, headers), readiness asked (challenges); then stopped."""
    root = tmp_path_factory.mktemp("counts")
    forbidden = root / "forbidden"
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in no_software_keys.forbid(forbidden).items():
            patch.setenv(variable, value)  # for the processes that are started; this one has begun without it
        with shimmed_network(root) as shimmed:
            network = shimmed.network
            processes = network.supervisor.processes
            pids = {name: process.pid or 0 for name, process in processes.items()}
            load = Load(network, "counted")
            load.start()
            time.sleep(LOAD_SECONDS)
            load.stop()
            ends = [network.ended(transaction) for transaction in load.acknowledged]
            assert {(end.status, end.code) for end in ends} == {("committed", "valid")}
            network.wait_level(max(end.height or 0 for end in ends))
            assert [process.restarts for process in processes.values()] == [0] * len(pids)
    journals = {name: shimmed.journal_of(name) for name in shimmed.controls}
    return Run(network.layout, forbidden, pids, shimmed.controls, journals, len(ends))


@pytest.mark.slow
@pytest.mark.requirement("K-8")
def test_every_signature_of_a_token_stands_in_its_journal(run: Run) -> None:
    """For each device, C_Sign succeeded exactly as often as its journal has entries, over all purposes."""
    total: Counter[str] = Counter()
    for name, rows in run.journals.items():
        purposes = journal.by_purpose(rows)
        total += purposes
        counted = run.controls[name].successes("sign")
        figures.info(f"{name}: C_Sign {counted}, journal {sum(purposes.values())} {dict(purposes)}")
        assert counted == run.controls[name].calls("sign") == sum(purposes.values())
    assert {"head", "header", "certificate", "registration", "challenge"} <= total.keys()
    figures.info(f"all devices: {dict(total)} for {run.committed} transactions")


@pytest.mark.slow
@pytest.mark.requirement("K-8", "K-14")
def test_every_signature_on_the_chain_stands_in_a_journal(run: Run) -> None:
    """Each node's head and each center's header that a peer kept was recorded by a device before it was signed."""
    store = ChainStore.open(url_of(run.layout.peer("peer-1") / "chain.db"))
    found: Counter[str] = Counter()
    missing = []
    for height in range(1, store.height() + 1):
        block = Block.decode(store.block(height) or b"")
        for purpose, envelope in [
            ("header", block.envelope),
            *(("head", branch.head) for tree in block.trees for branch in tree.branches),
        ]:
            for entry in journal.entries_of(envelope, purpose):
                found[purpose] += 1
                if entry not in run.entries:
                    missing.append((height, entry))
    store.close()
    figures.info(f"on the chain: {dict(found)}")
    assert missing == []
    assert found["header"] >= 3
    assert found["head"] >= found["header"]


@pytest.mark.slow
@pytest.mark.requirement("K-8", "E-20")
def test_readiness_signs_with_the_identity_key_alone(run: Run) -> None:
    """Every challenge in a journal was answered by the device's identity key, and it answered nothing else."""
    genesis = Block.decode(run.layout.genesis.read_bytes())
    (entries,) = (transaction.payload.arguments["entries"] for transaction in genesis.transactions)
    for entry in entries:
        if entry["type"] != "device":
            continue
        device = decode_entry(f"device/{entry['name']}", canonical.encode(entry))
        assert isinstance(device, Device)
        identity = PublicKey.load(device.identity).id
        rows = run.journals[device.name]
        assert {row.entry.key for row in rows if row.entry.purpose == "challenge"} == {identity}
        assert {row.entry.purpose for row in rows if row.entry.key == identity} <= {"challenge", "statement"}


@pytest.mark.slow
@pytest.mark.requirement("K-8")
def test_no_service_can_make_a_software_key(run: Run) -> None:
    """All of the above happened in processes in which `cryptography` refuses every private key; nobody asked."""
    present = no_software_keys.was_in(run.forbidden)
    assert run.pids.keys() == {"management", "peer-1", "peer-2", "device-a", "device-b", "device-c"}
    assert set(run.pids.values()) <= present.keys(), present
    assert no_software_keys.asked(run.forbidden) == []


@pytest.mark.slow
@pytest.mark.requirement("K-8")
def test_the_refusal_works(run: Run) -> None:
    """In such a process a software key is in fact refused, whichever way it is asked for."""
    for code in (
        "from cryptography.hazmat.primitives.asymmetric import ec; ec.generate_private_key(ec.SECP256R1())",
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as K; K.generate()",
        "from cryptography.hazmat.primitives.asymmetric import rsa; rsa.generate_private_key(65537, 2048)",
        "from cryptography.hazmat.primitives.serialization import load_der_private_key as l; l(b'', None)",
        "from cryptography.hazmat.primitives.asymmetric import ec; ec.derive_private_key(5, ec.SECP256R1())",
    ):
        environment = {**os.environ, "PYTHONPATH": str(run.forbidden)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert "a software private key was asked for" in done.stderr, code


@pytest.mark.requirement("K-8")
def test_the_worker_that_holds_the_token_knows_no_cryptography() -> None:
    """The one process that the interpreter's hook does not reach does not even load the library."""
    code = (
        "import sys, hsm_endorser.token_worker\n"
        "print([name for name in sys.modules if name.startswith('cryptography')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
