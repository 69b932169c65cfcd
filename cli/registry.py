"""The registry of a network folder: what is in force, and changes that its administrators sign."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from cli import keys, role_holder
from cli.answers import TransactionStatus
from cli.api import Management
from cli.errors import CommandError, RefusedError, UnreachableError
from cli.output import Output
from cli.plan import Layout, read_network
from ledger.genesis import check_genesis
from ledger.registry_view import RegistryView
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.block import VALID, Block
from protocol.envelope import Envelope, pae_digest
from protocol.registry import Entry, decode_entry
from protocol.transaction import PAYLOAD_TYPE

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
    return founding(folder)


def founding(folder: Path) -> RegistryView:
    """The registry of block 0: how the network was made stands there for ever."""
    return check_genesis(Block.decode(Layout(folder).genesis.read_bytes())).registry


def head(folder: Path) -> tuple[int, int]:
    """Height and block time (ms) of the chain: as the management service says, else as a peer has stored it."""
    layout = Layout(folder)
    try:
        with Management(layout.socket("management")) as management:
            info = management.network()
            return info.height, info.time
    except (UnreachableError, httpx2.HTTPError):
        return _stored_head(layout, read_network(folder).peers)


def _stored_head(layout: Layout, peers: Sequence[str]) -> tuple[int, int]:
    best = (0, Block.decode(layout.genesis.read_bytes()).header.time)
    for peer in peers:
        database = layout.peer(peer) / "chain.db"
        if database.exists():
            store = ChainStore.open(url_of(database))
            try:
                event = store.event(store.height())
            finally:
                store.close()
            if event and event.height > best[0]:
                best = (event.height, event.time)
    return best


def entry(view: RegistryView, key: str) -> Entry:
    """The entry that stands under `kind/name`."""
    return decode_entry(key, view.entries[key])


def builtins(entry: Entry) -> Any:
    """An entry as it stands in a transaction's arguments."""
    return msgspec.json.decode(canonical.encode(entry))


def valid_until(registry: RegistryView) -> int:
    """A reasonable end of validity for a transaction that is signed now, in milliseconds since the epoch."""
    return int(time.time() * 1000) + min(registry.channel.longest_validity // 2, LONGEST_VALIDITY_MS)


class Committed(msgspec.Struct, frozen=True):
    """A registry change that took effect: its transaction, the block that holds it, and who signed."""

    transaction: str
    height: int
    signers: tuple[str, ...]


def commit(folder: Path, operation: str, arguments: dict[str, Any], administrators: Sequence[str] = ()) -> Committed:
    """Sign a registry change by administrators, as many as are needed unless some are named, and see it committed.

    Raises `RefusedError`, or `CommandError` whose code is the outcome's.
    """
    layout, network, registry = Layout(folder), read_network(folder), in_force(folder)
    known = role_holder.reachable(folder, network.administrators)
    signers = tuple(administrators) or known[: registry.channel.administrators_needed]
    payload = keys.payload(
        network.network, signers[0], f"registry.{operation}", arguments, valid_until=valid_until(registry)
    )
    signatures = role_holder.sign(folder, signers, payload, PAYLOAD_TYPE)
    identity, raw = pae_digest(PAYLOAD_TYPE, payload), canonical.encode(Envelope(payload, PAYLOAD_TYPE, signatures))
    with Management(layout.socket("management")) as management:
        status = management.submit(raw, wait=WAIT_SECONDS)
    require_committed(status)
    return Committed(identity, status.height or 0, signers)


def change(output: Output, folder: Path, operation: str, arguments: dict[str, Any]) -> None:
    """Sign a registry change by as many administrators as are needed, hand it in, and tell what became of it."""
    done = commit(folder, operation, arguments)
    output.say(f"Changed in block {done.height}, signed by {', '.join(done.signers)} (transaction {done.transaction}).")
    output.result({"transaction": done.transaction, "height": done.height, "signers": list(done.signers)})


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
