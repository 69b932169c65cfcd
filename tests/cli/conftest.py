"""Runs commands in this process, and looks at all that a caller sees: exit code, standard output, standard error."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from cli.plan import Layout, default_plan, network_settings, write_settings
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from tests.chain_builder import Network


@dataclass(frozen=True)
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output; fails when there is anything else."""
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run `hsm-endorser` with arguments."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Network]:
    """A network folder that nobody runs: genesis, two peers with the same chain of three records."""
    network = Network("built")
    folder = tmp_path / "net"
    layout = Layout(folder)
    plan = default_plan("built", ("A", "B", "C"), 2, {})
    for name in plan.peers:
        layout.peer(name).mkdir(parents=True)
        (layout.peer(name) / "peer.toml").touch()
    layout.genesis.write_bytes(network.genesis())
    write_settings(layout.network_file, network_settings(plan))
    genesis = layout.genesis.read_bytes()
    lines: list[bytes] = []
    for name in plan.peers:
        store = ChainStore.create(url_of(layout.peer(name) / "chain.db"))
        replica = Replica.create(store, genesis)
        if not lines:
            for number in range(3):
                block = network.block(replica, [network.evidence(f"pump-{number}")])
                lines.append(block.encode())
                replica.apply(lines[-1])
        else:
            for line in lines:
                replica.apply(line)
        store.close()
    return folder, network
