"""The registry of a network folder: what is in force, and changes that its administrators sign."""

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from cli import keys
from cli.answers import TransactionStatus
from cli.api import Management
from cli.errors import CommandError, RefusedError
from cli.output import Output
from cli.plan import Layout, read_network
from ledger.genesis import check_genesis
from ledger.registry_view import RegistryView
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.block import VALID, Block
from protocol.registry import Entry

WAIT_SECONDS: Final = 20.0
LONGEST_VALIDITY_MS: Final = 600_000


def in_force(folder: Path) -> RegistryView:
    """The registry at the last block that a peer in the folder has stored; that of genesis where there is none."""
    layout, network = Layout(folder), read_network(folder)
    for peer in network.peers:
        database = layout.peer(peer) / "chain.db"
        if database.exists():
            store = ChainStore.open(url_of(database))
            try:
                return RegistryView(store.registry(store.height()))
            finally:
                store.close()
    return check_genesis(Block.decode(layout.genesis.read_bytes())).registry


def builtins(entry: Entry) -> Any:
    """An entry as it stands in a transaction's arguments."""
    return msgspec.json.decode(canonical.encode(entry))


def valid_until(registry: RegistryView) -> int:
    """A reasonable end of validity for a transaction that is signed now, in milliseconds since the epoch."""
    return int(time.time() * 1000) + min(registry.channel.longest_validity // 2, LONGEST_VALIDITY_MS)


def change(output: Output, folder: Path, operation: str, arguments: dict[str, Any]) -> None:
    """Sign a registry change by as many administrators as are needed, hand it in, and tell what became of it."""
    layout, network, registry = Layout(folder), read_network(folder), in_force(folder)
    needed = registry.channel.administrators_needed
    signers = network.administrators[:needed]
    payload = keys.payload(
        network.network, signers[0], f"registry.{operation}", arguments, valid_until=valid_until(registry)
    )
    identity, raw = keys.sign(payload, [keys.SoftwareKey.load(layout.administrator_key(name)) for name in signers])
    with Management(layout.socket("management")) as management:
        status = management.submit(raw, wait=WAIT_SECONDS)
    require_committed(status)
    output.say(f"Changed in block {status.height}, signed by {', '.join(signers)} (transaction {identity}).")
    output.result({"transaction": identity, "height": status.height, "signers": list(signers)})


def require_committed(status: TransactionStatus) -> None:
    """Raise what a status says when the transaction did not take effect."""
    if status.problem is not None:
        raise RefusedError(status.problem)
    if not status.final:
        raise CommandError(
            f"transaction {status.transaction} is still {status.status}",
            code="still-pending",
            advice="it may yet be committed: look at it again later",
        )
    if status.status != "committed" or status.code != VALID:
        raise CommandError(
            f"transaction {status.transaction} is {status.status} with outcome {status.code}", code=status.code or ""
        )
