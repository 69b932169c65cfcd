"""Blocks: one encoding, and every byte of it is committed, signed, or refused."""

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import block as blocks
from protocol import canonical, merkle
from protocol.block import Block, Outcome
from protocol.errors import BadSignatureError, MalformedError, ProtocolError
from tests import software_keys
from tests.protocol.samples import CENTER, block, transaction

pytestmark = pytest.mark.requirement("M-4")

BLOCK = block()
DATA = BLOCK.encode()


def test_decoding_is_the_inverse_of_encoding() -> None:
    """The same bytes, the same header, the same transactions."""
    again = Block.decode(DATA)
    assert again.encode() == DATA
    assert (again.header, again.authentication, again.trees) == (BLOCK.header, BLOCK.authentication, BLOCK.trees)
    assert [each.id for each in again.transactions] == [each.id for each in BLOCK.transactions]
    assert blocks.transaction_root(again.transactions, again.trees) == again.header.transaction_root
    blocks.verify_header(again.envelope, [CENTER.public], 1)


def test_the_authentication_data_covers_the_header() -> None:
    """It is SHA-256 over the header's canonical bytes, which the envelope carries."""
    expected = hashlib.sha256(BLOCK.envelope.payload).hexdigest()
    assert BLOCK.authentication == BLOCK.header.authentication == expected
    wrong = DATA.replace(BLOCK.authentication.encode(), b"00" * 32, 1)
    with pytest.raises(MalformedError, match="authentication data 0000000000000000… beside a header that gives"):
        Block.decode(wrong)


def _is_what_was_signed(data: bytes) -> bool:
    """Whether bytes pass for the block: decoded, the header signed, the body committed."""
    try:
        found = Block.decode(data)
        blocks.verify_header(found.envelope, [CENTER.public], 1)
    except ProtocolError:
        return False
    return found.header.transaction_root == blocks.transaction_root(found.transactions, found.trees)


@settings(max_examples=300)
@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_no_byte_can_be_changed(at: int, byte: int) -> None:
    """Every single-byte change is refused, or changes what the header commits."""
    assert _is_what_was_signed(DATA[:at] + bytes([byte]) + DATA[at + 1 :]) == (DATA[at] == byte)


@settings(max_examples=100)
@given(st.integers(0, len(DATA)), st.binary(min_size=1, max_size=3), st.booleans())
def test_no_byte_can_be_added_or_cut(at: int, extra: bytes, cut: bool) -> None:
    """Neither insertion nor truncation passes."""
    assert not _is_what_was_signed(DATA[:at] + extra + DATA[at:])
    if cut and at < len(DATA):
        assert not _is_what_was_signed(DATA[:at])


def test_the_order_of_transactions_is_committed() -> None:
    """Swapping two transactions, dropping one, or moving one to the trees changes the root."""
    first, second, third = BLOCK.transactions
    for wrong in ([second, first, third], [first, second], [first, second, third, third]):
        assert blocks.transaction_root(wrong, BLOCK.trees) != BLOCK.header.transaction_root
    assert blocks.transaction_root(BLOCK.transactions, ()) != BLOCK.header.transaction_root


def test_the_root_covers_client_signatures() -> None:
    """The same wish under another signature is another body, though its id is the same."""
    other = transaction(software_keys.ecdsa("another"), nonce=0)
    assert other.id == BLOCK.transactions[0].id
    assert blocks.transaction_root([other], ()) != blocks.transaction_root(BLOCK.transactions[:1], ())


def test_an_outcome_root_covers_id_code_and_writes() -> None:
    """It is the Merkle root over the canonical outcomes, in the order of the transactions."""
    outcomes = [Outcome("ab" * 32, "valid", "cd" * 32), Outcome("ba" * 32, "already-spent", "cd" * 32)]
    leaves = [
        merkle.leaf_hash(b'{"code":"%s","transaction":"%s","writes":"%s"}' % (code, of, b"cd" * 32))
        for of, code in ((b"ab" * 32, b"valid"), (b"ba" * 32, b"already-spent"))
    ]
    assert blocks.outcome_root(outcomes) == merkle.node_hash(*leaves).hex()
    assert blocks.outcome_root(outcomes[::-1]) != blocks.outcome_root(outcomes)


def test_centers_sign_headers_and_nobody_else() -> None:
    """A stranger's signature beside the center's spoils it; one center counts once; too few are named."""
    header = BLOCK.header.encode()
    other = software_keys.ecdsa("center-2")

    def signed(*by: software_keys.SoftwareKey) -> blocks.Envelope:
        return software_keys.envelope(blocks.PAYLOAD_TYPE, header, list(by))

    centers = [CENTER.public, other.public]
    blocks.verify_header(signed(CENTER), centers, 1)
    blocks.verify_header(signed(CENTER, other), centers, 2)
    with pytest.raises(BadSignatureError, match="0 center signatures where 1 are needed"):
        blocks.verify_header(signed(), centers, 1)
    with pytest.raises(BadSignatureError, match="1 center signatures where 2 are needed"):
        blocks.verify_header(signed(CENTER, CENTER), centers, 2)
    with pytest.raises(BadSignatureError, match="which is no center's"):
        blocks.verify_header(signed(CENTER, software_keys.ecdsa("a stranger")), centers, 1)
    with pytest.raises(BadSignatureError, match="which is no center's"):
        blocks.verify_header(signed(other), centers[:1], 1)


def test_a_block_takes_signatures_of_its_own_header_alone() -> None:
    """The envelope of another header does not fit."""
    other = msgspec.structs.replace(BLOCK.header, time=BLOCK.header.time + 1)
    with pytest.raises(MalformedError, match="the envelope is of another header"):
        BLOCK.signed(CENTER.envelope(blocks.PAYLOAD_TYPE, other.encode()))
    unsigned = blocks.unsigned(BLOCK.header, BLOCK.transactions, BLOCK.trees)
    assert unsigned.signed(BLOCK.envelope).encode() == DATA
    assert Block.decode(unsigned.encode()).envelope.signatures == ()


def test_a_transaction_inside_a_block_is_judged_like_any_other() -> None:
    """A body that holds a malformed transaction is no block, though everything around it is canonical."""
    raw = BLOCK.transactions[0].raw
    spaced = raw.replace(b'":"', b'": "', 1)
    for wrong in (spaced, b" " + raw, b"1", b"{}", canonical.encode(BLOCK.envelope)):
        with pytest.raises(MalformedError):
            Block.decode(DATA.replace(raw, wrong, 1))
