"""What a contract is: for each operation, which state it reads and what it writes. No I/O, no clock, no chance.

State keys begin with the contract's name and a slash. The values that an operation asked for are fetched for
a whole block at once and handed in; what it returns is its write set.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ledger.errors import RejectedError
from ledger.registry_view import RegistryView

Reads = Mapping[str, bytes | None]
"""The values of the keys that were asked for; None where there is no value."""
Writes = Mapping[str, bytes | None]
"""New values; None removes a key."""


class Call(msgspec.Struct, frozen=True):
    """Who calls, in which transaction, under which registry, in a block of which height and time."""

    client: str
    transaction: str
    registry: RegistryView
    height: int
    time: int
    """In milliseconds since the epoch."""


class Operation(msgspec.Struct, frozen=True):
    """One operation: its argument type, and two pure functions over a value of that type.

    `run` raises `RejectedError` with a stable code when the operation does not apply.
    """

    arguments: type[msgspec.Struct]
    reads: Callable[[Any, Call], tuple[str, ...]]
    run: Callable[[Any, Call, Reads], Writes]

    def decode(self, arguments: dict[str, Any]) -> msgspec.Struct:
        """The typed arguments; raises `RejectedError` (`bad-arguments`)."""
        try:
            return msgspec.convert(arguments, self.arguments)
        except msgspec.ValidationError as error:
            raise RejectedError("bad-arguments", str(error)) from None


Contract = Mapping[str, Operation]
"""The operations of a contract by name."""
