"""Block 0: what it must be, and that nothing of it can be changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger.errors import BadCopyError, BlockRefusedError, LedgerError, NotNextError
from ledger.genesis import check_genesis, draft_genesis, genesis_payload
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import block as blocks
from protocol import canonical
from protocol.block import Block
from protocol.registry import Channel, Entry
from protocol.transaction import PAYLOAD_TYPE, Transaction
from tests import software_keys
from tests.chain_builder import Network


def sealed(network: Network, entries: list[Entry], by: list[str]) -> bytes:
    """A first set under the signatures of some administrators."""
    signers = [network.administrators[name] for name in by]
    payload = genesis_payload(network.name, entries)
    return canonical.encode(software_keys.envelope(PAYLOAD_TYPE, payload, signers))


def test_the_first_set(network: Network) -> None:
    """Block 0 gives the registry that the network was made with."""
    result = check_genesis(Block.decode(network.genesis()))
    assert result.registry.node_names == ("A", "B", "C")
    assert {"admin-1", "admin-2", "admin-3"} == set(result.registry.administrators)
    assert result.registry.channel.network == "test"


@pytest.mark.parametrize(
    "changed",
    [
        {"network": "other"},
        {"rules_version": 2},
        {"time": 1},
        {"previous": "ab" * 32},
        {"transaction_count": 2},
        {"transaction_root": "ab" * 32},
        {"outcome_root": "ab" * 32},
        {"registry_root": "ab" * 32},
        {"height": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_no_header_field_can_be_changed(network: Network, changed: dict[str, Any]) -> None:
    """A header with one field changed is refused, signed by the center again or not (time alone is the center's)."""
    good = Block.decode(network.genesis())
    header = msgspec.structs.replace(good.header, **changed)
    bare = blocks.unsigned(header, good.transactions, good.trees)
    with pytest.raises((BadCopyError, BlockRefusedError)):
        check_genesis(bare)
    if "time" not in changed:
        with pytest.raises(BlockRefusedError) as caught:
            check_genesis(network.sign(bare))
        assert caught.value.code == "not-genesis"


def test_unsigned_or_signed_by_a_stranger(network: Network) -> None:
    """The centers that the first set names sign block 0."""
    good = Block.decode(network.genesis())
    for signers in ([], [software_keys.ecdsa("a stranger")]):
        with pytest.raises(BadCopyError, match="genesis"):
            check_genesis(network.sign(good, by=signers))


@pytest.mark.parametrize(
    ("by", "good"), [(["admin-1"], False), (["admin-1"] * 3, False), (["admin-3", "admin-2"], True)]
)
def test_administrators_sign_the_first_set(network: Network, by: list[str], good: bool) -> None:
    """As many administrators as the set itself asks for must have signed it."""
    block = network.sign(draft_genesis(sealed(network, network.entries(), by), network.time))
    if good:
        check_genesis(block)
        return
    with pytest.raises(BlockRefusedError, match="administrators signed where 2 are needed") as caught:
        check_genesis(block)
    assert caught.value.code == "not-genesis"


def test_bad_administrators_signatures(network: Network) -> None:
    """A stranger's signature, or an administrator's over something else, spoils the set."""
    good = network.genesis_transaction()
    other = network.genesis_transaction(network.entries()[:-1])
    stranger = software_keys.ecdsa("a stranger").signature(PAYLOAD_TYPE, good.envelope.payload)
    for signatures in ((*good.envelope.signatures, stranger), other.envelope.signatures):
        raw = canonical.encode(msgspec.structs.replace(good.envelope, signatures=signatures))
        with pytest.raises(BlockRefusedError) as caught:
            check_genesis(network.sign(draft_genesis(raw, network.time)))
        assert caught.value.code == "not-genesis"


def _without(kind: str) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [entry for entry in entries if entry.__struct_config__.tag != kind]


def _channel(**changed: Any) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [
        msgspec.structs.replace(entry, **changed) if isinstance(entry, Channel) else entry for entry in entries
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("channel"), "inconsistent"),
        (_without("administrator"), "lock-out"),
        (_without("center"), "lock-out"),
        (_without("device"), "unknown-device"),
        (_without("node"), "unknown-node"),
        (_channel(administrators_needed=4), "lock-out"),
        (_channel(longest_validity=0), "lock-out"),
        (_channel(network="other"), "for network other"),
        (_channel(rules_version=2), "asks for rules 2"),
    ],
)
def test_a_set_that_does_not_hold_together(
    network: Network, change: Callable[[list[Entry]], list[Entry]], reason: str
) -> None:
    """The rules of the registry hold for the first set as well."""
    with pytest.raises(BlockRefusedError, match=reason) as caught:
        draft_genesis(network.genesis_transaction(change(network.entries())).raw, network.time)
    assert caught.value.code == "not-genesis"


def test_something_else_in_block_0(network: Network) -> None:
    """Block 0 holds one first set and no votes."""
    good = Block.decode(network.genesis())
    wish = network.evidence("x")
    for transactions, trees in (
        ([], []),
        ([wish], []),
        ([good.transactions[0], wish], []),
        (good.transactions, network.endorse([wish], by=("A",))),
        ([network.put(*network.entries())], []),
    ):
        with pytest.raises(BlockRefusedError) as caught:
            check_genesis(network.rebuilt(good, transactions=transactions, trees=trees))
        assert caught.value.code == "not-genesis"


def test_not_even_a_transaction(network: Network) -> None:
    """Bytes that are no transaction make no block 0."""
    with pytest.raises(BlockRefusedError, match="not what was expected"):
        draft_genesis(b"{}", network.time)


def test_create_stores_nothing_of_a_bad_one(network: Network, tmp_path: Path) -> None:
    """A store into which a bad block 0 was to go is as empty as before."""
    store = ChainStore.create(url_of(tmp_path / "chain.db"))
    good = network.genesis()
    first = Replica.create(ChainStore.create(url_of(tmp_path / "good.db")), good)
    later = network.block(first, []).encode()
    first.store.close()
    bad = network.sign(Block.decode(good), by=[]).encode()
    body = blocks.unsigned(Block.decode(good).header, [], []).encode()
    for data, error in ((bad, BadCopyError), (b"", BadCopyError), (later, NotNextError), (body, BadCopyError)):
        with pytest.raises(error):
            Replica.create(store, data)
        assert store.height() == -1
    store.close()


def test_every_byte_counts(network: Network) -> None:
    """No byte of block 0 can be changed without a ledger error."""
    good = network.genesis()
    for place in range(0, len(good), 37):
        bad = bytearray(good)
        bad[place] ^= 1
        with pytest.raises(LedgerError):
            _check(bytes(bad))
    check_genesis(Block.decode(good))


def _check(data: bytes) -> None:
    from ledger.replica import _decode  # noqa: PLC0415  the door by which bytes come in

    block = _decode(data)
    if block.encode() != data:
        raise AssertionError("decoding changed the block")
    check_genesis(block)


def test_a_later_first_set_is_invalid(network: Network, tmp_path: Path) -> None:
    """`registry.genesis` in a later block is recorded as invalid, whoever signed it."""
    replica = Replica.create(ChainStore.create(url_of(tmp_path / "chain.db")), network.genesis())
    wish: Transaction = network.registry("genesis", network.genesis_transaction().payload.arguments)
    outcomes = replica.apply(network.block(replica, [wish]).encode()).outcomes
    assert [outcome.code for outcome in outcomes] == ["not-genesis"]
    replica.store.close()
