"""Distinct devices: what is one token, and an exact search against brute force."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import distinct, policy
from protocol.errors import LimitExceededError
from protocol.policy import PolicyResult
from protocol.registry import Device, Token

pytestmark = pytest.mark.requirement("E-5", "E-22")

CHANNEL = ("A", "B", "C", "D", "E")


def _device(name: str, serial: str, *group: str, model: str = "m") -> Device:
    return Device(name, b"\x00" * 91, Token("maker", model, serial, group))


class TestTokens:
    """Which devices are one token."""

    def test_two_slots_of_one_box_are_one_token(self) -> None:
        """The same maker, model and serial is the same token; another model or serial is another."""
        found = distinct.tokens(
            [_device("a", "1"), _device("b", "1"), _device("c", "2"), _device("d", "1", model="other")]
        )
        assert found == {"a": "a", "b": "a", "c": "c", "d": "d"}

    def test_a_group_is_one_token(self) -> None:
        """A device on a high-availability group is one token with every device on one of its serials."""
        found = distinct.tokens([_device("a", "1"), _device("b", "2"), _device("c", "9", "1", "2"), _device("d", "3")])
        assert found == {"a": "a", "b": "a", "c": "a", "d": "d"}

    def test_the_order_does_not_matter(self) -> None:
        """The same devices in any order give the same tokens."""
        devices = [_device("a", "1"), _device("c", "2"), _device("b", "9", "2", "1"), _device("d", "3", "4")]
        first = distinct.tokens(devices)
        assert all(distinct.tokens(order) == first for order in itertools.permutations(devices))

    def test_what_two_tokens_have_in_common(self) -> None:
        """Serials count under one maker and model alone."""
        assert distinct.overlap(_device("a", "1", "2").token, _device("b", "2", "3").token) == {"2"}
        assert distinct.overlap(_device("a", "1").token, _device("b", "1", model="other").token) == frozenset()


@pytest.mark.parametrize(
    ("text", "available", "chosen"),
    [
        ("AND('A', 'B')", {"A": "1", "B": "2"}, {"A": "1", "B": "2"}),
        ("AND('A', 'B')", {"A": "1", "B": "1"}, None),
        ("AND('A', 'B')", {"A": "12", "B": "1"}, {"A": "2", "B": "1"}),
        ("AND('A', 'B', 'C')", {"A": "12", "B": "12", "C": "12"}, None),
        ("OutOf(2, 'A', 'B', 'C')", {"A": "1", "B": "1", "C": "1"}, None),
        ("OutOf(2, 'A', 'B', 'C')", {"A": "1", "B": "1", "C": "2"}, {"A": "1", "C": "2"}),
        ("ANY", {"C": "1"}, {"C": "1"}),
        ("ALL", dict.fromkeys("ABCD", "12345"), None),
        ("ALL", dict.fromkeys("ABCDE", "1234"), None),
        ("ALL", dict.fromkeys("ABCDE", "12345"), dict(zip("ABCDE", "12345", strict=True))),
        ("AND(OR('A', 'B'), OR('A', 'C'))", {"A": "1", "B": "1", "C": "1"}, {"A": "1"}),
        ("AND(OR('A', 'B'), OR('A', 'C'))", {"B": "1", "C": "1"}, None),
        ("OR(AND('A', 'B'), 'C')", {"A": "1", "B": "1", "C": "1"}, {"C": "1"}),
    ],
)
def test_nodes_and_tokens_are_matched(text: str, available: dict[str, str], chosen: dict[str, str] | None) -> None:
    """Each node that counts has a token of its own; a node that stands in two lists needs one token only."""
    given_tokens = {node: tuple(each) for node, each in available.items()}
    assert distinct.choose(policy.parse(text), CHANNEL, given_tokens) == chosen


def test_who_stands_first_is_preferred() -> None:
    """A caller spreads the load by the order of nodes and of tokens."""
    parsed = policy.parse("OutOf(2, 'A', 'B', 'C')")
    assert distinct.choose(parsed, CHANNEL, {"C": "21", "A": "12", "B": "12"}) == {"C": "2", "A": "1"}


class TestVotes:
    """Judging votes."""

    def test_one_token_speaks_once(self) -> None:
        """Two approvals on one token satisfy nothing that needs two nodes; a second token could still help."""
        parsed = policy.parse("OutOf(2, 'A', 'B', 'C')")
        approved = {"A": ["1"], "B": ["1"]}
        expected = PolicyResult(satisfied=False, possible=True, approved=("A", "B"), refused=(), missing=("C",))
        assert expected == distinct.evaluate(parsed, CHANNEL, approved, (), {"C": ["2"]})
        assert expected == distinct.evaluate(parsed, CHANNEL, approved, (), {"A": ["1", "2"]})
        assert not distinct.evaluate(parsed, CHANNEL, approved, (), {"C": ["1"], "A": ["1"]}).possible

    def test_who_approves_and_refuses_counts_as_refusing(self) -> None:
        """A node whose second device refuses has refused, whatever its first device said."""
        parsed = policy.parse("OutOf(2, 'A', 'B', 'C')")
        result = distinct.evaluate(parsed, CHANNEL, {"A": ["1"], "B": ["2"]}, ["B"], {"B": ["3"], "C": ["1"]})
        assert result == PolicyResult(satisfied=False, possible=False, approved=("A",), refused=("B",), missing=("C",))


NODES = st.sampled_from(CHANNEL)
RULES = st.recursive(
    NODES.map(lambda name: f"'{name}'") | st.sampled_from(["ALL", "ANY", "MAJORITY", "MAJORITY(1/2)"]),
    lambda inner: st.builds(
        lambda rules, share: (
            f"OutOf({max(1, round(share * len(dict.fromkeys(rules))))}, {', '.join(dict.fromkeys(rules))})"
        ),
        st.lists(inner, min_size=1, max_size=5),
        st.floats(0, 1),
    ),
    max_leaves=10,
)
VOUCHERS = st.dictionaries(NODES, st.frozensets(st.sampled_from("1234"), min_size=1).map(sorted))


def _by_brute_force(parsed: policy.Policy, available: dict[str, list[str]]) -> bool:
    """Every way to give every node one of its tokens or none."""
    choices = [[None, *each] for each in available.values()]
    for assigned in itertools.product(*choices):
        used = [token for token in assigned if token is not None]
        nodes = [node for node, token in zip(available, assigned, strict=True) if token is not None]
        if len(set(used)) == len(used) and parsed.evaluate(CHANNEL, nodes, ()).satisfied:
            return True
    return False


@given(RULES, VOUCHERS)
def test_the_search_is_exact(text: str, available: dict[str, list[str]]) -> None:
    """It finds nodes with tokens of their own exactly when there are any, and none to spare."""
    parsed = policy.parse(text)
    chosen = distinct.choose(parsed, CHANNEL, available)
    assert (chosen is not None) == _by_brute_force(parsed, available)
    if chosen is None:
        return
    assert len(set(chosen.values())) == len(chosen)
    assert all(token in available[node] for node, token in chosen.items())
    assert parsed.evaluate(CHANNEL, chosen, ()).satisfied
    for node in chosen:
        assert not parsed.evaluate(CHANNEL, chosen.keys() - {node}, ()).satisfied


@given(RULES, VOUCHERS, st.frozensets(NODES), VOUCHERS)
def test_a_result_agrees_with_brute_force(
    text: str, approved: dict[str, list[str]], refused: frozenset[str], reachable: dict[str, list[str]]
) -> None:
    """Satisfied by the votes there are, possible with those that could still come; refusals count for both."""
    parsed = policy.parse(text)
    result = distinct.evaluate(parsed, CHANNEL, approved, refused, reachable)
    now = {node: each for node, each in approved.items() if node not in refused}
    later = {
        node: sorted({*approved.get(node, ()), *reachable.get(node, ())})
        for node in (approved.keys() | reachable.keys()) - refused
    }
    assert result.satisfied == _by_brute_force(parsed, now)
    assert result.possible == _by_brute_force(parsed, later)
    assert not result.satisfied or parsed.evaluate(CHANNEL, approved, refused).satisfied


@given(RULES, st.frozensets(NODES))
def test_the_ways_are_the_policy(text: str, approved: frozenset[str]) -> None:
    """A policy holds when, and only when, all demands of one of its ways are met."""
    parsed = policy.parse(text)
    met = any(
        all(len(demand.nodes & approved) >= demand.needed for demand in way)
        for way in itertools.islice(parsed.ways(CHANNEL), 20_000)
    )
    assert met == parsed.evaluate(CHANNEL, approved, ()).satisfied


class TestBounds:
    """What is refused before it is in force."""

    @pytest.mark.parametrize(
        "text",
        [
            "ALL",
            "MAJORITY",
            "OutOf(2, " + ", ".join(f"AND('n{n}', 'n{n + 1}')" for n in range(0, 40, 2)) + ")",
            "AND(" + ", ".join(f"OR('n{n}', 'n{n + 1}')" for n in range(0, 60, 2)) + ")",
            "AND(MAJORITY(1/2), 'n1', 'n2')",
        ],
    )
    def test_what_people_write_is_taken(self, text: str) -> None:
        """Sets, majorities, k of n and nestings of distinct nodes are within the bounds."""
        distinct.check_size(policy.parse(text), [f"n{n}" for n in range(64)])

    @pytest.mark.parametrize(
        ("text", "count", "message"),
        [
            ("ALL", 65, "may count 64 nodes, not 65; name fewer"),
            ("AND(MAJORITY, OutOf(10, " + ", ".join(f"'n{n}'" for n in range(20)) + "))", 60, "more than 256 cases"),
            ("OutOf(8, " + ", ".join(f"OR('n{n}', 'n{n + 1}')" for n in range(0, 32, 2)) + ")", 60, "more than 256"),
            ("AND(" + ", ".join(f"OR('n{n}', 'n{n + 1}')" for n in range(60)) + ")", 64, "more than 256 cases"),
            ("OutOf(400, " + ", ".join(["ANY"] * 800) + ", 'n1')", 64, "more than 256 cases"),
        ],
    )
    def test_what_could_take_too_long_is_refused(self, text: str, count: int, message: str) -> None:
        """Too many nodes, or too many cases, are refused at once and said in words."""
        began = time.thread_time()
        with pytest.raises(LimitExceededError, match=message):
            distinct.check_size(policy.parse(text), [f"n{n}" for n in range(count)])
        assert time.thread_time() - began < 1

    def test_the_largest_are_judged_in_time(self) -> None:
        """What is just within the bounds is judged within a second, also when the answer is no."""
        members = [f"n{n}" for n in range(64)]
        parsed = policy.parse("AND(OutOf(20, " + ", ".join(f"'n{n}'" for n in range(36)) + "), OutOf(20, "
                              + ", ".join(f"'n{n}'" for n in range(28, 64)) + "))")  # fmt: skip
        distinct.check_size(parsed, members)
        few = {node: [f"t{n}" for n in range(31)] for node in members}
        began = time.thread_time()
        assert distinct.choose(parsed, members, few) is None
        assert time.thread_time() - began < 1
