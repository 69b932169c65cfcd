"""`hsm-endorser policy check`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chain_builder import Network
from tests.cli.conftest import Result

Run = Callable[..., Result]


@pytest.mark.requirement("E-5", "E-15")
@pytest.mark.parametrize(
    ("expression", "meaning", "indispensable"),
    [
        ("AND('A', 'B')", "node A and node B", ["A", "B"]),
        ("OR('A', 'B')", "node A or node B", []),
        ("OutOf(2, 'A', 'B', 'C')", "at least 2 of node A, node B, node C", []),
        ("OR('A', AND('B', 'C'))", "node A or (node B and node C)", []),
        ("AND('A', OR('B', 'C'))", "node A and (node B or node C)", ["A"]),
        ("'A'", "node A", ["A"]),
    ],
)
def test_a_policy_is_explained(run: Run, expression: str, meaning: str, indispensable: list[str]) -> None:
    """A policy is said in words, with the nodes without which it cannot be satisfied."""
    result = run("policy", "check", expression, "--json")
    assert result.code == 0
    assert result.document["meaning"] == meaning
    assert result.document["indispensable"] == indispensable


@pytest.mark.requirement("E-15")
@pytest.mark.parametrize(
    ("expression", "meaning", "minimal"),
    [
        ("MAJORITY", "more than 2/3 of the nodes of the channel", ["A", "B", "C"]),
        ("MAJORITY(1/2)", "more than 1/2 of the nodes of the channel", ["A", "B"]),
        ("ALL", "all nodes of the channel", ["A", "B", "C"]),
        ("ANY", "any one node of the channel", ["A"]),
    ],
)
def test_the_channel_of_a_network_is_counted(
    run: Run, built: tuple[Path, Network], expression: str, meaning: str, minimal: list[str]
) -> None:
    """With a network folder, policies that speak of the channel are judged against its nodes."""
    result = run("policy", "check", expression, "--network", built[0], "--json")
    assert result.code == 0
    assert (result.document["meaning"], result.document["minimal"]) == (meaning, minimal)


def test_people_read_a_sentence(run: Run) -> None:
    """Without --json the answer is prose."""
    result = run("policy", "check", "AND('A', OR('B', 'C'))")
    assert result.code == 0
    assert "It asks for node A and (node B or node C)." in result.out
    assert "Without A it cannot be satisfied." in result.out


def test_an_unknown_node_is_a_usage_error(run: Run, built: tuple[Path, Network]) -> None:
    """A policy that names a node the network does not have is refused with the nodes that it has."""
    result = run("policy", "check", "AND('A', 'X')", "--network", built[0], "--json")
    assert result.code == 2
    assert result.document["error"]["reason"] == "the policy names X; the network's nodes are A, B, C"


def test_a_syntax_error_points_at_the_place(run: Run) -> None:
    """A policy that cannot be parsed is a usage error that says where."""
    result = run("policy", "check", "AND('A', ", "--json")
    assert result.code == 2
    assert result.document["error"]["code"] == "policy-syntax"
    assert "at character" in result.document["error"]["reason"]


def test_setting_a_policy_needs_the_administrators_keys(run: Run, built: tuple[Path, Network]) -> None:
    """Without the administrators' keys in the folder a policy cannot be set, and the missing key is named."""
    result = run("policy", "set", "assets", "ALL", "--network", built[0], "--json")
    assert result.code == 2
    assert "administrators/admin-1.key" in result.document["error"]["reason"]
