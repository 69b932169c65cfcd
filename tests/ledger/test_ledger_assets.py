"""The contract `assets`: a value is spent once, and none is made or lost on the way."""

import functools
import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import execution
from ledger.contracts.assets import Coin, coin_key
from ledger.registry_view import RegistryView
from ledger.replica import Replica
from protocol.canonical import MAX_INTEGER
from protocol.registry import Client, key_of
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network

Commit = Callable[..., list[str]]


def coin_of(replica: Replica, name: str) -> Coin:
    """A coin as the state shows it."""
    data = replica.store.state(coin_key(name))
    assert data is not None
    return msgspec.json.decode(data, type=Coin)


def test_issue_and_transfer(network: Network, replica: Replica, commit: Commit) -> None:
    """Coins carry asset, owner and amount; a spent one says by which transaction."""
    issue = network.issue("GOLD", {"c1": 10, "c2": 5})
    assert commit(issue) == ["valid"]
    assert Coin("c1:GOLD", "c1", 10) == coin_of(replica, f"{issue.id}:0")
    assert Coin("c1:GOLD", "c2", 5) == coin_of(replica, f"{issue.id}:1")
    transfer = network.transfer([f"{issue.id}:0"], {"c2": 7, "c1": 3})
    assert commit(transfer) == ["valid"]
    assert Coin("c1:GOLD", "c1", 10, transfer.id) == coin_of(replica, f"{issue.id}:0")
    assert Coin("c1:GOLD", "c2", 7) == coin_of(replica, f"{transfer.id}:0")
    assert Coin("c1:GOLD", "c1", 3) == coin_of(replica, f"{transfer.id}:1")


def test_an_asset_is_its_issuers_own(network: Network, replica: Replica, commit: Commit) -> None:
    """The same symbol of two issuers is two assets."""
    one, two = network.issue("GOLD", {"c1": 5}), network.issue("GOLD", {"c1": 5}, client="c2")
    assert commit(one, two) == ["valid", "valid"]
    assert (coin_of(replica, f"{one.id}:0").asset, coin_of(replica, f"{two.id}:0").asset) == ("c1:GOLD", "c2:GOLD")
    assert commit(network.transfer([f"{one.id}:0", f"{two.id}:0"], {"c1": 10})) == ["mixed-assets"]


@pytest.mark.requirement("M-7")
def test_spent_once_within_a_block(
    network: Network, replica: Replica, commit: Commit, new_replica: Callable[[], Replica]
) -> None:
    """Of two that spend one coin in one block the first counts, on every replica equally."""
    follower = new_replica()
    issue = network.issue("GOLD", {"c1": 10})
    assert commit(issue) == ["valid"]
    first, second = (network.transfer([f"{issue.id}:0"], {owner: 10}) for owner in ("c1", "c2"))
    assert commit(first, second) == ["valid", "already-spent"]
    for height in (1, 2):
        follower.apply(replica.store.block(height) or b"")
    assert replica.store.digest() == follower.store.digest()
    assert replica.store.outcomes(2) == follower.store.outcomes(2)
    assert commit(network.transfer([f"{issue.id}:0"], {"c1": 10})) == ["already-spent"]


def test_a_chain_of_transfers_in_one_block(network: Network, commit: Commit) -> None:
    """A coin made in a block can be spent later in the same block, and not earlier."""
    issue = network.issue("GOLD", {"c1": 10})
    transfer = network.transfer([f"{issue.id}:0"], {"c2": 10})
    further = network.transfer([f"{transfer.id}:0"], {"c1": 10}, client="c2")
    assert commit(further, issue, transfer) == ["unknown-coin", "valid", "valid"]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda n, coin: n.transfer([coin], {"c1": 9}), "unbalanced"),
        (lambda n, coin: n.transfer([coin], {"c1": 11}), "unbalanced"),
        (lambda n, coin: n.transfer([coin, coin], {"c1": 20}), "duplicate-input"),
        (lambda n, coin: n.transfer([coin], {"c1": 10}, client="c2"), "not-owner"),
        (lambda n, coin: n.transfer([coin], {"nobody": 10}), "unknown-owner"),
        (lambda n, coin: n.transfer([coin.replace(":0", ":1")], {"c1": 10}), "unknown-coin"),
        (lambda n, coin: n.transfer([coin], {"c1": MAX_INTEGER, "c2": 1}), "too-much"),
        (lambda n, _: n.issue("GOLD", {"c1": MAX_INTEGER, "c2": 1}), "too-much"),
        (lambda n, _: n.issue("GOLD", {"nobody": 1}), "unknown-owner"),
    ],
)
def test_refusals(
    network: Network, replica: Replica, commit: Commit, make: Callable[[Network, str], Transaction], code: str
) -> None:
    """Each transfer or issue that does not apply is recorded with its code, and the coin stays as it was."""
    issue = network.issue("GOLD", {"c1": 10})
    assert commit(issue) == ["valid"]
    before = replica.store.digest()[1]
    assert [code] == commit(make(network, f"{issue.id}:0"))
    assert before == replica.store.digest()[1]


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("issue", {"symbol": "GOLD", "outputs": []}),
        ("issue", {"symbol": "", "outputs": [{"owner": "c1", "amount": 1}]}),
        ("issue", {"symbol": "A:B", "outputs": [{"owner": "c1", "amount": 1}]}),
        ("issue", {"symbol": "GOLD", "outputs": [{"owner": "c1", "amount": 0}]}),
        ("issue", {"symbol": "GOLD", "outputs": [{"owner": "c1", "amount": -1}]}),
        ("issue", {"symbol": "GOLD", "outputs": [{"owner": "c1", "amount": True}]}),
        ("issue", {"symbol": "GOLD", "outputs": [{"owner": "c1", "amount": "1"}]}),
        ("issue", {"symbol": "GOLD", "outputs": [{"owner": "c1", "amount": 1}], "to": "c2"}),
        ("issue", {"symbol": "GOLD", "outputs": [{"owner": "c1", "amount": 1}] * 257}),
        ("transfer", {"inputs": [], "outputs": [{"owner": "c1", "amount": 1}]}),
        ("transfer", {"inputs": ["ab:0"], "outputs": [{"owner": "c1", "amount": 1}]}),
        ("transfer", {"inputs": [f"{'ab' * 32}:00"], "outputs": [{"owner": "c1", "amount": 1}]}),
        ("transfer", {"inputs": [f"{'AB' * 32}:0"], "outputs": [{"owner": "c1", "amount": 1}]}),
        ("transfer", {"inputs": [f"{'ab' * 32}:0\n"], "outputs": [{"owner": "c1", "amount": 1}]}),
    ],
)
def test_bad_arguments(network: Network, commit: Commit, operation: str, arguments: dict[str, Any]) -> None:
    """What is no issue or transfer is `bad-arguments`."""
    assert commit(network.transaction("assets", operation, arguments)) == ["bad-arguments"]


CLIENTS = ("c1", "c2", "c3")
WISH = st.tuples(
    st.sampled_from(["issue", "transfer", "transfer", "transfer"]),
    st.sampled_from(CLIENTS),
    st.lists(st.integers(0, 20), min_size=1, max_size=3),  # which coins
    st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=3, unique=True),  # to whom
    st.integers(-1, 1),  # by how much the sum is wrong
)


def _wish(network: Network, made: dict[str, Coin], wish: tuple[str, str, list[int], list[str], int]) -> Transaction:
    operation, client, picks, owners, error = wish
    coins = list(made)
    if operation == "issue" or not coins:
        return network.issue("GOLD", {owner: 3 + place for place, owner in enumerate(owners)}, client=client)
    inputs = [coins[pick % len(coins)] for pick in picks]
    total = sum(made[coin].amount for coin in inputs) + (error if error == 1 else 0)
    amounts = dict.fromkeys(owners[1:], 1)
    amounts[owners[0]] = max(1, total - len(amounts))
    return network.transfer(inputs, amounts, client=client)


def _sums(state: dict[str, bytes]) -> Counter[str]:
    coins = [msgspec.json.decode(value, type=Coin) for value in state.values()]
    sums: Counter[str] = Counter()
    for coin in coins:
        if coin.spent_by is None:
            sums[coin.asset] += coin.amount
    return sums


def _fetch(state: dict[str, bytes], keys: Collection[str]) -> dict[str, bytes]:
    return {key: state[key] for key in keys if key in state}


@pytest.mark.requirement("M-7")
@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(st.lists(WISH, min_size=1, max_size=6), min_size=1, max_size=4))
def test_value_is_conserved(blocks: list[list[tuple[str, str, list[int], list[str], int]]]) -> None:
    """Whatever is tried, what is unspent of an asset is what was issued of it; and two executions agree."""
    network = Network(clients=CLIENTS)
    clients = [Client(name, software_keys.ecdsa(name).spki, "") for name in CLIENTS]
    view = RegistryView({key_of(entry): msgspec.json.encode(entry, order="sorted") for entry in clients})
    states: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
    issued: Counter[str] = Counter()
    for wishes in blocks:
        made = {
            key.removeprefix("assets/coin/"): msgspec.json.decode(value, type=Coin) for key, value in states[0].items()
        }
        transactions = [_wish(network, made, wish) for wish in wishes]
        results = []
        for state in states:
            result = execution.execute(transactions, view, functools.partial(_fetch, state), height=1, time=0)
            results.append(result.outcomes)
            state.update({key: value for key, value in result.writes.items() if value is not None})
        assert results[0] == results[1]
        for transaction, outcome in zip(transactions, results[0], strict=True):
            if outcome.code == "valid" and transaction.payload.operation == "issue":
                outputs = transaction.payload.arguments["outputs"]
                issued[f"{transaction.payload.client}:GOLD"] += sum(output["amount"] for output in outputs)
        assert issued == _sums(states[0])
    assert states[0] == states[1]


def test_two_replicas_agree_on_the_digest(
    network: Network, replica: Replica, new_replica: Callable[[], Replica]
) -> None:
    """A random history of issues, transfers and conflicts gives one digest on two replicas."""
    chance = random.Random(20)  # noqa: S311  a test's own dice
    follower = new_replica()
    coins: list[str] = []
    codes: Counter[str] = Counter()
    for _ in range(8):
        wishes = [network.issue("GOLD", {"c1": 4, "c2": 4})]
        for _ in range(12):
            if coins:
                client = chance.choice(["c1", "c2"])
                wishes.append(network.transfer([chance.choice(coins)], {"c1": 3, "c2": 1}, client=client))
        line = network.block(replica, wishes).encode()
        outcomes = replica.apply(line).outcomes
        assert outcomes == follower.apply(line).outcomes
        codes.update(outcome.code for outcome in outcomes)
        coins += [f"{o.transaction}:{index}" for o in outcomes if o.code == "valid" for index in (0, 1)]
    assert {"valid", "already-spent", "not-owner", "unbalanced"} <= set(codes)
    assert replica.store.digest() == follower.store.digest()
