"""Deterministic execution: the same transactions over the same state give the same outcomes everywhere.

All reads of a batch are fetched at once; the transactions then run in order over an overlay of what those
before them wrote.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from ledger import contracts
from ledger.contracts.contract import Call, Operation, Writes
from ledger.contracts.registry import NAME as REGISTRY
from ledger.contracts.registry import PREFIX as REGISTRY_PREFIX
from ledger.errors import RejectedError
from ledger.registry_view import RegistryView
from protocol import canonical
from protocol.block import VALID, Outcome
from protocol.transaction import Transaction

Fetch = Callable[[Collection[str]], Mapping[str, bytes]]
"""Fetches the values of state keys, leaving out those without a value."""


class Execution(msgspec.Struct, frozen=True):
    """What a batch came to: its outcomes in order, the state it writes, and the registry after it."""

    outcomes: list[Outcome]
    writes: dict[str, bytes | None]
    registry: RegistryView


def execute(
    transactions: Sequence[Transaction], registry: RegistryView, fetch: Fetch, *, height: int, time: int
) -> Execution:
    """Run the transactions of a block of this height and time (ms) in order, each seeing what those before it wrote.

    Requirement E-16.

    The registry in force stays that before the batch; registry transactions alone see each other's changes.
    """
    plans = [_plan(transaction, registry, height, time) for transaction in transactions]
    overlay: dict[str, bytes | None] = dict(fetch({key for plan in plans for key in plan.reads}))
    written: dict[str, bytes | None] = {}
    outcomes: list[Outcome] = []
    after = registry
    for transaction, plan in zip(transactions, plans, strict=True):
        is_registry = transaction.payload.contract == REGISTRY
        code, writes = _run(plan, overlay, after if is_registry else registry)
        overlay.update(writes)
        written.update(writes)
        if is_registry and writes:
            after = after.changed({key.removeprefix(REGISTRY_PREFIX): value for key, value in writes.items()})
        outcomes.append(Outcome(transaction.id, code, write_set_hash(writes)))
    return Execution(outcomes, written, after)


def simulate(
    transactions: Sequence[Transaction], registry: RegistryView, fetch: Fetch, *, height: int, time: int
) -> list[str]:
    """Run each transaction alone over the same state; the outcome codes, in order (requirement E-10)."""
    plans = [_plan(transaction, registry, height, time) for transaction in transactions]
    values = fetch({key for plan in plans for key in plan.reads})
    return [_run(plan, values, registry)[0] for plan in plans]


def write_set_hash(writes: Writes) -> str:
    """SHA-256 over the canonical write set, hexadecimal."""
    return hashlib.sha256(canonical.encode(writes)).hexdigest()


class _Plan(msgspec.Struct, frozen=True):
    call: Call
    refused: str = ""
    operation: Operation | None = None
    arguments: Any = None
    reads: tuple[str, ...] = ()


def _plan(transaction: Transaction, registry: RegistryView, height: int, time: int) -> _Plan:
    payload = transaction.payload
    call = Call(payload.client, transaction.id, registry, height, time)
    try:
        operation = contracts.find(payload.contract, payload.operation)
        arguments = operation.decode(payload.arguments)
    except RejectedError as error:
        return _Plan(call, error.code)
    return _Plan(call, "", operation, arguments, operation.reads(arguments, call))


def _run(plan: _Plan, values: Mapping[str, bytes | None], registry: RegistryView) -> tuple[str, Writes]:
    if plan.operation is None:
        return plan.refused, {}
    call = plan.call if plan.call.registry is registry else msgspec.structs.replace(plan.call, registry=registry)
    reads = {key: values.get(key) for key in plan.reads}
    try:
        return VALID, plan.operation.run(plan.arguments, call, reads)
    except RejectedError as error:
        return error.code, {}
