"""What gets into the next block, what is carried over, and that no refusal costs an acknowledged transaction."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.errors import BlockRefusedError
from ledger.replica import CheckedBlock, Replica
from ledger.store import ChainStore, url_of
from management.draft import draft
from management.pool import Cast, CheckedTree, Endorsed, Record
from protocol import canonical
from protocol.canonical import TxId
from protocol.endorsement import Vote, approval, decode_head
from protocol.transaction import Transaction
from tests.chain_builder import Network


@pytest.fixture
def network() -> Network:
    """Two of three nodes must approve."""
    return Network()


@pytest.fixture
def replica(tmp_path: Path, network: Network) -> Iterator[Replica]:
    """A replica at block 0."""
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    yield Replica.create(store, network.genesis())
    store.close()


def endorsed(network: Network, transactions: list[Transaction], *, others: int = 0) -> list[Endorsed]:
    """The transactions, approved by A and B in one tree each, with `others` foreign votes in the same trees."""
    casts: list[dict[str, Cast]] = [{} for _ in transactions]
    for node in ("A", "B"):
        votes = [approval(network.name, transaction.id, node) for transaction in transactions]
        votes += [Vote(network.name, f"{number:064x}", node, "approve", "") for number in range(others)]
        device = f"device-{node.lower()}"
        tree = network.tree(device, votes)
        heads = tuple(decode_head(branch.head) for branch in tree.branches)
        checked = CheckedTree(tree, heads, len(canonical.encode(tree)))
        for cast, vote in zip(casts, votes, strict=False):
            cast[node] = Cast(checked, vote.leaf().hex(), device)
    return [
        Endorsed(Record(transaction, index, 0, "endorsed"), cast)
        for index, (transaction, cast) in enumerate(zip(transactions, casts, strict=True))
    ]


def ids(checked: CheckedBlock | None) -> list[TxId]:
    """The transactions of a drafted block."""
    assert checked is not None
    return [transaction.id for transaction in checked.block.transactions]


def room_for(monkeypatch: pytest.MonkeyPatch, size: int, *, known: bool = True) -> None:
    """Blocks have this room, in bytes; whoever drafts knows it or does not."""
    monkeypatch.setattr("ledger.replica.BODY_BYTES", size)
    if known:
        monkeypatch.setattr("management.draft.ROOM", size)


@pytest.mark.requirement("M-5")
@pytest.mark.parametrize("known", [True, False])
def test_what_has_no_room_is_carried_over(
    network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    """A block that would be too large takes the oldest; nothing is dropped, and the next block takes the others."""
    waiting = endorsed(network, [network.evidence(f"s-{number}") for number in range(20)])
    trees = sum({id(cast.tree): cast.tree.size for each in waiting for cast in each.casts.values()}.values())
    room_for(monkeypatch, trees + 11 * len(waiting[0].record.transaction.raw), known=known)
    made = draft(replica, waiting, network.time, empty=False)
    first = ids(made.checked)
    assert (made.dropped, made.again) == ([], [])
    assert 5 <= len(first) <= 11
    assert first == [each.record.id for each in waiting[: len(first)]]
    assert made.checked is not None
    replica.append(replica.check(network.sign(made.checked.block)))
    rest = waiting[len(first) :]
    made = draft(replica, rest, network.time, empty=False)
    assert (made.dropped, made.again) == ([], [])
    assert ids(made.checked) == [each.record.id for each in rest[: len(ids(made.checked))]]


@pytest.mark.requirement("M-5")
def test_trees_count_among_the_bytes_of_a_block(
    network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction whose trees fill a block by themselves is endorsed again, and holds nobody up."""
    large = endorsed(network, [network.evidence("large")], others=2000)
    small = endorsed(network, [network.evidence("small")])
    room_for(monkeypatch, 100_000)
    made = draft(replica, [*large, *small], network.time, empty=False)
    assert ids(made.checked) == [small[0].record.id]
    assert ([record.id for record in made.again], made.dropped) == ([large[0].record.id], [])


@pytest.mark.parametrize("position", [0, 30, 63])
def test_refused_transaction_costs_no_second_round_for_each(
    network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """One transaction that the chain refuses is dropped with its reason; the block is drafted twice at most."""
    wishes = [network.evidence(f"s-{number}") for number in range(64)]
    refused = wishes[position].id
    attempts = 0
    drafting = Replica.draft

    def counting(self: Replica, time: int, transactions: list[Transaction], trees: list[object]) -> CheckedBlock:
        nonlocal attempts
        attempts += 1
        if any(transaction.id == refused for transaction in transactions):
            raise BlockRefusedError("made-up", f"transaction {refused}: the chain does not take it", refused)
        return drafting(self, time, transactions, trees)  # type: ignore[arg-type]

    monkeypatch.setattr(Replica, "draft", counting)
    made = draft(replica, endorsed(network, wishes), network.time, empty=False)
    assert [(record.id, refusal.code) for record, refusal in made.dropped] == [(refused, "made-up")]
    assert attempts == 2
    assert len(ids(made.checked)) == (position or 32)


def test_many_refused_ones_are_no_quadratic_work(
    network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are refused, all attempts of one cut together cover at most twice the block."""
    drafted: list[int] = []

    def refusing(_self: Replica, _time: int, transactions: list[Transaction], _trees: object) -> CheckedBlock:
        drafted.append(len(transactions))
        raise BlockRefusedError("made-up", "the chain takes nothing today", transactions[0].id)

    monkeypatch.setattr(Replica, "draft", refusing)
    waiting = endorsed(network, [network.evidence(f"s-{number}") for number in range(64)])
    made = draft(replica, waiting, network.time, empty=False)
    assert made.checked is None
    assert sum(drafted) < 2 * 64 + 8
    assert len(made.dropped) == len(drafted)


def test_what_counts_later_is_carried_over(network: Network, replica: Replica) -> None:
    """A transaction that counts from a later height stays in the pool."""
    early = endorsed(network, [network.evidence("later", valid_from=9), network.evidence("now")])
    made = draft(replica, early, network.time, empty=False)
    assert ids(made.checked) == [early[1].record.id]
    assert (made.dropped, made.again) == ([], [])
