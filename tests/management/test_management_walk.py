"""The way of a transaction through the management service."""

import pytest

from tests.management.simulated_network import RunningCenter, SimulatedNetwork


@pytest.mark.requirement("M-4", "E-13")
async def test_submitted_transaction_is_committed(center: RunningCenter, network: SimulatedNetwork) -> None:
    """A good transaction is endorsed, cut into a block and appended, and the waiting client is told where."""
    transaction = network.alice.transaction()
    answer = await center.submit(transaction, wait=10)
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (200, "committed", "valid"), (
        answer.text
    )
    (block,) = await center.blocks(answer.json()["height"], 1)
    assert [each.id for each in block.transactions] == [transaction.id]
    assert sum(len(tree.branches) for tree in block.trees) == 2
