"""A new key in the place of an old one, announced by both (requirement K-12).

A node's new key counts from the announced height on, and the old one beside it up to `overlap` blocks later. An entry
of the other kinds holds one key: the announced height must have come, and the new key counts from the next block on.
That block's header is still signed by the set before, and its registry root commits the set after: a handover.
"""

import hashlib
from typing import TypeVar

import msgspec

from ledger.contracts.contract import Call
from ledger.errors import RejectedError
from protocol import canonical, registry, rotation
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.keys import PublicKey, key_id
from protocol.registry import Administrator, Center, Client, Lifetime, Node, NodeKey, Registrar
from protocol.rotation import Announcement

Single = Administrator | Registrar | Center | Client
"""Entries that hold one key."""
S = TypeVar("S", Administrator, Registrar, Center, Client)


class Announced(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `rotate` and `renew_client`: the announcement, signed by the old key and the new one."""

    announcement: Envelope


def rotated(envelope: Envelope, call: Call) -> Administrator | Registrar | Center | Node:
    """The entry of a node, a center, a registrar or an administrator with its new key; raises `RejectedError`."""
    announcement, entry = _read(envelope, call)
    match entry:
        case Node():
            return _next_of_node(entry, envelope, announcement, call)
        case Center():
            if not announcement.device:
                raise _bad("a center's new key names the device that it was generated on")
            _require_certificate(announcement, wanted=False)
            new = _next(entry, envelope, announcement, call, device=entry.device)
            return msgspec.structs.replace(new, device=announcement.device)
        case Registrar():
            _require_certificate(announcement, wanted=True)
            if announcement.device and call.registry.device(announcement.device) is None:
                raise RejectedError("unknown-device", f"the new key lives on {announcement.device}, which is no device")
            new_registrar = _next(entry, envelope, announcement, call)
            return msgspec.structs.replace(new_registrar, certificate=announcement.certificate)
        case Administrator():
            _require_no_device(announcement)
            _require_certificate(announcement, wanted=False)
            return _next(entry, envelope, announcement, call)
        case _:
            raise _bad("a client's key is renewed by the registrar, with renew_client")


def renewed(envelope: Envelope, call: Call) -> Client:
    """The entry of a client with its new key, or with a new lifetime for the key it has; raises `RejectedError`."""
    announcement, entry = _read(envelope, call)
    if not isinstance(entry, Client):
        raise _bad(f"{announcement.holder} is no client: administrators rotate its key")
    _require_no_device(announcement)
    _require_certificate(announcement, wanted=True)
    new = _next(entry, envelope, announcement, call, same_key=True)
    return msgspec.structs.replace(new, certificate=hashlib.sha256(announcement.certificate).hexdigest())


def _read(envelope: Envelope, call: Call) -> tuple[Announcement, Single | Node]:
    """The announcement, not verified yet, and whose key is replaced."""
    try:
        announcement = rotation.decode(envelope)
    except ProtocolError as error:
        raise _bad(str(error)) from None
    network = call.registry.channel.network
    if announcement.network != network:
        raise _bad(f"it is for network {announcement.network}, this is {network}")
    data = call.registry.entries.get(announcement.holder)
    if data is None:
        raise RejectedError("not-registered", f"the registry has no {announcement.holder}")
    entry = registry.decode_entry(announcement.holder, data)
    if not isinstance(entry, Single | Node):
        raise _bad(f"{announcement.holder} holds no key that another can take the place of")
    if announcement.until <= call.time:
        raise RejectedError("bad-lifetime", f"the new key ends at {announcement.until}, it is {call.time} (ms)")
    return announcement, entry


def _next_of_node(entry: Node, envelope: Envelope, announcement: Announcement, call: Call) -> Node:
    old = next((each for each in entry.keys if key_id(each.key) == announcement.old), None)
    if old is None:
        raise _bad(f"node {entry.name} does not hold key {announcement.old[:16]}…")
    _verify(envelope, old.key, old, call, device=old.device)
    if not announcement.device:
        raise _bad("a node's new key names the device that it was generated on")
    _require_certificate(announcement, wanted=False)
    if announcement.since <= call.height:
        raise _bad(f"the new key would count from height {announcement.since} on, this is block {call.height}")
    if announcement.new in {each.key for each in entry.keys}:
        raise _bad(f"node {entry.name} holds the new key already")
    if old.last != canonical.MAX_INTEGER:
        raise _bad(f"key {announcement.old[:16]}… has a successor: it counts up to height {old.last}")
    last = min(announcement.since + announcement.overlap, canonical.MAX_INTEGER - 1)
    new = NodeKey(
        announcement.new,
        announcement.device,
        since=announcement.since,
        not_before=announcement.not_before,
        until=announcement.until,
    )
    keys = (msgspec.structs.replace(each, last=last) if each is old else each for each in entry.keys)
    return msgspec.structs.replace(entry, keys=(*keys, new))


def _next(
    entry: S, envelope: Envelope, announcement: Announcement, call: Call, *, device: str = "", same_key: bool = False
) -> S:
    """The entry with the announced key and lifetime, from the next block on. `device` is where the old key lives."""
    _verify(envelope, entry.key, entry, call, device=device)
    if announcement.new == entry.key and not same_key:
        raise _bad(f"{announcement.holder} holds the new key already")
    if announcement.since > call.height + 1 or announcement.not_before > call.time:
        raise _bad(
            f"{announcement.holder} holds one key, so the new one counts at once: not from height "
            f"{announcement.since} and time {announcement.not_before} on, after block {call.height} of {call.time} (ms)"
        )
    if announcement.overlap:
        raise _bad(f"{announcement.holder} holds one key: there is no overlap with the old one")
    return msgspec.structs.replace(
        entry,
        key=announcement.new,
        since=call.height + 1,
        last=canonical.MAX_INTEGER,
        not_before=announcement.not_before,
        until=announcement.until,
    )


def _verify(envelope: Envelope, old: bytes, lifetime: Lifetime, call: Call, *, device: str = "") -> None:
    """Check that the old key is in force, and that it and the new one signed."""
    key = PublicKey.load(old)
    lapse = lifetime.lapse(call.height, call.time)
    if call.registry.revocation(key.id) is not None:
        lapse = "was revoked"
    lapse = f"the old key {lapse}" if lapse else ""
    if device and not lapse:
        lapse = call.registry.device_lapse(device, height=call.height, time=call.time)
    if lapse:
        raise _bad(f"{lapse}: administrators put the new key into the registry themselves")
    try:
        rotation.verify(envelope, key)
    except ProtocolError as error:
        raise _bad(str(error)) from None


def _require_no_device(announcement: Announcement) -> None:
    if announcement.device:
        raise _bad(f"the key of {announcement.holder} lives on no device, the new one on {announcement.device}")


def _require_certificate(announcement: Announcement, *, wanted: bool) -> None:
    if bool(announcement.certificate) != wanted:
        raise _bad(f"{announcement.holder} {'needs its new' if wanted else 'has no'} certificate")


def _bad(why: str) -> RejectedError:
    return RejectedError("bad-announcement", f"the announcement does not hold: {why}")
