"""`hsm-endorser chain verify`: verify a whole chain from genesis in a fresh replica, trusting nobody."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli.errors import UnreachableError, UsageError, VerificationFailedError
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network
from ledger.errors import LedgerError, StoreError
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.errors import ProtocolError

app = typer.Typer(help="The chain: verify all of it again.", no_args_is_help=True)


class ChainReport(msgspec.Struct, frozen=True):
    """A chain that verified: its last height, the authentication data there, the digest of the state."""

    source: str
    network: str
    height: int
    authentication: str
    state_digest: str
    transactions: int


class Claim(msgspec.Struct, frozen=True):
    """What a peer holds: its height, and the digest of its state there."""

    height: int
    state_digest: str


@app.callback()
def _group() -> None:
    """Keep `verify` a command of its own."""


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(help="A peer's folder (DIR/peers/NAME), or a network folder: all peers.")],
    genesis: Annotated[Path | None, typer.Option(help="The genesis.json to trust; by default the folder's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify and execute every block from genesis on in a fresh replica, and compare the state with the peer's own."""
    output = Output(as_json=as_json)
    folders = _peer_folders(source)
    trusted = (genesis or Layout(folders[0].parent.parent).genesis).read_bytes()
    reports = [_verify_one(output, folder, trusted) for folder in folders]
    _compare(folders, reports)
    output.table(
        "Verified from genesis on",
        ["peer", "height", "transactions", "head", "state digest"],
        [[each.source, each.height, each.transactions, each.authentication, each.state_digest] for each in reports],
    )
    output.result({"verified": True, "chains": [msgspec.to_builtins(each) for each in reports]})


def claim_of(source: Path) -> Claim:
    """What the peer in a folder holds now."""
    with _opened(source / "chain.db") as store:
        return Claim(*store.digest())


def verify_store(
    source: Path, genesis: bytes, claim: Claim, progress: Callable[[int], None] = lambda _done: None
) -> ChainReport:
    """Verify the blocks in a peer's database up to the claimed height, and the claimed state that they lead to.

    Raises `VerificationFailedError`.
    """
    with _opened(source / "chain.db") as store, tempfile.TemporaryDirectory(prefix="hsm-endorser-") as scratch:
        fresh = ChainStore.create(url_of(Path(scratch) / "chain.db"))
        try:
            replica, transactions = _replay(store, fresh, genesis, claim.height, progress)
            _, digest = fresh.digest()
        finally:
            fresh.close()
    if digest != claim.state_digest:
        raise VerificationFailedError(
            f"{source}: executing its blocks gives state {digest}, the peer holds {claim.state_digest}",
            code="diverged",
            advice="move the peer's chain.db away and let it fetch the chain anew",
        )
    return ChainReport(source.name, replica.network, claim.height, replica.authentication, digest, transactions)


def _replay(
    store: ChainStore, fresh: ChainStore, genesis: bytes, height: int, progress: Callable[[int], None]
) -> tuple[Replica, int]:
    at, transactions = 0, 0
    try:
        if store.block(0) != genesis:
            raise VerificationFailedError("the chain does not begin with this genesis block", code="other-network")
        replica = Replica.create(fresh, genesis)
        for at in range(1, height + 1):
            data = store.block(at)
            if data is None:
                raise VerificationFailedError(f"block {at} is missing", code="missing-block")
            transactions += len(replica.apply(data).block.transactions)
            progress(at)
    except (LedgerError, ProtocolError) as error:
        raise VerificationFailedError(f"block {at} does not hold: {error}", code=error.code) from None
    return replica, transactions


def _verify_one(output: Output, folder: Path, genesis: bytes) -> ChainReport:
    claim = claim_of(folder)
    with output.progress(f"{folder.name}: verifying blocks", claim.height) as progress:
        return verify_store(folder, genesis, claim, progress)


def _compare(folders: list[Path], reports: list[ChainReport]) -> None:
    """Chains of one network: the shorter is the beginning of the longer."""
    lowest = min(reports, key=lambda report: report.height)
    for folder, report in zip(folders, reports, strict=True):
        with _opened(folder / "chain.db") as store:
            event = store.event(lowest.height)
        if event is None or event.authentication != lowest.authentication:
            raise VerificationFailedError(
                f"{report.source} and {lowest.source} have different blocks at height {lowest.height}", code="fork"
            )


def _peer_folders(source: Path) -> list[Path]:
    if (source / "peer.toml").exists():
        return [source.absolute()]
    layout = Layout(source.absolute())
    return [layout.peer(name) for name in read_network(source).peers]


@contextmanager
def _opened(database: Path) -> Iterator[ChainStore]:
    if not database.exists():
        raise UsageError(f"there is no chain at {database}", advice="name a peer's folder: DIR/peers/NAME")
    try:
        store = ChainStore.open(url_of(database))
    except StoreError as error:
        raise UnreachableError(str(error)) from None
    try:
        yield store
    finally:
        store.close()
