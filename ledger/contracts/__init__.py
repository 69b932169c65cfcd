"""The built-in contracts."""

from collections.abc import Mapping
from typing import Final

from ledger.contracts import assets, evidence, registry
from ledger.contracts.contract import Contract, Operation
from ledger.errors import RejectedError

CONTRACTS: Final[Mapping[str, Contract]] = {
    assets.NAME: assets.CONTRACT,
    evidence.NAME: evidence.CONTRACT,
    registry.NAME: registry.CONTRACT,
}


def find(contract: str, operation: str) -> Operation:
    """The operation of a transaction type; raises `RejectedError` (`unknown-contract`, `unknown-operation`)."""
    operations = CONTRACTS.get(contract)
    if operations is None:
        raise RejectedError("unknown-contract", f"no contract {contract!r}; known are {', '.join(CONTRACTS)}")
    found = operations.get(operation)
    if found is None:
        raise RejectedError(
            "unknown-operation", f"{contract} has no operation {operation!r}; known are {', '.join(operations)}"
        )
    return found
