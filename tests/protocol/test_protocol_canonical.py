"""Canonical JSON: one encoding for one value, and everything else is refused."""

import json
import time
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from protocol import canonical
from protocol.canonical import MAX_BYTES, MAX_INTEGER, Digest, Name
from protocol.errors import LimitExceededError, MalformedError
from tests import software_keys
from tests.protocol.samples import PAYLOAD

INTEGERS = st.integers(-MAX_INTEGER, MAX_INTEGER)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(max_codepoint=127), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
_anything = msgspec.json.Decoder(dict[str, Any])


class _Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    data: bytes
    free: dict[str, Any]


_sample = msgspec.json.Decoder(_Sample)


@given(st.dictionaries(KEYS, VALUES))
def test_the_encoding_is_that_of_rfc_8785(value: dict[str, Any]) -> None:
    """An independent encoder gives the same bytes for every value that the protocol allows."""
    assert canonical.encode(value) == rfc8785.dumps(value)


@given(st.dictionaries(KEYS, VALUES))
def test_what_was_encoded_decodes_to_the_same(value: dict[str, Any]) -> None:
    """Decoding is the inverse of encoding, and the value is free of what free-form values must not hold."""
    again = canonical.decode(canonical.encode(value), _anything)
    assert again == value
    canonical.check_free_form(again, depth=64)


@given(st.dictionaries(KEYS, VALUES), st.data())
def test_another_spelling_of_the_same_value_is_refused(value: dict[str, Any], data: st.DataObject) -> None:
    """Whatever json.loads reads as the same value, one spelling alone is accepted."""
    spelling = json.dumps(
        value,
        ensure_ascii=data.draw(st.booleans()),
        sort_keys=data.draw(st.booleans()),
        separators=data.draw(st.sampled_from([(",", ":"), (", ", ": "), (",", " :")])),
    ).encode()
    if spelling == canonical.encode(value):
        assert canonical.decode(spelling, _anything) == value
    else:
        with pytest.raises(MalformedError):
            canonical.decode(spelling, _anything)


@given(st.binary(max_size=200))
def test_bytes_are_decoded_or_refused_and_nothing_else(data: bytes) -> None:
    """No input raises anything but the room's own error."""
    for decoder in (_anything, _sample, msgspec.json.Decoder(Any), msgspec.json.Decoder(msgspec.Raw)):
        try:
            value = canonical.decode(data, decoder)
        except MalformedError:
            continue
        assert canonical.encode(value) == data


GOOD = b'{"data":"AA==","free":{},"name":"a"}'
NOT_CANONICAL = {
    "white space before": (b" " + GOOD, "not canonical"),
    "white space after": (GOOD + b"\n", "not canonical"),
    "white space inside": (GOOD.replace(b":{", b": {"), "not canonical"),
    "a key twice": (GOOD.replace(b'"name"', b'"name":"a","name"'), "not canonical"),
    "a free key twice": (GOOD.replace(b"{}", b'{"a":1,"a":2}'), "not canonical"),
    "a free key twice with equal values": (GOOD.replace(b"{}", b'{"a":1,"a":1}'), "not canonical"),
    "keys out of order": (b'{"name":"a","data":"AA==","free":{}}', "not canonical"),
    "free keys out of order": (GOOD.replace(b"{}", b'{"b":1,"a":2}'), "not canonical"),
    "an escape that need not be": (GOOD.replace(b'"a"', b'"\\u0061"'), "not canonical"),
    "an upper-case escape": (GOOD.replace(b"{}", b'{"a":"\\u001F"}'), "not canonical"),
    "a long escape for a short one": (GOOD.replace(b"{}", b'{"a":"\\u000a"}'), "not canonical"),
    "an escaped solidus": (GOOD.replace(b"{}", b'{"a":"\\/"}'), "not canonical"),
    "a minus zero": (GOOD.replace(b"{}", b'{"a":-0}'), "not canonical"),
    "an exponent": (GOOD.replace(b"{}", b'{"a":1e2}'), "not canonical"),
    "padding bits in base64": (GOOD.replace(b"AA==", b"AB=="), "not canonical"),
    "a byte-order mark": (b"\xef\xbb\xbf" + GOOD, "not what was expected"),
    "base64 without padding": (GOOD.replace(b"AA==", b"AA"), "not what was expected"),
    "base64 for URLs": (GOOD.replace(b"AA==", b"_-8="), "not what was expected"),
    "a line feed in base64": (GOOD.replace(b"AA==", b"AA==\\n"), "not what was expected"),
    "NaN": (GOOD.replace(b"{}", b'{"a":NaN}'), "not what was expected"),
    "Infinity": (GOOD.replace(b"{}", b'{"a":Infinity}'), "not what was expected"),
    "a leading zero": (GOOD.replace(b"{}", b'{"a":01}'), "not what was expected"),
    "a plus sign": (GOOD.replace(b"{}", b'{"a":+1}'), "not what was expected"),
    "a comma too many": (GOOD.replace(b"{}", b'{"a":1,}'), "not what was expected"),
    "single quotes": (GOOD.replace(b'"a"', b"'a'"), "not what was expected"),
    "a bare control character": (GOOD.replace(b"{}", b'{"a":"\x01"}'), "not what was expected"),
    "an unknown field": (GOOD.replace(b'"name"', b'"more":1,"name"'), "unknown field"),
    "a missing field": (b'{"data":"AA==","free":{}}', "missing required field"),
    "null for a text": (GOOD.replace(b'"a"', b"null"), "not what was expected"),
    "a line feed after a name": (GOOD.replace(b'"a"', b'"a\\n"'), "not what was expected"),
    "an empty name": (GOOD.replace(b'"a"', b'""'), "not what was expected"),
    "a name that begins with a dot": (GOOD.replace(b'"a"', b'".a"'), "not what was expected"),
    "a name of 65 characters": (GOOD.replace(b'"a"', b'"%s"' % (b"a" * 65)), "not what was expected"),
    "a name that is not ASCII": (GOOD.replace(b'"a"', '"é"'.encode()), "not what was expected"),
    "a lone surrogate, escaped": (GOOD.replace(b"{}", b'{"a":"\\ud800"}'), "not"),
    "surrogates in the wrong order": (GOOD.replace(b"{}", b'{"a":"\\udc00\\ud800"}'), "not"),
    "a lone surrogate in UTF-8": (GOOD.replace(b"{}", b'{"a":"\xed\xa0\x80"}'), "not"),
    "overlong UTF-8": (GOOD.replace(b"{}", b'{"a":"\xc0\x80"}'), "not"),
    "cut UTF-8": (GOOD.replace(b"{}", b'{"a":"\xe2\x82"}'), "not"),
    "a key that is not UTF-8": (GOOD.replace(b"{}", b'{"\xff":1}'), "not"),
    "two values": (GOOD + GOOD, "not what was expected"),
    "nothing": (b"", "not what was expected"),
    "half a value": (GOOD[:-1], "not what was expected"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "not what was expected"),
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_what_is_not_canonical_is_refused(name: str) -> None:
    """Each classic of JSON trickery is refused, and the reason says what is wrong."""
    assert canonical.decode(GOOD, _sample) == _Sample("a", b"\0", {})
    data, reason = NOT_CANONICAL[name]
    with pytest.raises(MalformedError, match=reason):
        canonical.decode(data, _sample)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.0, "float"),
        (float("nan"), "float"),
        (MAX_INTEGER + 1, "beyond"),
        (2**64, "beyond"),
        (10**400, "beyond"),
        (-MAX_INTEGER - 1, "beyond"),
        ({"é": 1}, "not ASCII"),
        ({"a": {"\u2028": 1}}, "not ASCII"),
        ([{"a": [1.5]}], "float"),
    ],
)
def test_free_form_values_hold_what_all_encoders_agree_on(value: Any, reason: str) -> None:
    """Floats, large integers and keys that are not ASCII have no place anywhere in a free-form value."""
    with pytest.raises(MalformedError, match=reason):
        canonical.check_free_form(value)


@pytest.mark.parametrize("value", [True, False, None, MAX_INTEGER, -MAX_INTEGER, "é\u2028", [], {}, {"a": [{"b": 0}]}])
def test_free_form_values_hold_the_rest(value: Any) -> None:
    """Booleans, integers within ±(2^53-1), texts, lists and objects are free."""
    canonical.check_free_form(value)


def test_the_depth_of_a_free_form_value_is_limited() -> None:
    """Sixteen levels are allowed, seventeen are not."""
    nested: Any = []
    for _ in range(15):
        nested = [nested]
    canonical.check_free_form(nested)
    with pytest.raises(LimitExceededError, match="deeper than 16"):
        canonical.check_free_form([nested])


def test_the_first_difference_is_named() -> None:
    """Whoever writes a client finds the place of the error in the refusal."""
    with pytest.raises(MalformedError, match=r"at byte 8 expected b'\"AA==.*got b' \"AA=="):
        canonical.decode(GOOD.replace(b'"data":', b'"data": '), _sample)
    with pytest.raises(MalformedError, match="at byte 36 expected b'', got b' '"):
        canonical.decode(GOOD + b" ", _sample)


def test_what_is_too_large_is_refused_unread() -> None:
    """One byte beyond the limit is a limit exceeded, whatever the bytes say."""
    with pytest.raises(LimitExceededError, match=f"{MAX_BYTES + 1} bytes where at most {MAX_BYTES}"):
        canonical.decode(b"[" * (MAX_BYTES + 1), _anything)


_MIB = MAX_BYTES - 100
HOSTILE = {
    "deep lists": b"[" * _MIB,
    "deep lists, free": GOOD.replace(b"{}", b'{"a":' + b"[" * _MIB),
    "deep objects": b'{"a":' * (_MIB // 5),
    "a long number": GOOD.replace(b"{}", b'{"a":' + b"1" * _MIB + b"}"),
    "a long fraction": GOOD.replace(b"{}", b'{"a":0.' + b"1" * _MIB + b"}"),
    "a long exponent": GOOD.replace(b"{}", b'{"a":1e' + b"1" * _MIB + b"}"),
    "a long unknown field": b'{"' + b"x" * _MIB + b'":1}',
    "many unknown fields": b"{" + b'"x":1,' * (_MIB // 6),
    "one key many times": GOOD.replace(b"{}", b"{" + b'"x":1,' * (_MIB // 6) + b'"x":1}'),
    "a long name": GOOD.replace(b'"a"', b'"' + b"a" * _MIB + b'"'),
    "a difference at the end": GOOD.replace(b"{}", b'{"a":"' + b"a" * _MIB + b'" }'),
    "many escapes": GOOD.replace(b"{}", b'{"a":"' + b"\\u0061" * (_MIB // 6) + b'"}'),
    "a long key that is not ASCII": GOOD.replace(b"{}", b'{"' + "é".encode() * (_MIB // 2) + b'":1.5}'),
    "much white space": b" " * _MIB,
    "long base64 with padding bits": GOOD.replace(b"AA==", b"A" * (_MIB // 4 * 4) + b"AB=="),
    "zeros": b"\0" * _MIB,
}


def _decode_and_walk(data: bytes) -> None:
    canonical.check_free_form(canonical.decode(data, _sample).free)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte_is_refused_quickly(name: str) -> None:
    """A refusal takes less than 100 ms and repeats little of the message."""
    began = time.thread_time()
    with pytest.raises(MalformedError) as refused:
        _decode_and_walk(HOSTILE[name])
    assert time.thread_time() - began < 0.1
    assert len(str(refused.value)) < 1000


def test_an_envelope_of_another_type_is_refused() -> None:
    """The payload type separates the domains: a transaction's envelope is no header's."""
    from protocol import block, endorsement  # noqa: PLC0415  needed here alone

    sealed = software_keys.ecdsa("c1").envelope("application/json", canonical.encode(PAYLOAD))
    for decode in (block.decode_header, endorsement.decode_head):
        with pytest.raises(MalformedError, match="payload type 'application/json' where"):
            decode(sealed)


def test_digests_are_lower_case() -> None:
    """There is one way to write a digest."""
    decoder = msgspec.json.Decoder(Digest)
    assert canonical.decode(b'"' + b"ab" * 32 + b'"', decoder) == "ab" * 32
    for wrong in (b"AB" * 32, b"ab" * 31, b"ab" * 32 + b"\\n", b"0x" + b"ab" * 31):
        with pytest.raises(MalformedError):
            canonical.decode(b'"' + wrong + b'"', decoder)
