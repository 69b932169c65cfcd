"""Endorsement policies: Fabric's examples, majorities, errors that point at their place, and laws."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import policy
from protocol.errors import PolicySyntaxError

pytestmark = pytest.mark.requirement("E-5")

CHANNEL = ("A", "B", "C", "D", "E", "F", "G")


def _names(names: str) -> list[str]:
    return list(names)


@pytest.mark.parametrize(
    ("text", "enough", "too_little"),
    [
        ("AND('Org1', 'Org2', 'Org3')", ["Org1 Org2 Org3"], ["Org1 Org2", "Org2 Org3", ""]),
        ("OR('Org1', 'Org2')", ["Org1", "Org2", "Org1 Org2"], ["Org3", ""]),
        ("OR('Org1', AND('Org2', 'Org3'))", ["Org1", "Org2 Org3"], ["Org2", "Org3", ""]),
        ("OutOf(1, 'Org1', 'Org2')", ["Org1", "Org2"], ["Org3", ""]),
        ("OutOf(2, 'Org1', 'Org2')", ["Org1 Org2"], ["Org1", "Org2"]),
        ("OutOf(2, 'Org1', 'Org2', 'Org3')", ["Org1 Org2", "Org1 Org3"], ["Org1", "Org3"]),
        ("'Org1'", ["Org1"], ["Org2", ""]),
    ],
)
def test_the_examples_of_fabric(text: str, enough: list[str], too_little: list[str]) -> None:
    """The expressions of Fabric's documentation mean here what they mean there."""
    parsed = policy.parse(text)
    for names in enough:
        assert parsed.evaluate(CHANNEL, names.split(), ()).satisfied, names
    for names in too_little:
        assert not parsed.evaluate(CHANNEL, names.split(), ()).satisfied, names


@pytest.mark.parametrize(
    ("text", "enough", "too_little"),
    [
        ("AND('A', 'B', 'C', 'F')", "ABCF", "ABCDEG"),
        ("OutOf(3, 'A', 'B', 'C', 'D', 'E', 'F', 'G')", "BEG", "BE"),
        ("ALL", "ABCDEFG", "ABCDEF"),
        ("ANY", "D", ""),
        ("OutOf(2, 'A', OutOf(2, 'B', 'C', 'D'), AND('E', OR('F', 'G')))", "BCEG", "ABEE"),
        ('and("A","B")', "AB", "A"),
        ("  OUTOF ( 1 ,\n'A' ,\t'B' ) ", "B", "C"),
    ],
)
def test_sets_shares_and_nesting(text: str, enough: str, too_little: str) -> None:
    """A named set, k of n, the whole channel, and any nesting of these."""
    parsed = policy.parse(text)
    assert parsed.evaluate(CHANNEL, _names(enough), ()).satisfied
    assert not parsed.evaluate(CHANNEL, _names(too_little), ()).satisfied


@pytest.mark.requirement("E-15")
@pytest.mark.parametrize(
    ("text", "members", "needed"),
    [
        ("MAJORITY", 1, 1),
        ("MAJORITY", 3, 3),  # more than two thirds of three
        ("MAJORITY", 4, 3),
        ("MAJORITY", 6, 5),
        ("MAJORITY", 7, 5),
        ("MAJORITY(1/2)", 1, 1),
        ("MAJORITY(1/2)", 2, 2),
        ("MAJORITY(1/2)", 3, 2),
        ("MAJORITY(1/2)", 4, 3),
        ("MAJORITY(3/4)", 4, 4),
        ("MAJORITY(1/3)", 3, 2),
        ("MAJORITY('A', 'B', 'C')", 7, 3),
        ("MAJORITY(1/2, 'A', 'B', 'C', 'D')", 7, 3),
    ],
)
def test_a_majority_is_more_than_its_share(text: str, members: int, needed: int) -> None:
    """Exactly the share is not enough; two thirds are the share unless another is named."""
    channel = CHANNEL[:members]
    parsed = policy.parse(text)
    assert parsed.evaluate(channel, channel[:needed], ()).satisfied
    assert not parsed.evaluate(channel, channel[: needed - 1], ()).satisfied


@pytest.mark.requirement("E-15")
@pytest.mark.parametrize(
    ("text", "enough", "too_little"),
    [
        ("AND(MAJORITY(1/2), 'A')", "ABCD", "BCDEFG"),
        ("OR(ALL, AND('A', MAJORITY(1/2, 'B', 'C', 'D')))", "ACD", "BCDEFG"),
        ("MAJORITY(1/2, AND('A', 'B'), 'C', OutOf(2, 'D', 'E', 'F'))", "CDF", "ACD"),
        ("MAJORITY(MAJORITY(1/2, 'A', 'B', 'C'), MAJORITY(1/2, 'D', 'E', 'F'), 'G')", "ABEFG", "ABCDEF"),
        ("OutOf(2, ALL, MAJORITY, MAJORITY(1/2))", "ABCDE", "ABCD"),
    ],
)
def test_vote_rules_nest(text: str, enough: str, too_little: str) -> None:
    """All, and more than a share, of nodes, of the channel, or of whole rules, stand wherever a rule can stand."""
    parsed = policy.parse(text)
    assert parsed.evaluate(CHANNEL, enough, ()).satisfied
    assert not parsed.evaluate(CHANNEL, too_little, ()).satisfied


@pytest.mark.parametrize("text", ["ALL", "MAJORITY", "ANY"])
def test_an_empty_channel_approves_nothing(text: str) -> None:
    """All of nobody is nobody."""
    assert not policy.parse(text).evaluate((), ("A",), ()).satisfied


def test_nodes_outside_the_channel_are_no_part_of_its_majority() -> None:
    """Approvals of strangers do not count."""
    assert not policy.parse("MAJORITY").evaluate("ABC", ["A", "X", "Y", "Z"], ()).satisfied


@pytest.mark.requirement("E-22")
def test_who_approved_and_refused_counts_as_refusing() -> None:
    """Two devices of one node can disagree: the node's word is then no."""
    result = policy.parse("OutOf(2, 'A', 'B', 'C')").evaluate("ABC", ["A", "B"], ["B"])
    expected = policy.PolicyResult(satisfied=False, possible=True, approved=("A",), refused=("B",), missing=("C",))
    assert result == expected


@pytest.mark.requirement("E-22")
def test_a_node_counts_once() -> None:
    """However often a node approved, it is one node; and a list cannot name it twice."""
    assert not policy.parse("OutOf(2, 'A', 'B')").evaluate("AB", ["A", "A"], ()).satisfied
    with pytest.raises(PolicySyntaxError, match="node 'A' stands twice"):
        policy.parse("OutOf(2, 'A', 'B', 'A')")


def test_the_outcome_names_everybody() -> None:
    """Who approved, who refused, who is missing, and whether it can still be met."""
    result = policy.parse("AND('A', 'B', 'C')").evaluate(CHANNEL, ["A", "G"], ["C"])
    assert result == policy.PolicyResult(
        satisfied=False, possible=False, approved=("A",), refused=("C",), missing=("B",)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a rule such as .* got 'the end' .at character 1"),
        ("   ", "got 'the end' .at character 1"),
        ("AND", r"expected '\(', got 'the end' .at character 4"),
        ("AND()", r"got '\)' .at character 5"),
        ("AND('A'", r"expected '\)', got 'the end' .at character 8"),
        ("AND('A',)", r"got '\)' .at character 9"),
        ("AND('A' 'B')", r"expected '\)', got 'B' .at character 8"),
        ("AND(A, B)", "unknown rule A; known are"),
        ("XOR('A', 'B')", "unknown rule XOR; known are AND, OR, OutOf, ALL, ANY, MAJORITY"),
        ("OutOf('A', 'B')", "expected how many are needed, got 'A' .at character 7"),
        ("OutOf(0, 'A')", "can never be met or asks for nothing"),
        ("OutOf(3, 'A', 'B')", "of 2 rules can never be met"),
        ("OutOf(2)", r"expected ',', got '\)' .at character 8"),
        ("OutOf(-1, 'A')", "unexpected .*-1, 'A'.*at character 7"),
        ("MAJORITY(1/1)", "the share 1/1 does not lie between 0 and 1"),
        ("MAJORITY(0/2)", "the share 0/2 does not lie"),
        ("MAJORITY(1/0)", "the share 1/0 does not lie"),
        ("MAJORITY(2)", "expected '/'"),
        ("'A' 'B'", "unexpected 'B' after the policy .at character 4"),
        ("'A", "unexpected .*at character 1"),
        ("''", "'' is no node name"),
        ("'A B'", "'A B' is no node name"),
        ("'A\n'", "is no node name"),
        ("'Ä'", "is no node name"),
        ("AND('A';'B')", "unexpected .*;.*B.*at character 8"),
        ("ALL()", r"unexpected '\(' after the policy"),
        ("'A' \0", "unexpected"),
    ],
)
def test_an_error_points_at_its_place(text: str, message: str) -> None:
    """What was expected, what came, and at which character."""
    with pytest.raises(PolicySyntaxError, match=message):
        policy.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "AND(" * 2000,
        "'" * 4096,
        " " * 4096,
        "(" * 4096,
        "AND('A'," + "'B'," * 1000,
        "AND(" + ",".join(f"'{n}'" for n in range(900)),
        "1" * 4096,
        "A" * 4096,
        "'A'" + " " * 4000 + "x",
    ],
)
def test_a_hostile_policy_is_refused_quickly(text: str) -> None:
    """No text takes the parser more than 100 ms or beyond its depth."""
    began = time.thread_time()
    with pytest.raises(PolicySyntaxError):
        policy.parse(text[: policy.MAX_LENGTH])
    assert time.thread_time() - began < 0.1


def test_length_and_depth_are_limited() -> None:
    """Beyond 4,096 characters or 16 levels nothing is parsed."""
    with pytest.raises(PolicySyntaxError, match="4097 characters where at most 4096"):
        policy.parse(" " * 4097)
    policy.parse("AND(" * 15 + "'A'" + ")" * 15)
    with pytest.raises(PolicySyntaxError, match="nested deeper than 16 levels"):
        policy.parse("AND(" * 16 + "'A'" + ")" * 16)


_NODE = st.sampled_from(CHANNEL)


def _out_of(rules: list[str], share: float) -> str:
    distinct = list(dict.fromkeys(rules))
    return f"OutOf({max(1, round(share * len(distinct)))}, {', '.join(distinct)})"


RULES = st.recursive(
    _NODE.map(lambda name: f"'{name}'") | st.sampled_from(["ALL", "ANY", "MAJORITY", "MAJORITY(1/2)"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4, unique=True).map(lambda rules: f"AND({', '.join(rules)})"),
        st.lists(inner, min_size=1, max_size=4, unique=True).map(lambda rules: f"OR({', '.join(rules)})"),
        st.builds(_out_of, st.lists(inner, min_size=1, max_size=4), st.floats(0, 1)),
    ),
    max_leaves=8,
)
NODES = st.frozensets(_NODE)


@given(RULES, NODES, NODES, NODES)
def test_approval_never_harms(
    text: str, approved: frozenset[str], more: frozenset[str], refused: frozenset[str]
) -> None:
    """Further approvals never undo a satisfied policy; further refusals never satisfy one."""
    parsed = policy.parse(text)
    fewer, many = (parsed.evaluate(CHANNEL, names, refused) for names in (approved, approved | more))
    assert many.satisfied or not fewer.satisfied
    unopposed = parsed.evaluate(CHANNEL, approved, ())
    assert unopposed.satisfied or not fewer.satisfied
    assert fewer.possible or not fewer.satisfied


@given(RULES, NODES, NODES)
def test_an_outcome_accounts_for_every_target(text: str, approved: frozenset[str], refused: frozenset[str]) -> None:
    """Each target node has approved, refused, or is missing: exactly one of the three."""
    parsed = policy.parse(text)
    result = parsed.evaluate(CHANNEL, approved, refused)
    everybody = [*result.approved, *result.refused, *result.missing]
    assert sorted(everybody) == sorted(parsed.nodes(CHANNEL))
    assert result.possible == parsed.evaluate(CHANNEL, approved | set(result.missing), refused).satisfied


@given(RULES, st.permutations(CHANNEL), st.integers(0, len(CHANNEL)))
def test_a_minimal_set_satisfies_and_nobody_can_be_dropped(text: str, order: list[str], count: int) -> None:
    """It is a subset of the available nodes in their order; None means that they are not enough."""
    available = order[:count]
    parsed = policy.parse(text)
    chosen = parsed.minimal(CHANNEL, available)
    if chosen is None:
        assert not parsed.evaluate(CHANNEL, available, ()).satisfied
        return
    assert [name for name in available if name in chosen] == list(chosen)
    assert parsed.evaluate(CHANNEL, chosen, ()).satisfied
    for name in chosen:
        assert not parsed.evaluate(CHANNEL, set(chosen) - {name}, ()).satisfied


def test_a_minimal_set_prefers_who_comes_first() -> None:
    """A caller spreads the load by the order in which it names the nodes."""
    parsed = policy.parse("OutOf(2, 'A', 'B', 'C')")
    assert parsed.minimal(CHANNEL, "CAB") == ("C", "A")
    assert parsed.minimal(CHANNEL, "BCA") == ("B", "C")
