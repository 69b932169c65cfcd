"""Revokes a key, or a device with every key on it: administrators sign it, and it is never taken back."""

import time
from pathlib import Path
from typing import Final, get_args

import msgspec

from cli import exit_codes, key_table, registry, role_holder
from cli.errors import CommandError, UsageError
from cli.key_table import KeyRow
from cli.output import Output
from cli.plan import read_network
from cli.trace import point_in_time
from protocol.registry import Reason, Revocation

LEAST_ID_DIGITS: Final = 8
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class RevokedAlreadyError(CommandError):
    """A key that was revoked before: a revocation is put once and never changed."""

    exit_code = exit_codes.REFUSED
    code = "final"


class Wish(msgspec.Struct, frozen=True):
    """Which key is to be refused and why; `suspected` is a time in words or empty for now."""

    network: Path
    row: KeyRow
    reason: str
    suspected: str
    administrators: tuple[str, ...] = ()


def revoke(output: Output, wish: Wish) -> None:
    """Put the revocation on the chain, and tell what it means."""
    row = wish.row
    entry = Revocation(row.key, row.holder, reason_of(wish.reason), moment(wish.suspected))
    signers = known(wish.network, wish.administrators)
    done = registry.commit(wish.network, "put", {"entries": [registry.builtins(entry)]}, signers)
    output.plain(
        f"{row.holder}: key {row.key[:16]}… is refused from height {done.height + 1} on, for ever "
        f"(block {done.height}, signed by {', '.join(done.signers)})."
    )
    if row.holder.startswith("device/"):
        output.plain(f"So is every key on {row.device}.")
    output.plain(f"What it has signed: hsm-endorser key trace {row.key} --network {wish.network}")
    output.result(
        {
            "key": row.key,
            "holder": row.holder,
            "reason": entry.reason,
            "suspected": entry.suspected,
            "since": done.height + 1,
            "transaction": done.transaction,
            "signers": list(done.signers),
        }
    )


def find(network: Path, wanted: str) -> KeyRow:
    """The one key that is meant, and not revoked; raises `UsageError`, or `RevokedAlreadyError`."""
    height, now = registry.head(network)
    rows = key_table.rows(registry.in_force(network), height=height + 1, time=now)
    holder = wanted if "/" in wanted else f"node/{wanted}"
    is_id = len(wanted) >= LEAST_ID_DIGITS and not wanted.strip("0123456789abcdef")
    found = [row for row in rows if row.holder == holder or (is_id and row.key.startswith(wanted))]
    open_ones = [row for row in found if not row.state.startswith("revoked")]
    if len(open_ones) == 1:
        return open_ones[0]
    if found and not open_ones:
        raise RevokedAlreadyError(
            f"{wanted} is revoked already", advice="nothing: a revocation is final, and is never changed or taken back"
        )
    if not open_ones:
        raise UsageError(f"no key is meant by {wanted!r}", advice="see hsm-endorser key list --network DIR")
    listed = "; ".join(f"{row.key} on {row.device or 'no device'} ({row.state})" for row in open_ones)
    raise UsageError(f"{len(open_ones)} keys are meant by {wanted!r}: {listed}", advice="name one of them by its id")


def reason_of(text: str) -> Reason:
    """The reason; raises `UsageError`."""
    for each in REASONS:
        if each == text:
            return each
    raise UsageError(f"{text!r} is no reason", advice=f"one of {', '.join(REASONS)}")


def moment(text: str) -> int:
    """A time in milliseconds since the epoch, now for an empty text; raises `UsageError`, also for one that lies ahead.

    A revocation is final, and so is the time in it: none is guessed, and none is taken that cannot be right.
    """
    now = time.time_ns() // 1_000_000
    if not text:
        return now
    when = point_in_time(text)
    if when > now:
        raise UsageError(f"{text} has not come yet", advice="say since when others may have had the key")
    return when


def known(network: Path, administrators: tuple[str, ...]) -> tuple[str, ...]:
    """The administrators, when the folder has their keys or knows where they are; raises `UsageError`."""
    for name in administrators:
        if not role_holder.is_reachable(network, name):
            raise UsageError(
                f"the folder has no key of administrator {name}",
                advice=f"known are {', '.join(read_network(network).administrators)}",
            )
    return administrators
