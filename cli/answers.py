"""What services answer to the command, as values."""

from typing import Any

import msgspec

from transport.problem import Problem


class TransactionStatus(msgspec.Struct, frozen=True):
    """What became of a transaction so far: pending, endorsed, committed, refused or failed."""

    transaction: str
    status: str
    height: int | None = None
    code: str | None = None
    problem: Problem | None = None

    @property
    def final(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status in {"committed", "refused", "failed"}


class BatchItem(msgspec.Struct, frozen=True):
    """The answer to one line of a batch: accepted under an id, or a problem."""

    transaction: str | None = None
    status: str | None = None
    problem: Problem | None = None


class NetworkInfo(msgspec.Struct, frozen=True):
    """What a management service says of its chain."""

    network: str
    height: int
    time: int
    authentication: str
    registry_root: str
    period_ms: int
    ceremony: str


class PeerStatus(msgspec.Struct, frozen=True):
    """What a peer says of its chain; `halted` names the block that it could not accept."""

    peer: str
    network: str
    height: int
    time: int
    authentication: str
    halted: dict[str, Any] | None = None


class SimulatedVote(msgspec.Struct, frozen=True):
    """A node that would be asked, and where."""

    node: str
    device: str


class SimulatedTurn(msgspec.Struct, frozen=True):
    """A group of devices that serves a transaction together: who would vote, or why that is not enough."""

    devices: tuple[str, ...]
    votes: tuple[SimulatedVote, ...]
    reason: str


class MissingNode(msgspec.Struct, frozen=True):
    """A node for which nobody can sign now, with the reason of each of its devices."""

    node: str
    devices: dict[str, str]


class Simulation(msgspec.Struct, frozen=True):
    """What would become of a transaction type now; `blocks` says why no block could be signed, or nothing."""

    kind: str
    policy: str
    expression: str
    meaning: str
    routing: str
    distinct_devices: bool
    height: int
    without: str | None
    endorsed: bool
    turns: tuple[SimulatedTurn, ...]
    missing: tuple[MissingNode, ...]
    blocks: str

    @property
    def goes_on(self) -> bool:
        """Whether it would be endorsed and put into a block."""
        return self.endorsed and not self.blocks
