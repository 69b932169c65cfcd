"""Starting a guard anew, by an order that the administrators signed (requirement K-10).

The order is checked against the device's own copy of the chain, in this sequence:

     1. it is an order, for this network and this device
     2. as many administrators signed it as the registry in force asks for
     3. it is not older than a week
     4. it was not carried out before: neither by this device nor, as the chain shows, by a later one
     5. the copy of the chain reaches the height that the administrators knew

What the new guard may sign begins above that height and above the device's own, so that nothing the lost guard can
have signed gets a second word.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardError, RefusedError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_files import RESTORED
from hsm_endorser.guard_mark import Mark
from ledger.replica import Replica
from protocol import guard_order
from protocol.envelope import Envelope
from protocol.errors import BadSignatureError, ProtocolError
from protocol.guard_order import Order

LONGEST_AGE_MILLISECONDS: Final = 7 * 24 * 3600 * 1000
FUTURE_MILLISECONDS: Final = 5 * 60 * 1000
"""How far the clocks of administrators and devices may be apart."""


class Started(msgspec.Struct, frozen=True):
    """A guard that was started anew: from where it signs, and where the old one was put, if there was one."""

    digest: str
    since: int
    headers_since: int
    kept: Path | None
    signers: tuple[str, ...]


def apply(path: Path, envelope: Envelope, replica: Replica, device: str, *, now: int | None = None) -> Started:
    """Put a new guard in the place of the one at `path`, which is kept aside under another name.

    `now` is the time in milliseconds. Raises `RefusedError` for an order that must not be carried out, `GuardError`
    when a device still runs on the guard or a file cannot be written.
    """
    order, signers = check(path, envelope, replica, device, now=time.time_ns() // 1_000_000 if now is None else now)
    digest = guard_order.digest_of(envelope)
    lock = guard_file.lock(path)  # a device that runs on the guard holds it
    try:
        if path.exists():
            os.close(guard_file.lock_file(path))  # by whatever other name
        _note(path, digest)
        # A crash here, or anywhere below, has used the order up: the device signs nothing until there is a new one.
        kept = _put_aside(path, now=time.gmtime())
    except OSError as error:
        raise GuardError(
            f"the guard at {path} cannot be put aside: {error.strerror}; let this user write there"
        ) from None
    finally:
        os.close(lock)
    # A device that is started at this moment finds no guard and signs nothing.
    since = max(order.valid_from, guard_order.least_valid_from(replica.height))
    headers_since = max(order.height, replica.height) + 1
    shown = replica.store.device_sequences().get(device, 0)
    Guard.create(
        path,
        network=replica.network,
        device=device,
        since=since,
        headers_since=headers_since,
        sequence=max(order.sequence, shown + guard_order.SEQUENCE_MARGIN),
        guard_order=digest,
    ).close()
    return Started(digest, since, headers_since, kept, signers)


def check(path: Path, envelope: Envelope, replica: Replica, device: str, *, now: int) -> tuple[Order, tuple[str, ...]]:
    """The order and who signed it, when it may be carried out for the guard at `path`; raises `RefusedError`."""
    try:
        order = guard_order.decode(envelope)
    except ProtocolError as error:
        raise RefusedError(error.code, str(error)) from None
    if order.network != replica.network:
        raise RefusedError("wrong-network", f"the order is for network {order.network}, this is {replica.network}")
    if order.device != device:
        raise RefusedError("wrong-device", f"the order is for device {order.device}, this is {device}")
    registry = replica.registry
    try:
        administrators = registry.administrators_in_force(height=replica.height + 1, time=replica.time)
        signers = guard_order.verify(envelope, administrators, registry.channel.administrators_needed)
    except BadSignatureError as error:
        raise RefusedError("not-authorized", str(error)) from None
    if not now - LONGEST_AGE_MILLISECONDS <= order.time <= now + FUTURE_MILLISECONDS:
        raise RefusedError("order-expired", "the order was not drawn up within the last seven days; sign a new one")
    _require_new(path, guard_order.digest_of(envelope), order, replica)
    if replica.height < order.height:
        raise RefusedError(
            "order-ahead",
            f"the order was drawn up at height {order.height}, this device's copy of the chain ends at "
            f"{replica.height}; start the device, which follows the chain without a guard as well, and try again",
        )
    return order, signers


def _require_new(path: Path, digest: str, order: Order, replica: Replica) -> None:
    again = "an order starts one guard; let the administrators sign a new one"
    if digest in _noted(path):
        raise RefusedError("order-replayed", f"this order was carried out before; {again}")
    last = replica.registry.guard_order(order.device)
    if last is not None and order.valid_from <= last.since:
        raise RefusedError(
            "order-replayed",
            f"the chain shows an order for this device from height {last.since} on, this one is from "
            f"{order.valid_from}; {again}",
        )


def _orders(path: Path) -> Path:
    return Path(f"{path}.orders")


def _noted(path: Path) -> Sequence[str]:
    try:
        return _orders(path).read_text(encoding="ascii").split()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise GuardError(f"the list of orders {_orders(path)} cannot be read: {error}") from None


def _note(path: Path, digest: str) -> None:
    """Write down, durably, that an order is used up."""
    descriptor = os.open(_orders(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, digest.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    guard_file.sync_folder(path)


def _put_aside(path: Path, *, now: time.struct_time) -> Path | None:
    """Rename all files of a guard, for whoever finds out what happened to it."""
    files = {suffix: Path(f"{path}{suffix}") for suffix in ("-shm", "-wal", "", Mark.SUFFIX, RESTORED)}
    if not any(file.exists() for file in files.values()):
        return None
    stamp = f"{path}.{time.strftime('%Y%m%dT%H%M%SZ', now)}"
    kept, number = Path(stamp), 1
    while any(Path(f"{kept}{suffix}").exists() for suffix in files):
        number += 1
        kept = Path(f"{stamp}-{number}")
    for suffix, file in files.items():
        if file.exists():
            file.rename(f"{kept}{suffix}")
    guard_file.sync_folder(path)
    return kept
