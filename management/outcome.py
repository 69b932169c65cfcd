"""What becomes of a transaction, as data: where it stands, or who was asked and why it failed."""

from typing import Any, Final, Literal

import msgspec

from protocol.canonical import TxId

ALREADY_EXECUTED: Final = "already-executed"


class Tried(msgspec.Struct, frozen=True):
    """A device that was asked to vote for `nodes`, and what it said (requirement E-12)."""

    device: str
    nodes: tuple[str, ...]
    said: str
    detail: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a transaction is not taken, or did not make it into a block. `code` is stable.

    A final one stands for this transaction id for ever; else the same transaction may be sent again.
    """

    code: str
    detail: str
    final: bool = False
    reason: str | None = None
    """The one code in which all that rejected it agree, where there is one."""
    devices: tuple[Tried, ...] = ()
    transaction: TxId | None = None

    def devices_as_data(self) -> tuple[dict[str, Any], ...]:
        """The devices in the form that problem details carry."""
        return tuple(msgspec.to_builtins(tried) for tried in self.devices)


Stage = Literal["pending", "endorsed", "committed", "refused", "failed"]


class Status(msgspec.Struct, frozen=True):
    """Where a transaction stands. `height` and `code` are those of its block, `refusal` says why there is none."""

    transaction: TxId
    status: Stage
    height: int | None = None
    code: str | None = None
    refusal: Refusal | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will become of this submission."""
        return self.status not in {"pending", "endorsed"}


def refused(transaction: TxId, refusal: Refusal) -> Status:
    """The status of a transaction that is in no block and will not be (unless it is sent again)."""
    return Status(transaction, "refused" if refusal.final else "failed", refusal=refusal)
