"""The same blocks give the same roots everywhere: whatever hash seed, locale, time zone or order of dicts."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger.contracts import assets, evidence, registry
from ledger.replica import Replica
from protocol import canonical
from protocol.registry import Client, EndorsementPolicy
from tests import software_keys
from tests.chain_builder import Network

ROOT = Path(__file__).parents[2]

FOLLOW = """
import locale, os, sys
from pathlib import Path
from ledger.execution import execute
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
locale.setlocale(locale.LC_ALL, "")
folder = Path(sys.argv[1])
lines = (folder / "blocks").read_bytes().splitlines()
replica = Replica.create(ChainStore.create(url_of(folder / f"{sys.argv[2]}.db")), lines[0])
for line in lines[1:]:
    checked = replica.apply(line)
    print([(o.code, o.writes) for o in checked.outcomes], checked.block.header.registry_root, replica.registry.root)
print(replica.store.digest(), replica.store.device_sequences() == {"device-a": 2, "device-b": 2})
"""


@pytest.mark.requirement("E-16")
def test_hash_seeds(network: Network, replica: Replica, genesis: bytes, tmp_path: Path) -> None:
    """Fresh processes under different hash seeds, locales and time zones come to the same roots and digest."""
    issue = network.issue("GOLD", {"c1": 10, "c2": 5})
    many = {f"k{n}": str(n) for n in range(32)}
    blocks = [
        [
            issue,
            network.transaction("evidence", "record", {"subject": "größe ß", "digest": "ab" * 32, "attributes": many}),
            network.put(*(Client(f"n{n}", software_keys.ecdsa(f"n{n}").spki, "") for n in range(9))),
        ],
        [
            network.transfer([f"{issue.id}:0"], {"c2": 4, "c1": 6}),
            network.transfer([f"{issue.id}:0"], {"c2": 10}),
            network.put(EndorsementPolicy("assets", "MAJORITY"), EndorsementPolicy("evidence", "ANY")),
            network.registry("remove", {"keys": ["client/n1", "client/n2"]}),
        ],
    ]
    lines = [genesis]
    for wishes in blocks:
        lines.append(network.block(replica, wishes).encode())
        replica.apply(lines[-1])
    (tmp_path / "blocks").write_bytes(b"\n".join(lines))
    surroundings = [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"},
        {"PYTHONHASHSEED": "4294967295", "LC_ALL": "C.UTF-8", "TZ": "America/New_York", "PYTHONOPTIMIZE": "1"},
    ]
    said = [
        subprocess.run(
            [sys.executable, "-c", FOLLOW, str(tmp_path), str(number)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number, environment in enumerate(surroundings)
    ]
    assert len(set(said)) == 1
    assert f"{replica.store.digest()} True" in said[0]


def _shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        chance.shuffle(keys)
        return {key: _shuffled(value[key], chance) for key in keys}
    return [_shuffled(member, chance) for member in value] if isinstance(value, list) else value


def test_the_order_of_arguments(network: Network, replica: Replica) -> None:
    """The order in which a process happens to hold a transaction's arguments changes no write set."""
    many = {f"k{n}": str(n) for n in range(32)}
    wishes = [
        network.issue("GOLD", {"c1": 1, "c2": 2}),
        network.transaction("evidence", "record", {"subject": "x", "digest": "ab" * 32, "attributes": many}),
        network.put(Client("c3", software_keys.ecdsa("c3").spki, "")),
    ]
    trees = network.endorse(wishes)
    good = replica.draft(network.time, wishes, trees).block.header
    chance = random.Random(7)  # noqa: S311  a test's own dice
    for _ in range(5):
        mixed = [
            msgspec.structs.replace(
                wish,
                payload=msgspec.structs.replace(wish.payload, arguments=_shuffled(wish.payload.arguments, chance)),
            )
            for wish in wishes
        ]
        drafted = replica.draft(network.time, mixed, trees).block.header
        assert drafted == good


@pytest.mark.parametrize("contract", [assets, evidence, registry], ids=lambda module: module.NAME)
def test_contracts_have_no_surroundings(contract: Any) -> None:
    """A contract imports nothing that could tell it the time, a chance, the machine or the network."""
    source = Path(contract.__file__).read_text()
    imported = [
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    ]
    assert set(imported) <= {"collections", "typing", "msgspec", "ledger", "protocol"}


def test_old_blocks_judge_the_same_after_a_restart(
    network: Network, replica: Replica, new_replica: Callable[[], Replica]
) -> None:
    """A replica that is closed and opened between all blocks comes to the same as one that runs on."""
    stopping = new_replica()
    for number in range(4):
        line = network.block(replica, [network.evidence(f"x-{number}")]).encode()
        replica.apply(line)
        stopping = Replica.open(stopping.store)
        stopping.apply(line)
    assert replica.store.digest() == stopping.store.digest()
    assert canonical.encode(replica.store.event(4)) == canonical.encode(stopping.store.event(4))
